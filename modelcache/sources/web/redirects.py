"""Where the addresses of files lead, kept for as long as that can be relied on.

Servers of weights often answer with a redirect to a signed URL elsewhere. Following it for every
range would double the requests; keeping it for ever would end in refusals. Thread-safe: every
method is one step on a dictionary.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from modelcache.sources.web.address import Address

MOVED_GOOD_FOR_S: Final = 300.0  # redirects often lead to signed URLs; few are shorter-lived
_EXPIRED: Final = frozenset({400, 401, 403, 404, 410})


class Redirects:
    """What is known of one origin's redirects, by a file's own URL."""

    def __init__(self, *, expected: bool = False) -> None:
        """expected: this origin is known to redirect, so every file has to be asked about."""
        self._moved: dict[str, tuple[float, Address]] = {}
        self._expected = expected

    def remember(self, url: str, address: Address, *, good_for_s: float | None = None) -> None:
        """Note where `url` leads now, itself perhaps. good_for_s: where the answer told."""
        seconds = MOVED_GOOD_FOR_S if good_for_s is None else good_for_s
        self._moved[url] = (monotonic() + seconds, address)

    def is_due(self, url: str) -> bool:
        """Whether where `url` leads must be asked (again) before the next request."""
        moved = self._moved.get(url)
        return self._expected if moved is None else moved[0] <= monotonic()

    def target(self, url: str) -> Address | None:
        """Where `url` was last seen to lead; None where nobody has asked."""
        moved = self._moved.get(url)
        return moved[1] if moved else None

    def good_for_s(self, url: str) -> float:
        """For how many more seconds `target` can be relied on; 0 where nobody has asked."""
        moved = self._moved.get(url)
        return max(0.0, moved[0] - monotonic()) if moved else 0.0

    def expect(self) -> None:
        """A file was redirected although nobody had asked: from now on all have to be asked."""
        self._expected = True

    def has_expired(self, url: str, status: int) -> bool:
        """Whether `status` is what an address gives that `url` led to and that has grown old."""
        moved = self.target(url)
        return moved is not None and moved.url != url and status in _EXPIRED
