"""Which kinds of access a volume of read-only files can give."""

from __future__ import annotations

from typing import Final

from csi.protocol import csi_pb2
from modelcache.errors import UsageError

_Mode = csi_pb2.VolumeCapability.AccessMode
# A single writer is what Kubernetes asks for where a pod names the volume itself.
_MANY_WRITERS: Final = frozenset({_Mode.MULTI_NODE_SINGLE_WRITER, _Mode.MULTI_NODE_MULTI_WRITER})


def check_capability(capability: csi_pb2.VolumeCapability) -> None:
    """Refuse what models cannot be. Raises UsageError."""
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise UsageError("the volume capability is missing")
    if kind == "block":
        raise UsageError("a model is a folder of files; volumeMode must be Filesystem")
    if capability.access_mode.mode in _MANY_WRITERS:
        raise UsageError("a model is read-only; accessModes must be ReadOnlyMany")
