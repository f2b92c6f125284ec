"""What all transfers of one process share, so that their number does not multiply it."""

from __future__ import annotations

from functools import cached_property

from modelcache.config import TransferSettings
from modelcache.transfer.buffers import BufferPool
from modelcache.transfer.pacing import Pacer


class Shared:
    """One pool of buffers and one limit on what comes from origins."""

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings

    @cached_property
    def pool(self) -> BufferPool:
        """Made when the first transfer begins."""
        return BufferPool(self._settings.memory_bytes)

    @cached_property
    def origin_pacer(self) -> Pacer:
        """The bandwidth limit of all transfers together."""
        return Pacer(self._settings.bandwidth_limit_bytes_s)
