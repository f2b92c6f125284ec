"""Which source serves a ref. Imports only the one that is asked for: each has its own SDK."""

from __future__ import annotations

from modelcache.config import Settings
from modelcache.domain.places import Scheme
from modelcache.domain.refs import Ref
from modelcache.errors import UsageError
from modelcache.sources.source import Source

_EXTRAS = {Scheme.S3: "s3", Scheme.GS: "gcs", Scheme.OCI: "oci", Scheme.HF: "hf"}


def open_source(origin: Ref, settings: Settings) -> Source:
    """The source for an origin ref (one without file filter).

    Raises UsageError when the extra that its scheme needs is not installed.
    """
    try:
        return _open(origin, settings)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "modelcache" or origin.scheme not in _EXTRAS:
            raise  # our bug, not a missing extra
        raise UsageError(
            f"{origin.scheme}:// needs {package}, which is not installed; install "
            f"modelcache[{_EXTRAS[origin.scheme]}]"
        ) from error


def _open(origin: Ref, settings: Settings) -> Source:
    # ruff: noqa: PLC0415 - each source only where it is asked for: see the module
    match origin.scheme:
        case Scheme.S3:
            from modelcache.sources.s3 import S3Source

            return S3Source(origin, settings.s3, settings.transfer)
        case Scheme.GS:
            from modelcache.sources.gcs import GcsSource

            return GcsSource(origin, settings.gcs, settings.transfer)
        case Scheme.OCI:
            from modelcache.sources.oci import OciSource

            return OciSource(origin, settings.oci, settings.transfer)
        case Scheme.HF:
            from modelcache.sources.hf import HfSource

            return HfSource(origin, settings.hf, settings.transfer)
        case Scheme.HTTP | Scheme.HTTPS:
            from modelcache.sources.http import HttpSource

            return HttpSource(origin, settings.http, settings.transfer)
        case Scheme.FILE:
            from modelcache.sources.file import FileSource

            return FileSource(origin, settings.file)
