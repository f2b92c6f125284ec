"""The driver over a real agent, asked over its socket as kubelet does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from csi.controller import Controller
from csi.identity import Identity
from csi.node import Node
from csi.protocol import csi_pb2
from csi.serve import serving
from modelcache.client import AgentClient
from modelcache.config import Settings
from tests.faces.http.agents import Running, running_faces

NODE = "node-1"


class Asking:
    """Calls methods of the driver by name."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._calls: dict[str, Any] = {}
        for service in csi_pb2.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                self._calls[method.name] = channel.unary_unary(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=lambda request: request.SerializeToString(),
                    response_deserializer=GetMessageClass(method.output_type).FromString,
                )

    def __call__(self, method: str, timeout_s: float | None = 30.0, **fields: Any) -> Any:
        request = getattr(csi_pb2, f"{method}Request")(**fields)
        return self._calls[method](request, timeout=timeout_s)

    def publish(
        self, target: Path, timeout_s: float = 30.0, volume_id: str = "vol-1", **context: str
    ) -> Any:
        return self(
            "NodePublishVolume",
            timeout_s,
            volume_id=volume_id,
            target_path=str(target),
            volume_capability=mount_capability(),
            volume_context={name.replace("__", "/"): value for name, value in context.items()},
        )

    def unpublish(self, target: Path, volume_id: str = "vol-1") -> Any:
        return self("NodeUnpublishVolume", volume_id=volume_id, target_path=str(target))


@dataclass(frozen=True, slots=True)
class Driver:
    """socket: of the driver."""

    socket: Path
    agent: Running
    ask: Asking


@contextmanager
def running_driver(settings: Settings, socket: Path) -> Iterator[Driver]:
    """An agent and its driver."""
    with running_faces(settings) as agent, driver_of(agent, socket) as ask:
        yield Driver(socket, agent, ask)


@contextmanager
def driver_of(agent: Running, socket: Path) -> Iterator[Asking]:
    """A driver of an agent that runs."""
    with AgentClient(str(agent.socket)) as client:
        services = {
            "Identity": Identity(client, controller=True),
            "Controller": Controller(),
            "Node": Node(client, NODE),
        }
        with serving(socket, services), grpc.insecure_channel(f"unix://{socket}") as channel:
            yield Asking(channel)


def mount_capability(mode: int | None = None) -> csi_pb2.VolumeCapability:
    """Of a folder; mode: what kubelet gives for a pod's own volume."""
    modes = csi_pb2.VolumeCapability.AccessMode
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(),
        access_mode=modes(mode=modes.SINGLE_NODE_WRITER if mode is None else mode),
    )
