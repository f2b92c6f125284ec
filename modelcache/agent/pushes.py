"""What a push is asked for, and what it tells when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from modelcache.sources.oci.packing import LayerForm, PushFormat

JOBS_DEFAULT: Final = (
    4  # SHA-256 takes 1.5 GB/s of a core: four keep 40 Gbit/s busy, and most disks
)
JOBS_MAX: Final = 64  # connections that are kept


class How(StrEnum):
    """How a layer came into the repository."""

    SENT = "sent"
    PRESENT = "present"
    MOUNTED = "mounted"


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How to pack and send. chunk_bytes: 0 for as few requests as possible.

    mount_from: repositories of the same registry that may have the layers.
    """

    packing: PushFormat = PushFormat.MODELPACK
    form: LayerForm = LayerForm.RAW
    annotations: Mapping[str, str] = field(default_factory=dict)
    jobs: int = JOBS_DEFAULT
    chunk_bytes: int = 0
    mount_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PushedLayer:
    """One layer that the repository has now."""

    name: str
    media_type: str
    digest: str
    size_bytes: int
    how: How


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did.

    previous: what the tag showed before; None for nothing. sent_bytes: of layers, with what had to
    be sent again.
    """

    reference: str
    digest: str
    previous: str | None
    layers: tuple[PushedLayer, ...]
    sent_bytes: int
    seconds: float

    @property
    def present_bytes(self) -> int:
        """Of layers that were there before."""
        return self._bytes_by(How.PRESENT)

    @property
    def mounted_bytes(self) -> int:
        """Of layers that another repository lent."""
        return self._bytes_by(How.MOUNTED)

    def to_json(self) -> dict[str, Any]:
        """`push --json`."""
        return {
            "reference": self.reference,
            "digest": self.digest,
            "previous": self.previous,
            "layers": [
                {
                    "path": layer.name,
                    "media_type": layer.media_type,
                    "digest": layer.digest,
                    "size_bytes": layer.size_bytes,
                    "how": layer.how.value,
                }
                for layer in self.layers
            ],
            "sent_bytes": self.sent_bytes,
            "present_bytes": self.present_bytes,
            "mounted_bytes": self.mounted_bytes,
            "seconds": self.seconds,
        }

    def _bytes_by(self, how: How) -> int:
        return sum(layer.size_bytes for layer in self.layers if layer.how is how)
