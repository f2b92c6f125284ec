"""Events on pods: what a person sees in `kubectl describe pod`.

Told by a thread of its own, so that nobody waits for the API server; of what is told faster than
it takes, the newest counts. One object for each pod and reason, its message and count brought up
to date, as kubelet's events are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

import httpx2
from lightkube import ApiError, Client
from lightkube.models.core_v1 import EventSource, ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event
from lightkube.types import PatchType

from modelcache.faces.logs import Log

WAITING_MAX: Final = 1000
MESSAGE_MAX: Final = 1000  # characters; the API takes 1024 bytes of ASCII
COMPONENT: Final = "modelcache"


@dataclass(frozen=True, slots=True)
class PodKey:
    """Which pod."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Told:
    """One event. kind: `Normal` or `Warning`. reason: one word in CamelCase."""

    pod: PodKey
    kind: str
    reason: str
    message: str


class PodEvents:
    """See the module. Thread-safe."""

    def __init__(self, client: Client, host: str, *, log: Log | None = None) -> None:
        """host: this node's name, which stands in the events."""
        self._client = client
        self._host = host
        self._log = log
        self._waiting: OrderedDict[tuple[PodKey, str], Told] = OrderedDict()
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="modelcache-events", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, wait_s: float = 2.0) -> None:
        """Tell what is waiting, within the time, and end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def tell(self, told: Told) -> None:
        """Have an event written; returns at once."""
        with self._changed:
            self._waiting.pop((told.pod, told.reason), None)
            self._waiting[told.pod, told.reason] = told
            while len(self._waiting) > WAITING_MAX:
                self._waiting.popitem(last=False)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if not self._waiting:
                    return
                _, told = self._waiting.popitem(last=False)
            try:
                self._write(told)
            except (ApiError, httpx2.HTTPError) as error:  # it is told, not kept: the next counts
                if self._log is not None:
                    self._log.warning("event_not_written", message=str(error)[:200])

    def _write(self, told: Told) -> None:
        pod = told.pod
        digest = sha256(f"{pod.uid} {told.reason} {self._host}".encode()).hexdigest()[:16]
        name = f"{pod.name[:200]}.{digest}"
        count = self._counts.pop(name, 0) + 1
        self._counts[name] = count
        while len(self._counts) > WAITING_MAX:
            self._counts.popitem(last=False)
        now = datetime.now(UTC)
        message = told.message[:MESSAGE_MAX]
        event = Event(
            metadata=ObjectMeta(name=name, namespace=pod.namespace),
            involvedObject=ObjectReference(
                apiVersion="v1",
                kind="Pod",
                name=pod.name,
                namespace=pod.namespace,
                uid=pod.uid,
            ),
            type=told.kind,
            reason=told.reason,
            message=message,
            count=1,
            firstTimestamp=now,
            lastTimestamp=now,
            source=EventSource(component=COMPONENT, host=self._host),
            reportingComponent=COMPONENT,
            reportingInstance=self._host,
        )
        if count == 1 and self._try(lambda: self._client.create(event), httpx2.codes.CONFLICT):
            return
        change = {
            "message": message,
            "count": count,
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        patched = self._try(
            lambda: self._client.patch(
                Event, name, change, namespace=pod.namespace, patch_type=PatchType.MERGE
            ),
            httpx2.codes.NOT_FOUND,
        )
        if not patched:  # events are kept for an hour
            self._client.create(event)

    @staticmethod
    def _try(call: Callable[[], object], harmless: int) -> bool:
        try:
            call()
        except ApiError as error:
            if error.status.code != harmless:
                raise
            return False
        return True
