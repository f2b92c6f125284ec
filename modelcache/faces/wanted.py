"""What an agent tells of wanted models, for people: lines, tables, and a bar while one waits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from modelcache.domain.wanted import ModelPhase, WantedStatus
from modelcache.faces import present, units

if TYPE_CHECKING:
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


class Waiting(Protocol):
    """Shows how far one wanted model is, while it is entered."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        ...

    def __call__(self, status: WantedStatus) -> None:
        """Show this moment."""
        ...


def waiting(*, quiet: bool) -> Waiting:
    """What suits this standard error."""
    if quiet:
        return _Silence()
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        """See Waiting."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See Waiting."""

    def __call__(self, status: WantedStatus) -> None:
        """See Waiting."""


class _Lines(_Silence):
    """A line when the phase changes, and now and then: for logs."""

    def __init__(self) -> None:
        self._before: WantedStatus | None = None
        self._said_s = 0.0

    def __call__(self, status: WantedStatus) -> None:
        """See Waiting."""
        before, now_s = self._before, monotonic()
        news = (
            before is None
            or status.phase is not before.phase
            or status.trouble != before.trouble
            or now_s - self._said_s >= LINE_EVERY_S
            or status.percent - before.percent >= LINE_EVERY_PERCENT
        )
        if news and status.phase is not ModelPhase.WARM:
            self._before, self._said_s = status, now_s
            sys.stderr.write(f"{describe(status)}\n")
            sys.stderr.flush()


class _Bar(_Silence):
    """A line and a bar that are drawn over each other, with rich."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - only where there is a terminal
        from rich.live import Live  # noqa: PLC0415

        self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=10)

    def __enter__(self) -> Self:
        """See Waiting."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See Waiting."""
        self._live.stop()

    def __call__(self, status: WantedStatus) -> None:
        """See Waiting."""
        from rich.console import Group  # noqa: PLC0415 - see above
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        line = Text(describe(status))  # a plain string would be read as markup
        total = max(1, status.total_bytes)
        self._live.update(Group(line, ProgressBar(total, status.done_bytes, width=60)))


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text else text
