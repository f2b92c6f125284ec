"""What all transfers of one process share, so that their number does not multiply it."""

from __future__ import annotations

from functools import cached_property
from typing import Final

from modelcache.config import TransferSettings
from modelcache.transfer.buffers import BufferPool
from modelcache.transfer.courtesy import Courtesy
from modelcache.transfer.hosts import Hosts
from modelcache.transfer.pacing import Pacer

REQUEST_UNITS: Final = 1000  # what one request takes from the pacer of requests


class Shared:
    """One pool of buffers, and the limits on what comes from origins."""

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings
        self.cluster_pacer = Pacer(0)  # this node's part of what all nodes may take
        self.request_pacer = Pacer(0)  # the same, in REQUEST_UNITS
        self.courtesy = Courtesy()
        self.hosts = Hosts(settings.connections_per_host_max)

    @cached_property
    def pool(self) -> BufferPool:
        """Made when the first transfer begins."""
        return BufferPool(self._settings.memory_bytes)

    @cached_property
    def origin_pacer(self) -> Pacer:
        """The bandwidth limit of all transfers together."""
        return Pacer(self._settings.bandwidth_limit_bytes_s)
