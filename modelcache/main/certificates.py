"""Flags of a server's certificate, which every command that answers over TLS has alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from modelcache.errors import UsageError

CERTIFICATE: Final = "--cert-file"
KEY: Final = "--key-file"
SECRET_SUFFIX: Final = "-certificates"  # noqa: S105 - of an object's name

CertificateFile = Annotated[
    Path | None,
    typer.Option(CERTIFICATE, metavar="FILE", help="Certificate; read again as it changes."),
]
KeyFile = Annotated[Path | None, typer.Option(KEY, metavar="FILE", help="Its key.")]


def pair_of(
    certificate: Path | None,
    key: Path | None,
    *,
    made_by: str = "",
    names: tuple[str, str] = (CERTIFICATE, KEY),
) -> tuple[Path, Path] | None:
    """Both files or none. made_by: the flag that was given to have certificates made, if it was.

    Raises UsageError.
    """
    both = " and ".join(names)
    if made_by and (certificate or key):
        raise UsageError(f"{made_by} makes certificates; leave {both} out")
    if (certificate is None) != (key is None):
        raise UsageError(f"{both} go together")
    return None if certificate is None or key is None else (certificate, key)
