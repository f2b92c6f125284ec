"""What a registry means when it does not take a push: its answer as one of our errors.

A registry's own words are shown where they are the only ones there are (a quota, a policy), cut
and without anything that looks like a query.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from modelcache.errors import (
    Forbidden,
    ModelcacheError,
    NoCredentials,
    NotFound,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)
from modelcache.sources.oci.refusals import error_codes
from modelcache.sources.oci.registry import Registry
from modelcache.sources.oci.wire import Reply
from modelcache.sources.web.answers import REDIRECTS, retry_after_s

SHOWN_CHARACTERS: Final = 160
_QUERY: Final = re.compile(r"\?\S*")
_NAMES: Final = frozenset({"NAME_INVALID", "TAG_INVALID"})
_UNKNOWN: Final = frozenset({"NAME_UNKNOWN", "NOT_FOUND", "REPOSITORY_NOT_FOUND"})
_BLOBS: Final = frozenset({"BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN"})


def codes(reply: Reply) -> frozenset[str]:
    """The error codes of a registry's answer (distribution specification, "Error Codes")."""
    return frozenset(error_codes(reply.body))


def denial(registry: Registry, repository: str, what: str, reply: Reply) -> ModelcacheError:
    """what: what was to be done, as in `cannot …`: "push weights.bin (4.0 GB)"."""
    where = f"{registry.name}/{repository}"
    status, found = reply.status, codes(reply)
    if status in {401, 403} or "DENIED" in found or "UNAUTHORIZED" in found:
        return _forbidden(registry, repository, what, reply)
    if status == 413 or "SIZE_INVALID" in found:  # noqa: PLR2004
        return SourceRefused(
            f"cannot {what}: {where} does not take a body of this size ({status}); raise the limit "
            "of the registry or of the proxy before it, or push in smaller chunks (--chunk-size)"
        )
    if found & _NAMES:
        return SourceRefused(f"cannot {what}: {registry.name} does not accept the name {where}")
    if found & _BLOBS:
        return SourceUnavailable(
            f"cannot {what}: {where} has lost a layer that it said it had; push again"
        )
    if status == 404 or found & _UNKNOWN:  # noqa: PLR2004
        return NotFound(
            f"cannot {what}: {where} does not exist and {registry.name} does not create it "
            f"({status}); create the repository there first"
        )
    return _by_status(what, where, reply)


def _forbidden(registry: Registry, repository: str, what: str, reply: Reply) -> ModelcacheError:
    where = f"{registry.name}/{repository}"
    if reply.status == 401 and not registry.has_credential(repository):  # noqa: PLR2004
        return NoCredentials(
            f"cannot {what}: {registry.name} wants credentials and none are stored for it; run "
            f"docker login {registry.name} or set oci.auth_file"
        )
    return Forbidden(
        f"cannot {what}: {where} may not be written with these credentials "
        f"({reply.status}{_words(reply)}); run docker login {registry.name} with an account that "
        "may push there"
    )


def _by_status(what: str, where: str, reply: Reply) -> ModelcacheError:
    status = reply.status
    if status in {405, 501} or "UNSUPPORTED" in codes(reply):
        return SourceRefused(
            f"cannot {what}: {where} does not take pushes ({status}); the registry may be read-only"
        )
    if status in {429, 503}:
        return Throttled(
            f"{where} asks for fewer requests ({status})",
            retry_after_s=retry_after_s(reply.headers),
        )
    if status in REDIRECTS:
        return SourceRefused(
            f"cannot {what}: {where} answers with a redirect ({status}); name the registry it "
            "leads to"
        )
    if status in {408, 425} or (status >= 500 and status != 507):  # noqa: PLR2004
        return SourceUnavailable(
            f"cannot {what}: {where} answered {status}{_words(reply)}",
            retry_after_s=retry_after_s(reply.headers),
        )
    return SourceRefused(f"cannot {what}: {where} answered {status}{_words(reply)}")


def _words(reply: Reply) -> str:
    """`, CODE: message` of the first error, if there is one."""
    code = next(iter(error_codes(reply.body)), None)
    if code is None:
        return ""
    document: Any = json.loads(reply.body)
    message = str(document["errors"][0].get("message") or "")
    text = _QUERY.sub("", "".join(filter(str.isprintable, message)))[:SHOWN_CHARACTERS].strip()
    return f", {code}: {text}" if text else f", {code}"
