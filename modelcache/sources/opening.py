"""Which source serves a ref. Imports only the one that is asked for: each has its own SDK."""

from __future__ import annotations

from modelcache.config import Settings
from modelcache.domain.refs import Ref, Scheme
from modelcache.errors import UsageError
from modelcache.sources.source import Source


def open_source(origin: Ref, settings: Settings) -> Source:
    """The source for an origin ref (one without file filter).

    Raises UsageError when the extra that its scheme needs is not installed.
    """
    match origin.scheme:
        case Scheme.S3:
            try:
                from modelcache.sources.s3 import S3Source  # noqa: PLC0415 - an optional extra
            except ModuleNotFoundError as error:
                package = (error.name or "").partition(".")[0]
                if package == "modelcache":
                    raise  # our bug, not a missing extra
                raise UsageError(
                    f"s3:// needs {package}, which is not installed; install modelcache[s3]"
                ) from error
            return S3Source(origin, settings.s3, settings.transfer)
        case Scheme.HTTP | Scheme.HTTPS:
            from modelcache.sources.http import HttpSource  # noqa: PLC0415 - not for s3 and file

            return HttpSource(origin, settings.http, settings.transfer)
        case Scheme.FILE:
            from modelcache.sources.file import FileSource  # noqa: PLC0415 - likewise

            return FileSource(origin, settings.file)
