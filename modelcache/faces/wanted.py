"""What an agent tells of wanted models, for people: lines, tables, and a bar while one waits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from modelcache.domain.wanted import ModelPhase, WantedStatus
from modelcache.faces import present, units
from modelcache.faces.displays import Display, Drawn, Silence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from modelcache.client import AgentEvent, AgentStatus

LINE_EVERY_S: Final = 5.0
LINE_EVERY_PERCENT: Final = 10.0
NOTE_CHARACTERS: Final = 60
_WORDS: Final = {
    ModelPhase.QUEUED: "queued",
    ModelPhase.RESOLVING: "resolving",
    ModelPhase.TRANSFERRING: "fetching",
    ModelPhase.PUBLISHING: "publishing",
    ModelPhase.PAUSED: "paused for something more urgent",
    ModelPhase.WARM: "warm",
    ModelPhase.FAILED: "failed",
}
_COUNTED: Final = frozenset({ModelPhase.TRANSFERRING, ModelPhase.PUBLISHING, ModelPhase.PAUSED})


def describe(status: WantedStatus) -> str:
    """One line: phase, bytes, rate, time left; or what is wrong. 100 % means all of it."""
    words = f"{_WORDS[status.phase]} {status.ref}"
    if status.phase in _COUNTED and status.total_bytes:
        parts = [
            f"{words}: {int(status.percent)} %",
            f"{units.size(status.done_bytes)} of {units.size(status.total_bytes)}",
        ]
        if status.phase is ModelPhase.TRANSFERRING:
            parts.append(units.rate(status.rate_bytes_s))
            if status.eta_s is not None:
                parts.append(f"{units.duration(status.eta_s)} left")
            parts.append(units.count(status.connections, "connection"))
        words = ", ".join(parts)
    if status.trouble is not None:
        words = f"{words}: {status.trouble.message}"
        if status.retry_in_s is not None:
            words += f" (again in {units.duration(status.retry_in_s)})"
    return words


def wanted_text(statuses: Sequence[WantedStatus]) -> str:
    """A table of wanted models."""
    if not statuses:
        return "nothing is wanted here"
    rows = [
        [
            status.model_id[:12] or "-",
            _WORDS[status.phase].partition(" ")[0],
            f"{int(status.percent)} %",
            units.size(status.total_bytes) if status.total_bytes else "-",
            units.rate(status.rate_bytes_s) if status.rate_bytes_s else "-",
            units.duration(status.eta_s) if status.eta_s is not None else "-",
            str(status.priority),
            ",".join(want.holder for want in status.wants)[:NOTE_CHARACTERS],
            status.ref,
        ]
        for status in statuses
    ]
    head = ["MODEL", "PHASE", "HERE", "SIZE", "RATE", "LEFT", "PRIORITY", "LEASES", "REF"]
    lines = [present.table(head, rows)]
    lines += [describe(status) for status in statuses if status.trouble is not None]
    return "\n".join(lines)


def agent_text(status: AgentStatus) -> str:
    """The agent at one glance."""
    state = "ready" if status.ready else f"not ready: {', '.join(status.reasons)}"
    store: Mapping[str, Any] = status.plain.get("store", {})
    taken = units.size(float(store.get("blobs_bytes", 0)))
    partial = units.size(float(store.get("partial_bytes", 0)))
    free = units.size(float(store.get("free_bytes", 0)))
    return "\n".join(
        [
            f"node {status.node}, modelcache {status.version}, {state}",
            *(f"warning: {line}" for line in status.plain.get("warnings", ())),
            f"store {store.get('path', '?')}: {taken} in blobs, {partial} under way, {free} free",
            wanted_text(status.wanted),
        ]
    )


def event_text(event: AgentEvent) -> str:
    """One line: when, what, of which model, and what else is known."""
    data = dict(event.data)
    at_s = data.pop("at_s", None)
    for name in ("kind", "number"):
        data.pop(name, None)
    model = data.pop("model", "")
    told = " ".join(f"{name}={_shown(value)}" for name, value in data.items() if value != "")
    when = "-" if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
    return " ".join(part for part in (when, event.kind, str(model), told) if part)


def waiting(*, quiet: bool) -> Display[WantedStatus]:
    """What suits this standard error, while one wanted model is waited for."""
    if quiet:
        return Silence()
    return Drawn(_drawing) if sys.stderr.isatty() else _Lines()


class _Lines(Silence[WantedStatus]):
    """A line when the phase changes, and now and then: for logs."""

    def __init__(self) -> None:
        self._before: WantedStatus | None = None
        self._said_s = 0.0

    def __call__(self, moment: WantedStatus) -> None:
        """See Display."""
        before, now_s = self._before, monotonic()
        news = (
            before is None
            or moment.phase is not before.phase
            or moment.trouble != before.trouble
            or now_s - self._said_s >= LINE_EVERY_S
            or moment.percent - before.percent >= LINE_EVERY_PERCENT
        )
        if news and moment.phase is not ModelPhase.WARM:
            self._before, self._said_s = moment, now_s
            sys.stderr.write(f"{describe(moment)}\n")
            sys.stderr.flush()


def _drawing(status: WantedStatus) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415 - only where there is a terminal
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    line = Text(describe(status))  # a plain string would be read as markup
    total = max(1, status.total_bytes)
    return Group(line, ProgressBar(total, status.done_bytes, width=60))


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text else text
