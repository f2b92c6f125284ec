"""An application on a TCP socket, over TLS with a context that others keep fresh."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from modelcache.errors import InvalidConfig
from modelcache.faces.answering import Server, configuration

BACKLOG: Final = 128
# Longer than API servers keep a connection that nobody uses (90 s in Go), so that it is they who
# close it, and no review is sent into a connection that is being closed.
KEEP_ALIVE_S: Final = 120


class Connection(H11Protocol):
    """One that does not wait, when all ends, for a peer that is silent to say goodbye over TLS."""

    def shutdown(self) -> None:
        """End it, at once where nothing is being answered."""
        super().shutdown()
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """Listen on a TCP address; port 0 for any, `::` for both families. Raises InvalidConfig."""
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104 - asked for; the kernel has no IPv6
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::"
        )
        # Connections inherit it. asyncio sets it only on sockets made with an explicit protocol,
        # and without it an answer's body waits 40 ms for its head to be acknowledged.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InvalidConfig(f"cannot listen on {host}:{port}: {why}") from error
    return listener


@asynccontextmanager
async def serving(
    app: ASGIApp,
    listener: socket.socket,
    context: ssl.SSLContext,
    *,
    speaks: type[Connection] = Connection,
) -> AsyncIterator[None]:
    """Answer while entered; at the end, finish what is being answered, and close the listener."""
    settings = configuration(app, http=speaks, keep_alive_s=KEEP_ALIVE_S)
    settings.load()
    settings.ssl = context  # its own options know files only, read once
    server = Server(settings)
    # A connection that comes before it has begun waits in the socket's backlog.
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
