"""KServe's `storageUri`, which many InferenceServices have, as refs.

The two agree on S3, GCS, OCI and plain URLs. Where they differ is the hub's revision, which stands
behind a colon there, and archives, which KServe's storage initializer unpacks by their names and
this project takes for the files that they are.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from modelcache.domain.places import Scheme
from modelcache.domain.refs import Ref, parse_ref
from modelcache.errors import UsageError

CLAIM: Final = "pvc://"
_HUB: Final = re.compile(r"hf://(?P<repository>[^/:@?]+/[^/:@?]+):(?P<revision>[^/:@?]+)/?")
_ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".zip")
_AZURE: Final = (".blob.core.windows.net", ".dfs.core.windows.net")
_SERVED: Final = frozenset({Scheme.S3, Scheme.GS, Scheme.HF, Scheme.OCI, Scheme.HTTP, Scheme.HTTPS})


def is_claim(uri: str) -> bool:
    """Whether a storage URI names a claim, which is mounted as it is: there is nothing to fetch."""
    return uri.strip().startswith(CLAIM)


def plain(uri: str) -> str:
    """A storage URI as the text of a ref: the same, but for the hub's revision."""
    hub = _HUB.fullmatch(uri.strip())
    return uri.strip() if hub is None else f"hf://{hub['repository']}@{hub['revision']}"


def ref_of(uri: str) -> Ref:
    """The ref that means what KServe takes a storage URI to mean.

    Raises UsageError where there is none, saying why in words for whoever wrote the URI.
    """
    uri = uri.strip()
    if is_claim(uri):
        raise UsageError(f"{_short(uri)} is a claim, which is mounted as it is: nothing is fetched")
    ref = parse_ref(plain(uri))
    if ref.scheme not in _SERVED:
        raise UsageError(f"{_short(uri)} is nothing that KServe fetches")
    if ref.scheme is not Scheme.OCI and ref.path.partition("?")[0].lower().endswith(_ARCHIVES):
        raise UsageError(
            f"{ref.redacted()[:200]} is an archive, which KServe unpacks and modelcache does not; "
            "put its files there"
        )
    if ref.scheme in {Scheme.HTTP, Scheme.HTTPS}:
        host = urlsplit(f"//{ref.authority}").hostname or ""
        if host.endswith(_AZURE):
            raise UsageError(f"{ref.redacted()[:200]}: Azure's storage is not one of modelcache's")
    return ref


def _short(uri: str) -> str:
    return uri.partition("?")[0][:200]
