"""The condition of a bound pod that its weights are there, and until then how far they are. Pure.

`62% eta 41s p90 66s`: a share of the bytes of all its models, and when the last of them will be
there as its node predicts. The message is brought up to date at most every MESSAGE_EVERY_S, for a
thousand pods that start would otherwise write a thousand times a second; a status is told at once.
The time of the last message is the condition's probe time, so that nothing is remembered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelcache.domain.wanted import ModelPhase
from modelcache.faces.controller.view import Held, NodeView
from modelcache.faces.kubernetes.names import WEIGHTS_READY
from modelcache.faces.kubernetes.objects import seconds_of

MESSAGE_EVERY_S: Final = 10.0
MESSAGE_MAX: Final = 300
WARM: Final = "Warm"
FETCHING: Final = "Fetching"
FAILED: Final = "Failed"
WAITING: Final = "Waiting"


@dataclass(frozen=True, slots=True)
class Told:
    """The condition as the pod has it. probed_s: seconds since the epoch."""

    status: str
    reason: str
    message: str
    probed_s: float


def weights_condition(
    wanted: Sequence[str], view: NodeView | None, told: Told | None, now: str
) -> dict[str, Any] | None:
    """What to tell; None where it is told, or was a moment ago.

    wanted: ids of what the pod asks for. view: its node's. now: as objects hold times.
    """
    held = [view.by_wanted.get(each) for each in wanted] if view is not None else []
    status, reason, message = _standing(held)
    if told is not None and (told.status, told.reason) == (status, reason):
        soon = seconds_of(now) - told.probed_s < MESSAGE_EVERY_S
        if soon or told.message == message or status == "True":
            return None
    condition = {
        "type": WEIGHTS_READY,
        "status": status,
        "reason": reason,
        "message": message,
        "lastProbeTime": now,
    }
    if told is None or told.status != status:
        condition["lastTransitionTime"] = now
    return condition


def _standing(held: Sequence[Held | None]) -> tuple[str, str, str]:
    """Status, reason and message."""
    known = [each for each in held if each is not None]
    coming = [each for each in known if not each.warm]
    if not known:
        return "False", WAITING, "the node's agent has not begun"
    if len(known) == len(held) and not coming:
        return "True", WARM, ""
    failed = next((each for each in coming if each.phase == ModelPhase.FAILED), None)
    if failed is not None:
        return "False", FAILED, failed.message[:MESSAGE_MAX]
    return "False", FETCHING, _progress(held, known, coming)


def _progress(held: Sequence[Held | None], known: Sequence[Held], coming: Sequence[Held]) -> str:
    total = sum(each.total_bytes for each in known)
    if len(known) == len(held) and all(each.total_bytes for each in known):
        missing = sum(min(each.missing_bytes, each.total_bytes) for each in known)
        percent = 100 * (total - missing) // total
    else:
        percent = sum(each.percent for each in known) // len(held)
    words = f"{min(99, percent)}%"
    times = [each.ready for each in coming if each.ready is not None]
    if not times or len(times) < len(coming):
        return words
    p50_s, p90_s = max(each.p50_s for each in times), max(each.p90_s for each in times)
    return f"{words} eta {p50_s:.0f}s p90 {p90_s:.0f}s"
