"""Claims: two attempts at one chunk never both write it."""

from __future__ import annotations

import threading
from time import sleep
from typing import Any

import pytest

from modelcache.domain.manifests import BlobId, File
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.errors import StoreError
from modelcache.planner import AttemptId, SourceId
from modelcache.transfer import jobs
from modelcache.transfer.jobs import BlobJob

FIRST, SECOND = AttemptId(1), AttemptId(2)


@pytest.fixture
def job() -> BlobJob:
    """A blob of four chunks whose source is never asked."""
    source: Any = None
    file = File("x", 4, "x", BlobId("origin-1"))
    return BlobJob(file, ChunkGrid(4, 1), source, SourceId("origin"), small=False)


def never() -> None:
    raise AssertionError("nobody was to be stopped")


def test_a_chunk_has_one_writer(job: BlobJob):
    assert job.claim(0, FIRST, never)
    assert not job.claim(0, SECOND, never)
    assert job.claim(1, SECOND, never)


def test_a_chunk_that_failed_may_be_claimed_again_and_a_stored_one_not(job: BlobJob):
    job.claim(0, FIRST, never)
    job.release(0, FIRST, stored=False)
    assert job.claim(0, SECOND, never)
    job.release(0, SECOND, stored=True)
    assert not job.claim(0, FIRST, never)
    job.lose([0])
    assert job.claim(0, FIRST, never)


def test_letting_go_of_what_somebody_else_holds_changes_nothing(job: BlobJob):
    job.claim(0, FIRST, never)
    job.release(0, SECOND, stored=True)
    job.release(3, SECOND, stored=True)
    assert not job.claim(0, SECOND, never)
    assert job.claim(3, SECOND, never)


def test_nobody_waits_for_a_chunk_that_nobody_wants_any_more(job: BlobJob):
    looked: list[bool] = []

    def gone() -> bool:
        looked.append(True)
        return len(looked) == 2  # at the second look, not at the first

    assert not job.wait_served(ByteRange(0, 1), 3600.0, gone)
    assert not job.wait_served(ByteRange(0, 1), 0.0)
    assert len(looked) == 2


def test_whoever_takes_over_stops_the_holder_and_waits_for_it(job: BlobJob):
    order: list[str] = []
    asked = threading.Event()
    job.claim(0, FIRST, asked.set)

    def hold() -> None:
        asked.wait(5.0)
        sleep(0.05)
        assert job.revoked(0, FIRST)
        order.append("let go")
        job.release(0, FIRST, stored=False)

    holder = threading.Thread(target=hold)
    holder.start()
    assert job.take_over(0, SECOND, never)
    order.append("taken")
    holder.join()
    assert order == ["let go", "taken"]
    assert not job.revoked(0, SECOND)


def test_nothing_is_taken_over_when_the_holder_has_stored_it(job: BlobJob):
    asked = threading.Event()
    job.claim(0, FIRST, asked.set)

    def hold() -> None:
        asked.wait(5.0)
        job.release(0, FIRST, stored=True)

    holder = threading.Thread(target=hold)
    holder.start()
    assert not job.take_over(0, SECOND, never)
    holder.join()


def test_a_free_chunk_is_taken_over_at_once(job: BlobJob):
    assert job.take_over(0, SECOND, never)
    assert not job.claim(0, FIRST, never)


def test_a_holder_that_hangs_is_an_error_of_the_disk(job: BlobJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "CLAIM_WAIT_S", 0.05)
    job.claim(0, FIRST, lambda: None)
    with pytest.raises(StoreError, match="write to x has hung"):
        job.take_over(0, SECOND, never)


def test_many_threads_and_one_chunk(job: BlobJob):
    """Whatever the order, at most one is inside."""
    inside = 0
    most = 0
    guard = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, most
        attempt = AttemptId(number)
        for _ in range(200):
            if not job.claim(2, attempt, lambda: None):
                continue
            with guard:
                inside += 1
                most = max(most, inside)
            sleep(0)
            with guard:
                inside -= 1
            job.release(2, attempt, stored=False)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
