"""Telling the other nodes of the cell what is fetched here, and hearing what they have.

An announcement goes both ways: whoever gets one knows that this node fetches, and answers with what
it has itself. So nobody has to be asked who is there. Before a pull asks for anything it announces
to all; while something is fetched, again every few seconds, so that nodes which were started
anew or had been out of reach are found, and chunks are found at others than their owners.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from time import sleep
from typing import Final

from modelcache.domain.members import Member
from modelcache.errors import ModelcacheError
from modelcache.peers.client import PeerClient
from modelcache.peers.messages import Announcement

THREADS_MAX: Final = 32  # a cell has at most 63 others; two rounds of a millisecond each
SETTLE_S: Final = 0.02  # what is to be told together: a request that is just being sent counts
ANSWER_S: Final = 1.0  # a node that takes longer is no help to anybody; it is asked again later

Learn = Callable[[Member, Announcement], None]
Failed = Callable[[Member, str], None]


class Announcer:
    """See the module. Thread-safe."""

    def __init__(
        self,
        client: PeerClient,
        members: Callable[[], Sequence[Member]],
        compose: Callable[[], Announcement],
        *,
        learn: Learn,
        failed: Failed,
    ) -> None:
        """members: of the cell. compose: what to say. learn, failed: what became of it."""
        self._client = client
        self._members = members
        self._compose = compose
        self._learn = learn
        self._failed = failed
        self._pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="modelcache-announce")
        self._due = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, every_s: float, wanted: Callable[[], bool]) -> None:
        """Announce every so often while `wanted`."""

        def run() -> None:
            while not self._stopping:
                if self._due.wait(every_s):
                    sleep(SETTLE_S)
                    self._due.clear()
                if wanted():
                    self.tell_all(timeout_s=every_s)

        self._thread = threading.Thread(target=run, name="modelcache-announcer", daemon=True)
        self._thread.start()

    def soon(self) -> None:
        """Announce at once, in the announcer's own thread."""
        self._due.set()

    def tell_all(self, said: Announcement | None = None, *, timeout_s: float = ANSWER_S) -> None:
        """Announce to all members, and wait for their answers, but not longer than that."""
        if self._stopping:
            return
        message = said or self._compose()
        futures = [
            self._pool.submit(self.tell_one, member, message, timeout_s)
            for member in self._members()
        ]
        wait_for(futures, timeout_s)

    def tell_one(self, member: Member, said: Announcement, timeout_s: float = ANSWER_S) -> None:
        """Announce to one member, and take in what it answers."""
        try:
            answer = self._client.announce(member, said, timeout_s=timeout_s)
        except ModelcacheError as error:
            self._failed(member, error.message)
        else:
            self._learn(member, answer)

    def close(self) -> None:
        """End the thread; announcements under way are given up at their time limit."""
        self._stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
