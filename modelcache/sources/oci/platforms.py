"""Which manifest of an index is meant: by the ref's platform, the settings', or this machine's."""

from __future__ import annotations

import platform as machine
import re
from collections.abc import Mapping
from typing import Final

from modelcache.errors import NotFound, UsageError
from modelcache.sources.oci.documents import Descriptor, Index, Platform

SHOWN_MAX: Final = 12  # platforms in a message
_WRITTEN: Final = re.compile(r"([a-z0-9_.-]+)/([a-z0-9_.-]+)(?:/([a-z0-9_.-]+))?")
_ARCHITECTURES: Final[Mapping[str, tuple[str, str]]] = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
_DEFAULT_VARIANTS: Final[Mapping[str, str]] = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
_ATTESTATION: Final = "vnd.docker.reference.type"  # BuildKit's own entries beside the images


def parse_platform(text: str, error: type[UsageError], where: str) -> Platform:
    """`os/architecture[/variant]`. Raises `error` naming where it was written."""
    match = _WRITTEN.fullmatch(text.lower())
    if match is None:
        raise error(f"{where}: {text[:80]!r} is not a platform; write for example linux/arm64")
    return Platform(match[1], match[2], match[3] or "")


def this_machine() -> Platform:
    """What a container here would run on."""
    name = machine.machine()
    architecture, variant = _ARCHITECTURES.get(name, (name, ""))
    return Platform("linux", architecture, variant)


def choose(index: Index, wanted: Platform, where: str) -> Descriptor:
    """The entry for a platform; the only one where none names any. Raises NotFound."""
    entries = [entry for entry in index.manifests if _ATTESTATION not in entry.annotations]
    named = [entry for entry in entries if entry.platform and entry.platform.os != "unknown"]
    fitting = [entry for entry in named if _fits(entry, wanted)]
    if fitting:
        return max(fitting, key=lambda entry: _closeness(entry, wanted))
    unnamed = [entry for entry in entries if entry.platform is None]
    if len(unnamed) == 1 and not named:
        return unnamed[0]
    if not named:
        raise NotFound(
            f"{where} is an index of {len(entries)} manifests without platforms; name one by its "
            "digest (@sha256:…)"
        )
    known = sorted({str(entry.platform) for entry in named})
    there = ", ".join(known[:SHOWN_MAX]) + (", …" if len(known) > SHOWN_MAX else "")
    raise NotFound(
        f"{where} has no manifest for {wanted}; there are {there}; choose with ?platform="
    )


def _fits(entry: Descriptor, wanted: Platform) -> bool:
    found = entry.platform
    if found is None or (found.os, found.architecture) != (wanted.os, wanted.architecture):
        return False
    usual = _DEFAULT_VARIANTS.get(wanted.architecture, "")
    return not wanted.variant or (found.variant or usual) == wanted.variant


def _closeness(entry: Descriptor, wanted: Platform) -> tuple[bool, bool]:
    """Where no variant is asked for, the one that every machine of the architecture can use."""
    variant = entry.platform.variant if entry.platform else ""
    usual = _DEFAULT_VARIANTS.get(wanted.architecture, "")
    return variant == wanted.variant, variant in {"", usual}
