"""A disk that is full, broken or read-only at any call: the error says so, nothing is lost."""

from __future__ import annotations

import errno
import os
from itertools import count
from pathlib import Path

import pytest

from modelcache.errors import StoreError, StoreFull, StoreReadOnly
from tests.store.scenarios import SCENARIOS, nothing
from tests.store.striking import struck
from tests.store.support import check_tidy, collect, manifest_of, open_store

FAILURES = [  # code, error, whether every later call fails too
    pytest.param(errno.ENOSPC, StoreFull, False, id="full-for-a-moment"),
    pytest.param(errno.ENOSPC, StoreFull, True, id="full"),
    pytest.param(errno.EIO, StoreError, False, id="broken"),
    pytest.param(errno.EROFS, StoreReadOnly, True, id="read-only"),
]
PIECES = [scenario for scenario in SCENARIOS if scenario.name != "pull"]  # it is made of others


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_syncs")
@pytest.mark.parametrize(("code", "expected", "ever_after"), FAILURES)
@pytest.mark.parametrize("scenario", PIECES, ids=lambda scenario: scenario.name)
def test_a_call_that_fails_is_told_and_loses_nothing(
    scenario, code, expected, ever_after, tmp_path
):
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    for step in count(1):
        path = tmp_path / str(step) / "store"
        path.parent.mkdir()
        scenario.prepare(open_store(path))
        said: list[str] = []
        before = open_descriptors()
        raised = None
        freeing = code != errno.ENOSPC
        with struck(step, fail, ever_after=ever_after, freeing=freeing) as met:
            try:
                scenario.run(open_store(path), said.append)
            except StoreError as error:
                raised = error
        assert open_descriptors() == before, met
        if not met:
            break
        assert raised is None or type(raised) is expected, met
        store = open_store(path)
        scenario.check(store, said)
        scenario.run(store, nothing)
        scenario.check(store, said)
        collect(store)
        check_tidy(store, *map(manifest_of, scenario.left))
