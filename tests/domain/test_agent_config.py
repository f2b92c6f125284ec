"""Settings of the agent, and finding all that is wrong with a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache.config import (
    AgentSettings,
    LogFormat,
    LogLevel,
    find_problems,
    load_settings,
    parse_priority_limits,
)
from modelcache.errors import InvalidConfig

TOKENS = Path("/t")


def load(**environment: str):
    return load_settings(None, {"HOME": "/nonexistent", **environment})


def test_every_setting_of_the_agent_can_be_set():
    agent = load(
        MODELCACHE_AGENT_NODE="n",
        MODELCACHE_AGENT_SOCKET="/s",
        MODELCACHE_AGENT_LISTEN="[::]:1",
        MODELCACHE_AGENT_TCP_TOKEN_FILE=str(TOKENS),
        MODELCACHE_AGENT_PULLS_MAX="2",
        MODELCACHE_AGENT_REFRESH_S="1h",
        MODELCACHE_AGENT_SHUTDOWN_S="5s",
        MODELCACHE_AGENT_PRIORITY_LIMITS="60: 1GB\n30: 200MB",
        MODELCACHE_AGENT_LOG_FORMAT="console",
        MODELCACHE_AGENT_LOG_LEVEL="debug",
    ).agent
    assert agent == AgentSettings(
        node="n",
        socket=Path("/s"),
        listen="[::]:1",
        tcp_token_file=str(TOKENS),
        pulls_max=2,
        refresh_s=3600.0,
        shutdown_s=5.0,
        priority_limits=("60: 1GB", "30: 200MB"),
        log_format=LogFormat.CONSOLE,
        log_level=LogLevel.DEBUG,
    )
    assert parse_priority_limits(agent.priority_limits) == ((30, 200_000_000), (60, 10**9))


def test_where_a_client_finds_the_agent_is_no_setting_of_the_agent():
    assert load(MODELCACHE_AGENT="/run/x.sock").agent == AgentSettings()


@pytest.mark.parametrize("line", ["", "30", "30:", ":5MB", "101: 5MB", "-1: 5MB", "30: 0", "x: 1"])
def test_what_is_no_limit_is_refused(line: str):
    with pytest.raises(InvalidConfig):
        parse_priority_limits([line])


@pytest.mark.parametrize(
    "setting",
    [
        {"MODELCACHE_AGENT_LISTEN": "9870"},
        {"MODELCACHE_AGENT_PULLS_MAX": "0"},
        {"MODELCACHE_AGENT_PRIORITY_LIMITS": "x"},
        {"MODELCACHE_AGENT_LOG_FORMAT": "xml"},
        {"MODELCACHE_AGENT_LOG_LEVEL": "loud"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(setting: dict[str, str]):
    (name,) = setting
    with pytest.raises(
        InvalidConfig, match=f"agent.{name.removeprefix('MODELCACHE_AGENT_').lower()}"
    ):
        load(**setting)


def test_all_that_is_wrong_is_found_once_each(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text(
        "typo = 1\nmax_age_s = 'x'\n[store]\nlow_watermark = 0.99\nquota_bytes = 'much'\n"
        "[agent]\npulls_max = 0\n[s3]\nstyle = 'x'\n"
    )
    found = find_problems(
        path,
        {"HOME": "/", "MODELCACHE_TRANSFER_IO": "fast", "MODELCACHE_OTHER": "x"},
        {"--listen": ("agent.listen", "nowhere"), "--node": ("agent.node", None)},
    )
    told = [error.message for error in found]
    assert len(told) == len(set(told))
    for part in (
        "'typo'",
        "max_age_s:",
        "watermarks",
        "quota_bytes",
        "agent.pulls_max",
        "s3.style",
        "transfer.io",
        "'nowhere'",
    ):
        assert sum(part in each for each in told) == 1, (part, told)


def test_a_file_that_cannot_be_read_is_the_only_problem_of_its_kind(tmp_path: Path):
    (found,) = find_problems(tmp_path / "none.toml", {}, {})
    assert "cannot read configuration" in found.message


def test_nothing_is_wrong_with_nothing():
    assert find_problems(None, {"HOME": "/nonexistent"}, {}) == []


def test_peers_answer_before_whoever_asks_gives_up():
    waits = {"MODELCACHE_PEERS_WAIT_S": "60s", "MODELCACHE_TRANSFER_STALL_TIMEOUT_S": "60s"}
    load(**waits)  # nobody asks a node without peers
    with pytest.raises(InvalidConfig, match=r"wait_s must be less"):
        load(**waits, MODELCACHE_PEERS_DNS="peers.models.svc:9871")
