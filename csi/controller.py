"""The Controller service: PersistentVolumes made by a StorageClass, with nothing behind them.

A volume is its attributes. Its id says what it is called, so that there is no list to keep; what is
remembered, while the driver lives, is only which names were given to what, to tell a repeated call
from a second volume of the same name.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from csi.capabilities import check_capability
from csi.protocol import csi_pb2
from modelcache.domain import attributes
from modelcache.errors import NotInStore, UsageError, VolumeConflict

PREFIX: Final = "model-"  # of ids that this driver has given
NAME_BYTES_MAX: Final = 128
REMEMBERED_MAX: Final = 10_000

Made = tuple[int, int, tuple[tuple[str, str], ...]]


class Controller:
    """See the module. Thread-safe."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, Made] = OrderedDict()
        self._lock = threading.Lock()

    def CreateVolume(  # noqa: N802 - the protocol's name
        self,
        request: csi_pb2.CreateVolumeRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.CreateVolumeResponse:
        """A volume of the class's model; its size is what is claimed, for it takes no room."""
        del context
        if not request.name or len(request.name.encode()) > NAME_BYTES_MAX:
            raise UsageError(f"a volume's name has 1 to {NAME_BYTES_MAX} bytes")
        _check_all(request.volume_capabilities)
        if request.HasField("volume_content_source"):
            raise UsageError("a model's volume is made from its ref, not from another volume")
        attributes.parse(request.parameters)
        wanted = request.capacity_range
        made = (
            wanted.required_bytes,
            wanted.limit_bytes,
            tuple(sorted(request.parameters.items())),
        )
        with self._lock:
            if self._made.setdefault(request.name, made) != made:
                raise VolumeConflict(
                    f"volume {request.name} was made already, with another model or size"
                )
            while len(self._made) > REMEMBERED_MAX:
                self._made.popitem(last=False)
        return csi_pb2.CreateVolumeResponse(
            volume=csi_pb2.Volume(
                volume_id=f"{PREFIX}{request.name}",
                capacity_bytes=wanted.required_bytes,
                volume_context=request.parameters,
            )
        )

    def DeleteVolume(  # noqa: N802
        self,
        request: csi_pb2.DeleteVolumeRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.DeleteVolumeResponse:
        """Nothing is deleted: models stay on nodes until their room is needed."""
        del context
        if not request.volume_id:
            raise UsageError("the volume id is missing")
        with self._lock:
            self._made.pop(request.volume_id.removeprefix(PREFIX), None)
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(  # noqa: N802
        self,
        request: csi_pb2.ValidateVolumeCapabilitiesRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Whether a volume can be had as asked. Raises NotInStore for one that is none of ours."""
        del context
        if not request.volume_id:
            raise UsageError("the volume id is missing")
        if not request.volume_capabilities:
            raise UsageError("the volume capability is missing")
        if not request.volume_id.startswith(PREFIX):
            raise NotInStore(f"volume {request.volume_id[:80]} was not made by this driver")
        try:
            _check_all(request.volume_capabilities)
        except UsageError as error:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=error.message)
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    def ControllerGetCapabilities(  # noqa: N802
        self,
        request: csi_pb2.ControllerGetCapabilitiesRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """Volumes can be made and deleted."""
        del request, context
        rpc = csi_pb2.ControllerServiceCapability.RPC(
            type=csi_pb2.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME
        )
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=rpc)]
        )


def _check_all(capabilities: Iterable[csi_pb2.VolumeCapability]) -> None:
    found = list(capabilities)
    if not found:
        raise UsageError("the volume capability is missing")
    for capability in found:
        check_capability(capability)
