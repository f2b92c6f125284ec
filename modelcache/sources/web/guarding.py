"""urllib3's connections, looked at once they are there: whom a name has led to.

For SDKs that connect by urllib3 (botocore, and requests beneath Google's and oras' clients). The
name was resolved by then, so there is no second answer that could differ (DNS rebinding), and
nothing has been sent yet, TLS included. What goes through a proxy is the proxy's to allow.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from modelcache.domain.reach import check_peer

Pools = dict[str, type[HTTPConnectionPool]]


def guarded_pools(pools: Mapping[str, type[HTTPConnectionPool]], refused: Sequence[str]) -> Pools:
    """The same kinds of pools, by scheme, whose connections reach no refused network."""
    return {scheme: _guarded(pool, tuple(refused)) for scheme, pool in pools.items()}


def _guarded(pool: type[HTTPConnectionPool], refused: tuple[str, ...]) -> type[HTTPConnectionPool]:
    base: Any = pool.ConnectionCls

    class Connection(base):  # type: ignore[misc]
        """Checked before anything is sent."""

        def _new_conn(self) -> socket.socket:
            connected: socket.socket = super()._new_conn()
            if self.proxy is None and not getattr(self, "_tunnel_host", None):
                try:
                    peer, own = connected.getpeername()[0], connected.getsockname()[0]
                    check_peer(peer, own, self.host, refused)
                except BaseException:
                    connected.close()
                    raise
            return connected

    return type(f"Guarded{pool.__name__}", (pool,), {"ConnectionCls": Connection})


class GuardedAdapter(HTTPAdapter):
    """For sessions of requests."""

    def __init__(self, refused: Sequence[str], **options: Any) -> None:  # noqa: ANN401 - passed on
        self._refused = tuple(refused)
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on
        """With guarded connections."""
        super().init_poolmanager(*args, **options)
        plain = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}
        self.poolmanager.pool_classes_by_scheme = guarded_pools(plain, self._refused)
