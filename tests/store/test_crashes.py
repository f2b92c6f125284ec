"""Kill a process before each system call that changes the disk, and in the middle of each write.

Whatever the moment: nothing wrong is seen, nothing finished is lost, the next run completes, and
garbage collection leaves nothing over.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from modelcache.store import receipts
from tests.store.scenarios import SCENARIOS, Scenario, nothing
from tests.store.striking import killed_at
from tests.store.support import check_tidy, collect, manifest_of, open_store

WEEK_S = 7 * 86400.0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_syncs")
@pytest.mark.parametrize("half", [False, True], ids=["before", "half"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_process_killed_at_any_call_leaves_a_store_that_goes_on(scenario, half, tmp_path):
    deaths = die_everywhere(scenario, tmp_path, half=half)
    assert deaths >= (0 if half else 2)


WITH_RECEIPTS = ("write_blob", "write_small", "unpack", "mend", "remove", "collect")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_syncs")
@pytest.mark.parametrize("half", [False, True], ids=["before", "half"])
@pytest.mark.parametrize("name", WITH_RECEIPTS)
def test_so_does_one_whose_receipts_are_files(name, half, tmp_path, monkeypatch):
    monkeypatch.setattr(receipts, "attach", lambda *_: False)
    (scenario,) = (found for found in SCENARIOS if found.name == name)
    die_everywhere(scenario, tmp_path, half=half)


def die_everywhere(scenario: Scenario, folder: Path, *, half: bool) -> int:
    """Returns how many deaths there were to die."""
    for step in count(1):
        (folder / str(step)).mkdir()
        if survives(scenario, step, folder / str(step) / "store", half=half):
            return step - 1
    raise AssertionError("never")


def survives(scenario: Scenario, step: int, path: Path, *, half: bool) -> bool:
    """One death. True if the work was over before that step."""
    scenario.prepare(open_store(path))
    said = killed_at(step, lambda say: scenario.run(open_store(path), say), half=half)
    if said is None:
        return True
    store = open_store(path)
    scenario.check(store, said)
    if step % 2:
        collect(store, older_than_s=WEEK_S)
        scenario.check(store, said)
    scenario.run(store, nothing)
    scenario.check(store, said)
    collect(store)
    check_tidy(store, *map(manifest_of, scenario.left))
    return False
