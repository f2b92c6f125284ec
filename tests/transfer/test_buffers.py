"""The pool of blocks: bounded, aligned, and given back."""

from __future__ import annotations

import threading

import numpy as np

from modelcache.config import BLOCK_BYTES
from modelcache.store.blocks import HUGE_BYTES
from modelcache.transfer.buffers import BLOCKS_MIN, BufferPool


def test_a_pool_has_as_many_blocks_as_its_memory():
    assert BufferPool(64 * BLOCK_BYTES).blocks == 64
    assert BufferPool(0).blocks == BLOCKS_MIN


def test_blocks_are_huge_pages_and_apart():
    pool = BufferPool(0)
    blocks = [pool.take() for _ in range(pool.blocks)]
    addresses = sorted(
        np.frombuffer(b.view, np.uint8).__array_interface__["data"][0] for b in blocks
    )
    assert all(address % HUGE_BYTES == 0 for address in addresses)
    gaps = np.diff(addresses)
    assert (gaps >= BLOCK_BYTES).all()
    assert {len(block.view) for block in blocks} == {BLOCK_BYTES}


def test_who_finds_the_pool_empty_waits_for_a_block():
    pool = BufferPool(0)
    held = [pool.take() for _ in range(pool.blocks)]
    assert pool.free == 0
    got = []
    waiting = threading.Thread(target=lambda: got.append(pool.take()))
    waiting.start()
    waiting.join(0.05)
    assert not got
    held.pop().release()
    waiting.join(5.0)
    assert len(got) == 1


def test_a_hedge_takes_only_what_others_can_spare():
    pool = BufferPool(0)
    taken = [pool.take_if(left=4) for _ in range(pool.blocks)]
    assert [block is not None for block in taken] == [True] * (pool.blocks - 4) + [False] * 4


def test_the_block_given_back_last_is_taken_first():
    """So a pull with few connections stays in few pages."""
    pool = BufferPool(0)
    block = pool.take()
    block.release()
    assert pool.take() is block
