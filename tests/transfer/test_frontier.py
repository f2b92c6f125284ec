"""Bytes in order from chunks in any order, by several threads, and anew when some were wrong."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid
from modelcache.transfer.buffers import Block, BufferPool
from modelcache.transfer.frontier import Frontier, read_back
from tests.store.processes import exit_code, fork

BLOB = BlobId("blob")
WAIT_S = 10.0


@dataclass
class Chunks:
    """Chunks of one block each, every byte of which is their letter."""

    count: int
    stored: dict[int, bytes] = field(default_factory=dict)

    @property
    def grid(self) -> ChunkGrid:
        return ChunkGrid(self.count * BLOCK_BYTES, BLOCK_BYTES)

    def is_done(self, chunk: int) -> bool:
        return chunk in self.stored

    def read(self, offset: int, buffer: memoryview, length: int) -> None:
        buffer[:length] = self.stored[offset // BLOCK_BYTES] * length


class Fed:
    """What came; holds whoever feeds it while `open` is not set."""

    def __init__(self) -> None:
        self.letters = b""
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.inside = 0

    def update(self, view: memoryview) -> None:
        self.inside += 1
        assert self.inside == 1, "two threads feed at once"
        self.entered.set()
        assert self.open.wait(WAIT_S)
        self.letters += bytes(view[:1])
        self.inside -= 1

    def forget(self) -> None:
        assert not self.inside
        self.letters = b""


@pytest.fixture
def fed() -> Fed:
    return Fed()


def frontier_of(fed: Fed, chunks: Chunks, pool: BufferPool) -> Frontier:
    frontier = Frontier([BLOB], pool, fed.update)
    frontier.open(BLOB, chunks)
    return frontier


def store(
    frontier: Frontier, chunks: Chunks, chunk: int, letter: bytes, pool: BufferPool | None = None
) -> None:
    chunks.stored[chunk] = letter
    blocks: list[Block] = []
    if pool is not None:
        blocks = [pool.take()]
        blocks[0].view[:] = letter * BLOCK_BYTES
    frontier.stored(BLOB, chunk, blocks)


def test_chunks_are_fed_in_order_from_memory_and_from_the_store(fed: Fed):
    pool, chunks = BufferPool(8 * BLOCK_BYTES), Chunks(4)
    frontier = frontier_of(fed, chunks, pool)
    store(frontier, chunks, 2, b"c", pool)
    store(frontier, chunks, 1, b"b")
    assert fed.letters == b""
    store(frontier, chunks, 0, b"a", pool)
    assert fed.letters == b"abc"
    store(frontier, chunks, 3, b"d", pool)
    frontier.finish()
    assert fed.letters == b"abcd"
    assert pool.free == pool.blocks


def test_what_was_kept_of_a_chunk_that_is_replaced_is_not_fed(fed: Fed):
    """An audit writes the right bytes over a chunk and has no blocks to give."""
    pool, chunks = BufferPool(8 * BLOCK_BYTES), Chunks(2)
    frontier = frontier_of(fed, chunks, pool)
    store(frontier, chunks, 1, b"x", pool)
    store(frontier, chunks, 1, b"b")
    store(frontier, chunks, 0, b"a", pool)
    assert fed.letters == b"ab"
    assert pool.free == pool.blocks


def test_whoever_finishes_or_restarts_waits_for_who_feeds(fed: Fed):
    pool, chunks = BufferPool(8 * BLOCK_BYTES), Chunks(2)
    frontier = frontier_of(fed, chunks, pool)
    fed.open.clear()
    feeding = threading.Thread(target=store, args=(frontier, chunks, 0, b"a", pool))
    feeding.start()
    assert fed.entered.wait(WAIT_S)
    store(frontier, chunks, 1, b"b", pool)  # leaves it to the one who is at it

    def end() -> None:
        frontier.finish()
        frontier.restart(fed.forget)
        frontier.finish()

    ending = threading.Thread(target=end)
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    fed.open.set()
    for thread in (feeding, ending):
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert fed.letters == b"ab"


def test_after_a_restart_nothing_is_fed_before_all_is_there(fed: Fed):
    """Chunks that look stored may be the wrong ones, and are about to be replaced."""
    pool, chunks = BufferPool(8 * BLOCK_BYTES), Chunks(3)
    frontier = frontier_of(fed, chunks, pool)
    for chunk, letter in enumerate((b"x", b"b", b"y")):
        store(frontier, chunks, chunk, letter, pool)
    frontier.restart(fed.forget)
    store(frontier, chunks, 2, b"c", pool)
    store(frontier, chunks, 0, b"a", pool)
    assert fed.letters == b""
    assert pool.free == pool.blocks
    frontier.finish()
    assert fed.letters == b"abc"


def test_whoever_comes_after_a_consumer_that_failed_is_not_left_waiting(fed: Fed):
    pool, chunks = BufferPool(8 * BLOCK_BYTES), Chunks(1)
    fails = True

    def update(view: memoryview) -> None:
        if fails:
            raise OSError("no space")
        fed.update(view)

    frontier = Frontier([BLOB], pool, update)
    frontier.open(BLOB, chunks)
    with pytest.raises(OSError, match="no space"):
        store(frontier, chunks, 0, b"a", pool)
    fails = False
    frontier.finish()
    assert fed.letters == b"a"
    assert pool.free == pool.blocks


def test_a_forked_child_reads_back_into_memory_of_its_own():
    """It does not have that of its parent: to write there would be its end."""
    chunks = Chunks(1, {0: b"a"})

    def read() -> None:
        letters = bytearray()
        read_back(chunks, chunks.grid.span(0), letters.extend)
        assert letters == b"a" * BLOCK_BYTES

    read()
    assert exit_code(fork(read)) == 0
