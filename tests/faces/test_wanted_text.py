"""What an agent tells, in words."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from modelcache.client import AgentEvent, AgentStatus
from modelcache.domain.wanted import ModelPhase, Trouble, Want, WantedStatus
from modelcache.faces.displays import Drawn
from modelcache.faces.wanted import agent_text, describe, event_text, waiting, wanted_text

COMING = WantedStatus(
    wanted_id="0123456789abcdef",
    ref="s3://bucket/llama",
    phase=ModelPhase.TRANSFERRING,
    priority=60,
    model_id="ab" * 32,
    total_bytes=140_000_000_000,
    done_bytes=59_500_000_000,
    files_total=36,
    rate_bytes_s=2.1e9,
    eta_s=38.3,
    connections=16,
    wants=(Want("pod/a", 60, 1.0), Want("b", 30, 1.0)),
)
FAN = "16 connections"
WARM = replace(COMING, phase=ModelPhase.WARM, rate_bytes_s=0.0, eta_s=None, path="/s/ab")
DOWN = replace(
    COMING,
    phase=ModelPhase.QUEUED,
    total_bytes=0,
    model_id="",
    rate_bytes_s=0.0,
    eta_s=None,
    trouble=Trouble("source_unavailable", "no route to bucket"),
    retry_in_s=12.0,
)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (
            COMING,
            f"fetching s3://bucket/llama: 42 %, 59.5 GB of 140 GB, 2.1 GB/s, 38.3 s left, {FAN}",
        ),
        (
            replace(COMING, phase=ModelPhase.PAUSED),
            "paused for something more urgent s3://bucket/llama: 42 %, 59.5 GB of 140 GB",
        ),
        (WARM, "warm s3://bucket/llama"),
        (DOWN, "queued s3://bucket/llama: no route to bucket (again in 12.0 s)"),
    ],
    ids=["coming", "paused", "warm", "down"],
)
def test_a_status_is_one_line(status: WantedStatus, told: str):
    assert describe(status) == told


def test_nearly_all_is_not_all():
    nearly = replace(COMING, done_bytes=139_999_999_999)
    assert ": 99 %, " in describe(nearly)
    assert " 99 % " in wanted_text([nearly])


def test_the_table_has_a_row_each_and_what_is_wrong_below():
    text = wanted_text([COMING, WARM, DOWN])
    lines = text.splitlines()
    assert len(lines) == 5
    assert lines[1].split() == [
        *("abababababab", "fetching", "42", "%", "140", "GB", "2.1", "GB/s", "38.3", "s", "60"),
        *("pod/a,b", "s3://bucket/llama"),
    ]
    assert lines[-1] == describe(DOWN)
    assert wanted_text([]) == "nothing is wanted here"


def test_an_agent_that_is_not_ready_says_why():
    status = AgentStatus(
        "node-1",
        "0.1.0",
        False,
        ("draining",),
        True,
        (),
        {"store": {"path": "/s", "free_bytes": 5}, "warnings": ["something is odd"]},
    )
    assert agent_text(status).splitlines() == [
        "node node-1, modelcache 0.1.0, not ready: draining",
        "warning: something is odd",
        "store /s: 0 B in blobs, 0 B under way, 5 B free",
        "nothing is wanted here",
    ]


def test_an_event_is_one_line():
    data = {"number": 7, "kind": "failed", "at_s": 0.0, "model": "m", "message": "no such", "x": ""}
    event = AgentEvent("e.7", "failed", data)
    assert event_text(event) == "1970-01-01T00:00:00+00:00 failed m message='no such'"


def test_a_log_gets_lines_when_there_is_news(capsys: pytest.CaptureFixture[str]):
    with waiting(quiet=False) as show:
        for share in range(0, 1000, 5):
            show(replace(COMING, done_bytes=COMING.total_bytes * share // 1000))
        show(DOWN)
        show(DOWN)
        show(WARM)
    told = capsys.readouterr()
    assert told.out == ""
    assert 10 <= len(told.err.splitlines()) <= 13
    assert told.err.splitlines()[-1] == describe(DOWN)


def test_who_wants_quiet_gets_none(capsys: pytest.CaptureFixture[str]):
    with waiting(quiet=True) as show:
        show(COMING)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_it_is_wiped(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with waiting(quiet=False) as show:
        assert type(show) is Drawn
        show(replace(COMING, ref="s3://bucket/[/b]"))
    assert "[/b]" in screen.getvalue()
