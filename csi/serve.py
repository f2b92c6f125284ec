"""The driver as a process: its services on a Unix socket, until a signal."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message_factory import GetMessageClass

from csi.protocol import csi_pb2
from csi.refusals import answering
from modelcache.errors import InvalidConfig

CALLS_MAX: Final = 256  # at once: most of them wait for a model, and a node has 110 pods or so
GRACE_S: Final = 5.0
MESSAGE_BYTES_MAX: Final = 1 << 20


@contextmanager
def serving(path: Path, services: dict[str, object]) -> Iterator[Any]:
    """Answer on a Unix socket while entered. services: by name, such as `Node`.

    A socket that a dead driver left is replaced. Raises InvalidConfig when the path cannot be had.
    """
    _make_room(path)
    server = grpc.server(
        ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="modelcache-csi"),
        options=[("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)],
    )
    for name, service in services.items():
        server.add_generic_rpc_handlers((_handlers(name, service),))
    try:
        server.add_insecure_port(f"unix://{path}")
        path.chmod(0o660)
    except (RuntimeError, OSError) as error:
        raise InvalidConfig(f"the driver cannot listen on {path}: {error}") from error
    server.start()
    try:
        yield server
    finally:
        server.stop(GRACE_S).wait()
        with suppress(OSError):
            path.unlink()


def _handlers(name: str, service: object) -> Any:  # noqa: ANN401 - grpc has no types
    """All methods that the protocol has of a service, each answering with its errors."""
    descriptor = csi_pb2.DESCRIPTOR.services_by_name[name]
    methods = {
        method.name: grpc.unary_unary_rpc_method_handler(
            answering(getattr(service, method.name)),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        for method in descriptor.methods
    }
    return grpc.method_handlers_generic_handler(descriptor.full_name, methods)


def _make_room(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise InvalidConfig(f"{path} is there and is no socket; name another with --socket")
            path.unlink()
    except OSError as error:
        raise InvalidConfig(f"the driver cannot listen on {path}: {error.strerror}") from error
