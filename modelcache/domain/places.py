"""What a ref's authority and path may be, by scheme: buckets, registries, repositories, folders.

Sources take names apart with `oci_name` and `hub_name`; both are total for refs that were parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from modelcache.errors import InvalidRef


class Scheme(StrEnum):
    """The protocols a ref can name."""

    S3 = "s3"
    GS = "gs"
    OCI = "oci"
    HF = "hf"
    HTTP = "http"
    HTTPS = "https"
    FILE = "file"


_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{1,254}")
_REGISTRY: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?"
)
# Names, tags and digests as the distribution specification has them.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_OCI: Final = re.compile(
    rf"(?P<repository>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_ORACLE: Final = re.compile(r"[^/]+/b/[^/]+/o(?:/.*)?")
_HUB_PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
# A revision with slashes in it is either one of the hub's own or given as an option.
_REVISION: Final = r"@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"
_HUB: Final = re.compile(
    rf"(?P<repository>{_HUB_PART}/{_HUB_PART})(?:{_REVISION})?(?:/(?P<path>.*))?", re.DOTALL
)
# Of the repositories without an owner a path can be told from a name only behind a revision.
_HUB_ALONE: Final = re.compile(
    rf"(?P<repository>{_HUB_PART})/?|(?P<versioned>{_HUB_PART}){_REVISION}(?:/(?P<path>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class OciName:
    """What an `oci://` path names; the digest, where given, decides."""

    repository: str
    tag: str | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class HubName:
    """What an `hf://` ref names. path: a file or folder inside the repository, or empty."""

    repository: str
    revision: str | None
    path: str


def oci_name(path: str) -> OciName:
    """Take `repo/name:tag@sha256:…` apart. Raises InvalidRef."""
    match = _OCI.fullmatch(path)
    if match is None:
        raise InvalidRef(
            f"{path[:120]!r} is not an OCI name; write oci://registry/repository:tag (lower case) "
            "or oci://registry/repository@sha256:<64 hex digits>"
        )
    return OciName(match["repository"], match["tag"], match["digest"])


def hub_name(authority: str, path: str) -> HubName:
    """Take `org/name@revision/path` apart. Raises InvalidRef."""
    text = f"{authority}/{path}" if path else authority
    if (match := _HUB.fullmatch(text)) is not None:
        return HubName(match["repository"], match["revision"], match["path"] or "")
    if (match := _HUB_ALONE.fullmatch(text)) is None:
        raise InvalidRef(
            f"{text[:120]!r} is not a repository; write hf://org/name or hf://org/name@revision"
        )
    return HubName(
        match["repository"] or match["versioned"], match["revision"], match["path"] or ""
    )


def check_place(scheme: Scheme, authority: str, path: str) -> None:
    """Refuse what cannot be a place of this scheme (other than http(s)). Raises InvalidRef."""
    if "\x00" in path:
        raise InvalidRef("ref has a NUL character in its path")
    match scheme:
        case Scheme.S3 | Scheme.GS:
            _check_bucket(scheme, authority)
        case Scheme.FILE if authority not in {"", "localhost"}:
            raise InvalidRef("file ref must be absolute; write file:///path (three slashes)")
        case Scheme.FILE if not path:
            raise InvalidRef("file ref has no path; write file:///path")
        case Scheme.OCI:
            _check_registry(authority, path)
        case Scheme.HF:
            hub_name(authority, path)
        case _:
            return


def _check_bucket(scheme: Scheme, authority: str) -> None:
    if not authority:
        raise InvalidRef(f"ref has no bucket; write {scheme}://bucket/prefix")
    if not _BUCKET.fullmatch(authority):
        raise InvalidRef(f"{authority[:80]!r} is not a valid bucket name")


def _check_registry(authority: str, path: str) -> None:
    if authority == "n" and _ORACLE.fullmatch(path):
        raise InvalidRef(
            "oci:// means an OCI registry here, and this ref looks like Oracle Object Storage; use "
            "its S3-compatible endpoint: s3://bucket/prefix?endpoint=https://…"
        )
    if not _REGISTRY.fullmatch(authority):
        raise InvalidRef(f"{authority[:80]!r} is not a registry; write oci://host[:port]/name:tag")
    oci_name(path)


def origin_name(place: str) -> str:
    """What limits requests together: a registry, a bucket, a host, the hub.

    place: a ref. The hub counts all of an address's requests, whichever repository they are for.
    """
    scheme, _, rest = place.partition("://")
    return "hf://" if scheme == "hf" else f"{scheme}://{rest.partition('/')[0]}"
