"""How many bytes of a node the tenants of a cluster may have wanted at once. Pure but for a memory.

A tenant (a namespace) is charged with every model that anything of its wants, in full, whoever else
wants it. A model's size is known only when its ref is resolved; until then it is let in, and taken
out again if it turns out to be too large, the youngest first. What was learnt of sizes is kept, so
that who asks again is refused at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from modelcache.config import OTHERS
from modelcache.domain.wanted import WantedStatus
from modelcache.errors import QuotaExceeded

SIZES_MAX: Final = 10_000


class Quotas:
    """See the module. Its caller locks."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        """limits: bytes by tenant; under `OTHERS` for those not named."""
        self.limits = limits
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def check(self, tenant: str, wanted_id: str, statuses: Iterable[WantedStatus]) -> None:
        """Raise QuotaExceeded if a tenant may not want one more model."""
        limit = self.limit(tenant)
        if limit is None:
            return
        mine = {
            status.wanted_id: self._size(status)
            for status in statuses
            if any(want.tenant == tenant for want in status.wants)
        }
        if wanted_id in mine:
            return
        size_bytes = self._sizes.get(wanted_id, 0)
        if sum(mine.values()) + size_bytes > limit:
            raise QuotaExceeded(_refusal(tenant, limit, sum(mine.values()), size_bytes))

    def excess(self, statuses: Sequence[WantedStatus]) -> Iterator[tuple[str, str, str]]:
        """Wants that must go, now that sizes are known: wanted id, holder, and why."""
        tenants = {want.tenant for status in statuses for want in status.wants if want.tenant}
        for tenant in sorted(tenants):
            limit = self.limit(tenant)
            if limit is None:
                continue
            mine = [s for s in statuses if any(want.tenant == tenant for want in s.wants)]
            mine.sort(key=lambda status: _since_s(status, tenant))
            held = 0
            for status in mine:
                size_bytes = self._size(status)
                if held + size_bytes <= limit:
                    held += size_bytes
                    continue
                for want in status.wants:
                    if want.tenant == tenant:
                        why = _refusal(tenant, limit, held, size_bytes)
                        yield status.wanted_id, want.holder, why

    def limit(self, tenant: str) -> int | None:
        """Bytes that a tenant may have; None where nobody has said."""
        if not tenant:
            return None
        return self.limits.get(tenant, self.limits.get(OTHERS))

    def _size(self, status: WantedStatus) -> int:
        if status.total_bytes:
            self._sizes[status.wanted_id] = status.total_bytes
            self._sizes.move_to_end(status.wanted_id)
            while len(self._sizes) > SIZES_MAX:
                self._sizes.popitem(last=False)
        return self._sizes.get(status.wanted_id, 0)


def _since_s(status: WantedStatus, tenant: str) -> float:
    return min(want.since_s for want in status.wants if want.tenant == tenant)


def _refusal(tenant: str, limit: int, held: int, size_bytes: int) -> str:
    return (
        f"namespace {tenant} may have {limit / 1e9:.1f} GB of models on a node and has "
        f"{held / 1e9:.1f} GB; another {size_bytes / 1e9:.1f} GB do not fit (access.quotas)"
    )
