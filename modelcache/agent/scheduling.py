"""Which wanted models have their turn: the most urgent first, and in the place of less urgent ones.

Pure: what is due and what runs in, whom to begin and whom to stop out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modelcache.agent.progressing import Wanted


@dataclass(frozen=True, slots=True)
class Turns:
    """Attempts to begin, most urgent first; and attempts to stop, to make place for others."""

    begin: list[Wanted]
    stop: list[Wanted]


def turns(wanted: Iterable[Wanted], *, pulls_max: int, now_s: float) -> Turns:
    """Who begins and who stops now.

    One that runs is stopped only for one of a higher priority, and no more of them than wait. One
    that was told to stop still has its place.
    """
    everyone = list(wanted)
    waiting = sorted((each for each in everyone if each.waits(now_s)), key=_urgency)
    running = [each for each in everyone if each.attempt is not None]
    begin = waiting[: max(0, pulls_max - len(running))]
    left = waiting[len(begin) :]
    stopping = sum(bool(each.attempt and each.attempt.stopped) for each in running)
    victims = sorted(
        (each for each in running if each.attempt and not each.attempt.stopped),
        key=_urgency,
        reverse=True,
    )
    stop = []
    for candidate, victim in zip(left[stopping:], victims, strict=False):
        if victim.desired.priority < candidate.desired.priority:
            stop.append(victim)
    return Turns(begin, stop)


def next_due_s(wanted: Iterable[Wanted]) -> float | None:
    """When the next attempt should begin, of those that do not run."""
    due = (each.due_s for each in wanted if each.attempt is None and each.desired.wants)
    return min((at_s for at_s in due if at_s is not None), default=None)


def _urgency(wanted: Wanted) -> tuple[int, float, str]:
    desired = wanted.desired
    since_s = min((want.since_s for want in desired.wants), default=0.0)
    return -desired.priority, since_s, wanted.wanted_id
