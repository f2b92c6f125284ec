"""Handing descriptors from process to process: messages over a local socket that keeps their edges.

A message is JSON, and may bring one descriptor. Both ends are ours and of one user; what is read is
bounded all the same.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Final

MESSAGE_BYTES_MAX: Final = 4096


def send(line: socket.socket, message: dict[str, Any], fd: int | None = None) -> None:
    """Send a message, with a descriptor that stays ours. Raises OSError."""
    socket.send_fds(line, [json.dumps(message).encode()], [] if fd is None else [fd])


def receive(line: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """The next message, and the descriptor that it brought; None at the end.

    Raises OSError, and ValueError for what is no message of ours.
    """
    data, fds, _, _ = socket.recv_fds(line, MESSAGE_BYTES_MAX, 1)
    if not data:
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    try:
        message = dict(json.loads(data))
    except (TypeError, ValueError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError("no message of ours") from error
    return message, fds[0] if fds else None
