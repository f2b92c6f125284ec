"""The event stream: as it happens, and on from where it broke."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from modelcache.agent import events as events_module
from modelcache.agent.events import EventKind
from modelcache.faces.http import streaming
from tests.agent.nodes import Models, ref_to
from tests.faces.http.agents import WAIT_S, Running


@contextmanager
def streamed(api: httpx2.Client, after: str | None = None, **params) -> Iterator[Iterator[dict]]:
    """Events, each with its id, of a stream that has begun."""
    headers = {"Last-Event-ID": after} if after else {}
    with api.stream("GET", "/v1/events", params=params, headers=headers, timeout=WAIT_S) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parsed(answer.iter_lines())


def parsed(lines: Iterator[str]) -> Iterator[dict]:
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if fields:
                data = json.loads(fields["data"])
                assert data["kind"] == fields["event"]
                yield {"id": fields["id"], **data}
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def until(events: Iterator[dict], kind: str) -> list[dict]:
    """Events up to the first of a kind."""
    found = []
    for event in events:
        found.append(event)
        if event["kind"] == kind:
            return found
    raise AssertionError(found)


def test_a_stream_tells_what_happens_from_now_on(faces: Running, models: Models):
    node = faces.daemon.node
    node.events.add(EventKind.EVICTED, model_id="earlier")
    with faces.tcp() as api, streamed(api) as events:
        node.want(ref_to(models.add("m"), "m"))
        kinds = [event["kind"] for event in until(events, "warm")]
    assert kinds == ["queued", "started", "resolved", "progress", "warm"]


def test_a_broken_stream_goes_on_behind_its_last_event(faces: Running):
    log = faces.daemon.node.events
    for number in range(5):
        log.add(EventKind.EVICTED, model_id=str(number))
    with faces.tcp() as api:
        with streamed(api, history=True) as events:
            seen = [next(events) for _ in range(3)]
        log.add(EventKind.EVICTED, model_id="while nobody looked")
        with streamed(api, after=seen[-1]["id"]) as events:
            rest = [next(events) for _ in range(3)]
    assert [event["number"] for event in seen + rest] == [1, 2, 3, 4, 5, 6]


def test_an_id_of_the_agents_earlier_life_begins_anew_and_says_so(faces: Running):
    log = faces.daemon.node.events
    log.add(EventKind.EVICTED, model_id="x")
    with faces.tcp() as api:
        for strange in ("abc.7", "7", f"{log.epoch}.x", f"{log.epoch}.", "x" * 5000):
            with streamed(api, after=strange) as events:
                assert [next(events)["kind"] for _ in range(2)] == ["lost", "evicted"], strange


def test_an_id_from_the_future_waits_for_what_comes(faces: Running):
    log = faces.daemon.node.events
    log.add(EventKind.EVICTED, model_id="x")
    with faces.tcp() as api, streamed(api, after=f"{log.epoch}.999999999") as events:
        log.add(EventKind.EVICTED, model_id="y")
        assert next(events)["model_id"] == "y"


def test_what_was_pushed_out_of_the_ring_is_told_as_lost(
    faces: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(events_module, "EVENTS_MAX", 4)
    log = faces.daemon.node.events
    for _ in range(10):
        log.add(EventKind.EVICTED)
    with faces.tcp() as api, streamed(api, after=f"{log.epoch}.2") as events:
        found = [next(events) for _ in range(5)]
    assert [event["kind"] for event in found] == ["lost", *["evicted"] * 4]
    assert [event["number"] for event in found[1:]] == [7, 8, 9, 10]


def test_a_stream_can_be_of_one_model_or_of_some_kinds(faces: Running):
    log = faces.daemon.node.events
    log.add(EventKind.WARM, "a")
    log.add(EventKind.FAILED, "a")
    log.add(EventKind.WARM, "b")
    with faces.tcp() as api:
        with streamed(api, history=True, kinds=["failed", "warm"], model="b") as events:
            assert next(events)["number"] == 3
        with streamed(api, history=True, kinds="failed") as events:
            assert next(events)["number"] == 2
        assert api.get("/v1/events", params={"kinds": "nonsense"}).status_code == 400


def test_a_silent_stream_shows_that_it_lives(faces: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    with faces.tcp() as api, api.stream("GET", "/v1/events", timeout=WAIT_S) as answer:
        assert next(answer.iter_lines()).startswith(":")


def test_watchers_that_leave_are_forgotten_and_too_many_are_refused(
    faces: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(events_module, "WATCHERS_MAX", 1)
    log = faces.daemon.node.events
    with faces.tcp() as api, faces.tcp() as other:
        with streamed(api) as events:
            log.add(EventKind.EVICTED)
            next(events)
            refused = other.get("/v1/events")
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "5"
        while log._watchers:  # the server learns of it at its next look
            log.add(EventKind.EVICTED)
        with streamed(api, history=True) as events:
            next(events)


def test_streams_end_with_the_agent(faces: Running):
    with faces.tcp() as api, streamed(api, history=True) as events:
        faces.daemon.node.events.add(EventKind.EVICTED)
        next(events)
        faces.parts.closing.close()
        assert list(events) == []
