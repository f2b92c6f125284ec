"""What the parts of a node share: the wanted models, what happened, and who waits for news.

`changed` guards all that is on the board. It is held for moments: no file is written and nobody
outside is called while it is.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from modelcache.agent.clock import wall_clock_s
from modelcache.agent.events import EventLog
from modelcache.agent.measuring import Measuring
from modelcache.agent.progressing import Wanted
from modelcache.agent.tally import Tally
from modelcache.planner.arbiter import ArbiterEvent

ARBITER_EVENTS_MAX: Final = 10_000  # a few for each attempt; they are taken off within moments


class Board:
    """See the module."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.wanted: dict[str, Wanted] = {}
        self.events = EventLog(wall_clock_s)
        self.tally = Tally()
        self.measuring = Measuring()
        self.arbiter_events: deque[ArbiterEvent] = deque(maxlen=ARBITER_EVENTS_MAX)
        self.draining = False
        self.closing = False

    def post(self, event: ArbiterEvent) -> None:
        """Let the node's own thread have the arbiter decide anew. The caller holds `changed`."""
        self.arbiter_events.append(event)
        self.changed.notify_all()

    def running(self) -> list[Wanted]:
        """Models with an attempt under way. The caller holds `changed`."""
        return [wanted for wanted in self.wanted.values() if wanted.attempt is not None]
