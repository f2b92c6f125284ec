"""The Identity service: who the driver is, and whether its agent is there."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from google.protobuf.wrappers_pb2 import BoolValue

from csi.protocol import csi_pb2
from modelcache.client import AgentClient
from modelcache.errors import ModelcacheError

NAME: Final = "csi.modelcache.io"


class Identity:
    """See the module. Thread-safe."""

    def __init__(self, client: AgentClient | None, *, controller: bool) -> None:
        """client: the node's agent; None where the driver serves the cluster and has none."""
        self._client = client
        self._controller = controller

    def GetPluginInfo(  # noqa: N802 - the protocol's name
        self,
        request: csi_pb2.GetPluginInfoRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.GetPluginInfoResponse:
        """The name that pods and classes use, and the version."""
        del request, context
        return csi_pb2.GetPluginInfoResponse(name=NAME, vendor_version=version("modelcache"))

    def GetPluginCapabilities(  # noqa: N802
        self,
        request: csi_pb2.GetPluginCapabilitiesRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """Whether there is a Controller service. A model can be mounted on every node."""
        del request, context
        capabilities = []
        if self._controller:
            service = csi_pb2.PluginCapability.Service(
                type=csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE
            )
            capabilities.append(csi_pb2.PluginCapability(service=service))
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=capabilities)

    def Probe(  # noqa: N802
        self,
        request: csi_pb2.ProbeRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.ProbeResponse:
        """Ready when the agent is; a restart of the driver would not help where it is not."""
        del request, context
        ready = True
        if self._client is not None:
            try:
                ready = self._client.node().ready
            except ModelcacheError:
                ready = False
        return csi_pb2.ProbeResponse(ready=BoolValue(value=ready))
