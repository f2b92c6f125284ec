"""A pull on the screen: bars on a terminal, a line now and then elsewhere.

With many files the bars would scroll away, so only the busiest few are shown and the rest counted.
Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from modelcache.faces import units
from modelcache.faces.displays import Display, Drawn, Silence
from modelcache.transfer.report import Phase, Progress

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS_MAX: Final = 6  # files shown at once: a screen stays a screen
LINE_EVERY_S: Final = 5.0
LINE_EVERY_SHARE: Final = 0.1
_WORDS: Final = {
    Phase.RESOLVING: "resolving",
    Phase.WAITING: "waiting for another process that fetches this",
    Phase.TRANSFERRING: "fetching",
    Phase.PUSHING: "pushing",
    Phase.PUBLISHING: "publishing",
    Phase.DONE: "done",
}

_MOVING: Final = frozenset({Phase.TRANSFERRING, Phase.PUSHING})


def display(*, quiet: bool) -> Display[Progress]:
    """The display for this standard error."""
    if quiet:
        return Silence()
    return Bars() if sys.stderr.isatty() else Lines()


class Lines(Silence[Progress]):
    """One line at most every five seconds or tenth of the way: for logs."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._said_s = -LINE_EVERY_S
        self._said_share = 0.0

    def __call__(self, moment: Progress) -> None:
        """See Display."""
        share = moment.done_bytes / moment.total_bytes if moment.total_bytes else 0.0
        news = (
            moment.phase is not self._phase
            or moment.elapsed_s - self._said_s >= LINE_EVERY_S
            or share - self._said_share >= LINE_EVERY_SHARE
        )
        if not news or moment.phase is Phase.DONE:
            return
        self._phase, self._said_s, self._said_share = moment.phase, moment.elapsed_s, share
        sys.stderr.write(f"{describe(moment)}\n")
        sys.stderr.flush()


class Bars(Drawn[Progress]):
    """Bars that are drawn over each other."""

    def __init__(self) -> None:
        super().__init__(_drawing)


def describe(progress: Progress) -> str:
    """One line: phase, bytes, rate, time left, connections."""
    words = f"{_WORDS[progress.phase]} {progress.ref}"
    if progress.phase is Phase.RESOLVING or not progress.total_bytes:
        return words
    share = 100 * progress.done_bytes // progress.total_bytes  # 100 % means all of it
    parts = [
        f"{words}: {share} %",
        f"{units.size(progress.done_bytes)} of {units.size(progress.total_bytes)}",
        units.rate(progress.rate_bytes_s),
    ]
    if progress.eta_s is not None and progress.phase in _MOVING:
        parts.append(f"{units.duration(progress.eta_s)} left")
    parts.append(units.count(progress.connections, "connection"))
    if progress.retries:
        parts.append(f"{progress.retries} {'retry' if progress.retries == 1 else 'retries'}")
    return ", ".join(parts)


def _drawing(progress: Progress) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415 - see displays
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 1))
    table.add_column(ratio=2, no_wrap=True, overflow="ellipsis", max_width=44)
    table.add_column(width=30)
    table.add_column(justify="right", no_wrap=True)
    total = progress.total_bytes
    if total:
        table.add_row(
            Text(f"{progress.files_done}/{progress.files_total} files", style="bold"),
            ProgressBar(total=total, completed=progress.done_bytes),
            f"{units.size(progress.done_bytes)} of {units.size(total)}",
        )
    for file in progress.active[:BARS_MAX]:
        bar = ProgressBar(total=max(1, file.size_bytes), completed=file.done_bytes)
        # A plain string would be read as markup, and a file may be called `[/b]`.
        table.add_row(Text(f"  {file.path}"), bar, units.size(file.size_bytes))
    hidden = len(progress.active) - BARS_MAX
    lines: list[RenderableType] = [Text(describe(progress)), table]
    if hidden > 0:
        lines.append(Text(f"  + {hidden} more under way", style="dim"))
    return Group(*lines)
