"""The Node service: volumes of this node's pods, published by its agent.

It keeps nothing: what is published is the agent's to know. A call whose deadline passes leaves the
model coming; kubelet's next call finds it further on.
"""

from __future__ import annotations

from hashlib import sha256
from time import monotonic, sleep
from typing import Any, Final

from csi.capabilities import check_capability
from csi.protocol import csi_pb2
from modelcache.client import AgentClient, error_of
from modelcache.domain import attributes
from modelcache.domain.identities import TOKENS, PodIdentity
from modelcache.domain.volumes import MountMode, VolumeRequest, progress_line
from modelcache.domain.wanted import ModelPhase, Trouble
from modelcache.errors import NotInStore, NotWarmYet, UsageError

WAIT_S: Final = 100.0  # for callers that set no deadline; kubelet's is two minutes
ANSWER_S: Final = 1.0  # before the deadline: an answer with the progress says more than a time-out
LOOK_S: Final = 0.5
STEP_S: Final = 20.0  # of one request to the agent


class Node:
    """See the module. Thread-safe."""

    def __init__(self, client: AgentClient, node_id: str) -> None:
        """node_id: the name of the Kubernetes node."""
        self._client = client
        self._node_id = node_id

    def NodePublishVolume(  # noqa: N802 - the protocol's name
        self,
        request: csi_pb2.NodePublishVolumeRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Mount a model as soon as it is warm, waiting for that until shortly before the deadline.

        One that is to be streamed as soon as it is known what it holds.

        Raises what the model failed with; NotWarmYet, telling how far it is.
        """
        _check(request.volume_id, request.target_path)
        check_capability(request.volume_capability)
        asked = attributes.parse(request.volume_context)
        wanted = VolumeRequest(
            name_of(request.volume_id, request.target_path),
            request.target_path,
            asked.ref,
            sub_path=asked.sub_path,
            priority=asked.priority,
            note=asked.note,
            tenant=asked.tenant,
            mode=asked.mode,
        )
        secrets = {name: text for name, text in request.secrets.items() if name != TOKENS}
        identity = PodIdentity.of_volume(request.volume_context, request.secrets)
        left_s = context.time_remaining()
        until_s = monotonic() + (WAIT_S if left_s is None else max(0.0, left_s - ANSWER_S))
        while True:
            try:
                self._client.publish(
                    wanted, refresh=asked.refresh, credentials=secrets, identity=identity
                )
            except NotWarmYet:
                wait_s = until_s - monotonic()
                if wait_s <= 0 or not context.is_active():
                    raise
                own = bool(secrets) or identity is not None
                step_s = LOOK_S if wanted.mode is MountMode.STREAM else STEP_S
                self._wait(wanted, min(wait_s, step_s), with_secret=own)
            else:
                return csi_pb2.NodePublishVolumeResponse()

    def _wait(self, wanted: VolumeRequest, wait_s: float, *, with_secret: bool) -> None:
        """Wait until there is something new. Raises what the model failed with.

        with_secret: then the agent knows whether that is the end of it.
        """
        try:
            status = self._client.status(wanted.ref, wait_s=wait_s)
        except NotInStore:  # fetched with the volume's secret, or released meanwhile
            sleep(min(wait_s, LOOK_S))
            return
        if not with_secret and status.phase is ModelPhase.FAILED and status.trouble is not None:
            raise error_of(Trouble(status.trouble.code, progress_line(status)))

    def NodeUnpublishVolume(  # noqa: N802
        self,
        request: csi_pb2.NodeUnpublishVolumeRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take a volume away; one that is not there is as good as taken away."""
        del context
        _check(request.volume_id, request.target_path)
        name = name_of(request.volume_id, request.target_path)
        self._client.unpublish(name, request.target_path)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(  # noqa: N802
        self,
        request: csi_pb2.NodeGetVolumeStatsRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Bytes and files of a published volume. Raises NotInStore for one that is not there."""
        del context
        _check(request.volume_id, request.volume_path)
        found = self._client.volume(name_of(request.volume_id, request.volume_path))
        size_bytes, files = int(found["size_bytes"]), int(found["files"])
        usage = [
            csi_pb2.VolumeUsage(total=amount, used=amount, unit=unit)
            for amount, unit in (
                (size_bytes, csi_pb2.VolumeUsage.BYTES),
                (files, csi_pb2.VolumeUsage.INODES),
            )
        ]
        return csi_pb2.NodeGetVolumeStatsResponse(usage=usage)

    def NodeGetCapabilities(  # noqa: N802
        self,
        request: csi_pb2.NodeGetCapabilitiesRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """Volumes are published in one step, and tell their size."""
        del request, context
        rpc = csi_pb2.NodeServiceCapability.RPC(
            type=csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS
        )
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=rpc)]
        )

    def NodeGetInfo(  # noqa: N802
        self,
        request: csi_pb2.NodeGetInfoRequest,
        context: Any,  # noqa: ANN401
    ) -> csi_pb2.NodeGetInfoResponse:
        """Which node this is; any number of volumes fits on it."""
        del request, context
        return csi_pb2.NodeGetInfoResponse(node_id=self._node_id)


def name_of(volume_id: str, target: str) -> str:
    """What the agent calls a volume: a PersistentVolume is published once for each pod."""
    both = f"{volume_id}\x00{target}"
    return f"csi-{sha256(both.encode()).hexdigest()[:40]}"


def _check(volume_id: str, path: str) -> None:
    if not volume_id:
        raise UsageError("the volume id is missing")
    if not path:
        raise UsageError("the path is missing")
