"""The sockets that the API is asked on: bound before anything else is begun."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from modelcache.domain.listening import SOCKET_PATH_BYTES_MAX
from modelcache.errors import InvalidConfig

SOCKET_MODE: Final = 0o660
FOLDER_MODE: Final = 0o750
BACKLOG: Final = 128
ANSWER_S: Final = 2.0  # an agent that is alive accepts at once


@contextmanager
def bound_unix(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket of mode 0660; its file goes when this ends.

    A file that an agent left when it died is replaced; one that somebody answers on is not. A lock
    beside it keeps two agents that start together apart. Raises InvalidConfig.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise InvalidConfig(
            f"agent.socket {path} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that Linux takes"
        )
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot(path, error) from error
    try:
        _take(path, lock)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            _bind(listener, path)
            try:
                yield listener
            finally:
                with suppress(OSError):
                    path.unlink()
    finally:
        os.close(lock)


def bind_tcp(host: str, port: int) -> socket.socket:
    """Listen on a TCP address; port 0 for any. Raises InvalidConfig."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
        # Connections inherit it, and asyncio does not see to it for a listener made like this:
        # without it the body of an answer may wait 40 ms for its head to be acknowledged.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InvalidConfig(f"agent.listen {host}:{port}: {why}") from error
    return listener


def _take(path: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _taken(path) from error


def _bind(listener: socket.socket, path: Path) -> None:
    try:
        _clear(path)
        os.fchmod(listener.fileno(), SOCKET_MODE)  # so that it is never open to others
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)  # whatever the umask
        listener.listen(BACKLOG)
    except OSError as error:
        raise _cannot(path, error) from error


def _clear(path: Path) -> None:
    """Remove the file of a socket that nobody answers on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidConfig(f"agent.socket {path} is there and is no socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:  # somebody's, whose queue is full
                raise
    raise _taken(path)


def _taken(path: Path) -> InvalidConfig:
    return InvalidConfig(
        f"another agent answers on {path}; stop it, or name another socket with --socket"
    )


def _cannot(path: Path, error: OSError) -> InvalidConfig:
    return InvalidConfig(f"cannot listen on agent.socket {path}: {error.strerror}")
