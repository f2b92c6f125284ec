"""Values that agent and clients share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.listening import default_socket, parse_listen
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import (
    ModelPhase,
    Want,
    WantedStatus,
    check_want,
    wanted_id,
)
from modelcache.errors import InvalidConfig, UsageError

REF = parse_ref("s3://bucket/m")


def test_refs_that_mean_different_files_are_wanted_apart():
    ids = {
        wanted_id(REF),
        wanted_id(REF.filtered(["*.json"])),
        wanted_id(parse_ref("s3://bucket/n")),
    }
    assert len(ids) == 3
    assert wanted_id(parse_ref(str(REF))) == wanted_id(REF)


@given(st.integers(0, 10**13), st.integers(1, 10**13))
def test_a_hundred_percent_means_all_of_it(done: int, total: int):
    status = WantedStatus(
        "0" * 16, "r", ModelPhase.TRANSFERRING, 30, total_bytes=total, done_bytes=min(done, total)
    )
    assert 0 <= status.percent <= 99.9


def test_what_is_warm_is_all_there():
    assert WantedStatus("0" * 16, "r", ModelPhase.WARM, 30).percent == 100.0


@pytest.mark.parametrize("holder", ["a", "pod/default/llama-0", "user@host:5", "x" * 128])
def test_names_of_leases(holder: str):
    check_want(holder, 0, None, "")
    check_want(holder, 100, 0.5, "why not: é")


@pytest.mark.parametrize("holder", ["", "-a", "/a", "a b", "a\n", "é", "x" * 129])
def test_what_is_no_name_of_a_lease(holder: str):
    with pytest.raises(UsageError, match="is not a name"):
        check_want(holder, 0, None, "")


@pytest.mark.parametrize(
    "plain", [{}, {"holder": "a"}, {**Want("a", 1, 1.0).to_json(), "priority": "high"}], ids=str
)
def test_what_is_no_want_is_not_taken_for_one(plain):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Want.from_json(plain)


def test_where_an_agent_listens_depends_on_whose_it_is():
    assert default_socket(0, "/run/user/0") == "/run/modelcache/agent.sock"
    assert default_socket(1000, "/runtime") == "/runtime/modelcache/agent.sock"
    assert default_socket(1000, None) == "/run/user/1000/modelcache/agent.sock"


def test_addresses_to_listen_on():
    assert parse_listen("127.0.0.1:9870") == ("127.0.0.1", 9870)
    assert parse_listen("[::]:0") == ("::", 0)
    for wrong in ("9870", "host", "host:", "::1:9870", "host:99999", "a b:1"):
        with pytest.raises(InvalidConfig):
            parse_listen(wrong)
