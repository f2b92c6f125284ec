"""Archives and assemblies: what an origin publishes in other pieces than files.

A registry's layer may be a tar. Where it is not compressed its members can be read in ranges: then
they are ordinary files, and an `Assembly` says how the layer's digest covers them. Otherwise its
members are known only by unpacking it: then it is an `Archive` of the manifest, and whoever pulls
unpacks it and replaces it by the files it holds.
"""

from __future__ import annotations

from enum import StrEnum


class Compression(StrEnum):
    """How an archive's bytes are stored."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


class Unpacking(StrEnum):
    """What the order of archives means."""

    PLAIN = "plain"  # each brings files of its own; two of one name are an error
    IMAGE = "image"  # layers of a container image: later ones replace, whiteouts remove
