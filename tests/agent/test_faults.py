"""Whole pulls through a proxy that misbehaves: the result is exact, or the error is clear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.domain.manifests import BlobId
from modelcache.errors import (
    Forbidden,
    ModelcacheError,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceUnavailable,
)
from modelcache.store import Store
from tests.agent.support import CHUNK_BYTES, pull, random_bytes, settings, tree
from tests.servers.faults import SLOW_DOWN, Fault, FaultProxy, Request, random_faults
from tests.servers.nginx import Nginx

TAIL = 12_345
SIZE = 5 * CHUNK_BYTES + TAIL
DATA = random_bytes(SIZE)


@pytest.fixture
def proxy(web: tuple[Nginx, Path]) -> Iterator[FaultProxy]:
    server, root = web
    (root / "weights.bin").write_bytes(DATA)
    (root / "config.json").write_bytes(b"{}")
    with FaultProxy(server.url) as running:
        yield running


def once(fault: Fault, number: int = 2) -> object:
    """A plan: the fault for one GET of the weights, the `number`th of a whole chunk.

    The tail is too short for some faults, and may be asked for at any time.
    """
    seen = [0]

    def plan(request: Request) -> Fault | None:
        if request.method != "GET" or not request.path.endswith("weights.bin"):
            return None
        if request.span is not None and request.span[0] == SIZE - TAIL:
            return None
        seen[0] += 1
        return fault if seen[0] == number else None

    return plan


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(reset_at=0), id="reset before the body"),
        pytest.param(Fault(reset_at=100_000), id="reset in the body"),
        pytest.param(Fault(truncate_at=100_000), id="clean close in the body"),
        pytest.param(Fault(stall_at=100_000), id="silence in the body"),
        pytest.param(Fault(status=500), id="500"),
        pytest.param(SLOW_DOWN, id="503 SlowDown"),
        pytest.param(Fault(status=429, headers={"Retry-After": "0"}), id="429"),
        pytest.param(Fault(alter={"content-range": f"bytes 0-9/{SIZE}"}), id="wrong range"),
        pytest.param(Fault(alter={"content-length": "77"}), id="wrong length"),
        pytest.param(Fault(ignore_range=True), id="range ignored"),
    ],
)
def test_one_failure_costs_one_request_and_no_byte(
    proxy: FaultProxy, tmp_path: Path, fault: Fault
) -> None:
    proxy.plan = once(fault)  # type: ignore[assignment]
    snapshot = pull(f"{proxy.url}/weights.bin", tmp_path / "store")
    assert (snapshot.path / "weights.bin").read_bytes() == DATA
    assert snapshot.report is not None
    (source,) = snapshot.report.sources.values()
    # On a busy machine a sound request may be late, too, and be hedged, or bring two chunks.
    more = sum(source.failures.values()) + source.hedges
    assert more >= 1
    assert len(proxy.gets("weights.bin")) <= 6 + more


@pytest.mark.parametrize("seed", range(6))
def test_many_random_failures_still_give_every_byte(
    proxy: FaultProxy, tmp_path: Path, seed: int
) -> None:
    proxy.plan = random_faults(seed)
    snapshot = pull(f"{proxy.url}/", tmp_path / "store")
    assert tree(snapshot.path) == {"weights.bin": DATA, "config.json": b"{}"}


def test_an_object_that_changes_midway_is_an_error_and_never_a_mix(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.plan = once(Fault(alter={"etag": '"another"'}), number=4)  # type: ignore[assignment]
    with pytest.raises(OriginChanged, match=r"weights\.bin"):
        pull(f"{proxy.url}/weights.bin", tmp_path / "store", connections_max=1, connections_start=1)
    assert not list((tmp_path / "store" / "snapshots").iterdir())


def test_a_refused_precondition_is_an_error(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.plan = once(Fault(status=412))  # type: ignore[assignment]
    with pytest.raises(OriginChanged):
        pull(f"{proxy.url}/weights.bin", tmp_path / "store")


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (403, Forbidden), (401, NoCredentials)],
)
def test_a_refusal_ends_the_pull_at_once(
    proxy: FaultProxy, tmp_path: Path, status: int, error: type[ModelcacheError]
) -> None:
    proxy.plan = once(Fault(status=status))  # type: ignore[assignment]
    with pytest.raises(error, match=r"weights\.bin"):
        pull(f"{proxy.url}/weights.bin", tmp_path / "store")


def test_a_server_that_only_fails_ends_the_pull_with_its_reason(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.plan = lambda request: Fault(status=500) if request.method == "GET" else None
    with pytest.raises(SourceUnavailable, match="500"):
        pull(f"{proxy.url}/weights.bin", tmp_path / "store", retries_max=2)


def test_a_second_pull_after_a_failure_fetches_only_what_is_missing(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.plan = once(Fault(status=404), number=4)  # type: ignore[assignment]
    with pytest.raises(NotFound):
        pull(f"{proxy.url}/weights.bin", tmp_path / "store", connections_max=1, connections_start=1)
    (blob,) = (tmp_path / "store" / "partial").iterdir()
    kept = Store.open(settings(tmp_path / "store").store).partial_bytes(BlobId(blob.name))
    assert kept >= 3 * CHUNK_BYTES
    snapshot = pull(f"{proxy.url}/weights.bin", tmp_path / "store")
    assert (snapshot.path / "weights.bin").read_bytes() == DATA
    assert snapshot.fetched_bytes == SIZE - kept


def test_a_warm_model_is_not_fetched_again(proxy: FaultProxy, tmp_path: Path) -> None:
    pull(f"{proxy.url}/", tmp_path / "store")
    before = len(proxy.gets(".bin"))
    again = pull(f"{proxy.url}/", tmp_path / "store")
    assert again.fetched_bytes == 0
    assert len(proxy.gets(".bin")) == before


def test_a_slow_last_chunk_is_hedged(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.plan = once(Fault(stall_at=1000), number=5)  # type: ignore[assignment]
    snapshot = pull(f"{proxy.url}/weights.bin", tmp_path / "store", stall_timeout_s=50.0)
    assert (snapshot.path / "weights.bin").read_bytes() == DATA
    assert snapshot.report is not None
    assert sum(source.hedges for source in snapshot.report.sources.values()) == 1
