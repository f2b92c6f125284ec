"""What a namespace may have on a node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.agent.events import EventKind
from modelcache.agent.quotas import Quotas
from modelcache.config import AccessSettings, Settings, parse_quotas
from modelcache.domain.wanted import ModelPhase, Want, WantedStatus
from modelcache.errors import InvalidConfig, QuotaExceeded, UsageError
from tests.agent.nodes import Models, node_settings, ref_to, running, wait_event, wait_phase
from tests.servers.nginx import Nginx

GB = 10**9


def status(name: str, size_gb: int, *tenants: str, since_s: float = 0.0) -> WantedStatus:
    wants = tuple(Want(f"pod/{t}-{name}", 60, since_s, tenant=t) for t in tenants)
    return WantedStatus(
        name, f"s3://bucket/{name}", ModelPhase.WARM, 60, total_bytes=size_gb * GB, wants=wants
    )


def test_a_tenant_is_charged_with_all_that_it_wants_and_nobody_elses():
    quotas = Quotas({"a": 10 * GB})
    there = [status("m1", 6, "a", "b"), status("m2", 100, "b"), status("m3", 3, "a")]
    quotas.check("b", "new", there)
    quotas.check("", "new", there)
    quotas.check("a", "m1", there)  # another pod of the same model
    quotas.check("a", "new", there)  # its size is not known yet
    assert list(quotas.excess(there)) == []


def test_the_youngest_goes_when_sizes_turn_out_too_large_and_is_remembered():
    quotas = Quotas({"*": 10 * GB})
    there = [
        status("late", 5, "a", since_s=9.0),
        status("early", 8, "a", since_s=1.0),
        status("small", 2, "a", since_s=10.0),
        status("other", 9, "b"),
    ]
    ((wanted, holder, why),) = quotas.excess(there)
    assert (wanted, holder) == ("late", "pod/a-late")
    assert why == (
        "namespace a may have 10.0 GB of models on a node and has 8.0 GB; another 5.0 GB do not "
        "fit (access.quotas)"
    )
    left = [each for each in there if each.wanted_id != "late"]
    with pytest.raises(QuotaExceeded, match=r"another 5\.0 GB"):
        quotas.check("a", "late", left)
    quotas.check("a", "late", left[2:])


@pytest.mark.parametrize("line", ["team-a", "Team: 1GB", "team-a: much", ": 1GB"])
def test_lines_that_are_no_quotas_are_refused(line: str):
    with pytest.raises(InvalidConfig):
        parse_quotas([line])


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    access = AccessSettings(local=True, quotas=("team-a: 30MB",))
    return replace(node_settings(tmp_path / "store"), access=access)


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()


def test_a_node_refuses_what_its_tenants_may_not_have(chosen: Settings, models: Models):
    one, two = models.add("m"), models.add("n")
    first, second = ref_to(one, "m"), ref_to(two, "n")
    with running(chosen) as node:
        node.want(first, lease="pod/1", tenant="team-a")
        wait_phase(node, first, ModelPhase.WARM)
        node.want(second, lease="pod/2", tenant="team-a")
        refused = wait_event(node, EventKind.REFUSED)
        assert refused.data["lease"] == "pod/2"
        assert "team-a may have" in refused.data["message"]
        assert [s.ref for s in node.statuses()] == [first.redacted()]
        with pytest.raises(QuotaExceeded):
            node.want(second, lease="pod/2", tenant="team-a")
        node.want(second, lease="pod/3", tenant="team-b")
        wait_phase(node, second, ModelPhase.WARM)
        node.release(first, "pod/1")
        node.want(second, lease="pod/2", tenant="team-a")
        with pytest.raises(UsageError, match="namespace"):
            node.want(second, lease="pod/4", tenant="Not A Name")
    with running(chosen) as node:  # what was charged is, after a restart
        (found,) = node.statuses()
        assert sorted(want.tenant for want in found.wants) == ["team-a", "team-b"]
