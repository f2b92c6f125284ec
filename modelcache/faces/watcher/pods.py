"""Pods bound to this node: their models are wanted from that moment on, before kubelet asks.

A want's holder is the pod's uid, so that what a pod left behind while no agent lived is found and
released. What a pod asks for in a way that cannot be is told in its events, and it goes on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from lightkube import Client
from lightkube.core import resource
from lightkube.resources.core_v1 import Pod

from modelcache.agent.node import Node
from modelcache.domain.refs import Ref
from modelcache.domain.volumes import progress_line
from modelcache.domain.wanted import ModelPhase, WantedStatus, wanted_id
from modelcache.errors import ModelcacheError, UsageError
from modelcache.faces.kubernetes import pods
from modelcache.faces.kubernetes.events import PodEvents, PodKey, Told
from modelcache.faces.kubernetes.informer import Informer
from modelcache.faces.logs import Log

HOLDER: Final = "pod"
LOOK_S: Final = 1.0
PROGRESS_S: Final = 15.0  # between events that tell how far a model is
_OVER: Final = frozenset({"Succeeded", "Failed"})


@dataclass(slots=True)
class _Bound:
    """A pod that runs here, or is about to.

    told: phase and time of each model's last event. asked_s: when a refused one was asked again.
    """

    key: PodKey
    refs: tuple[Ref, ...]
    priority: int
    told: dict[str, tuple[ModelPhase, float]] = field(default_factory=dict)
    asked_s: dict[str, float] = field(default_factory=dict)


class PodWatcher:
    """See the module."""

    def __init__(
        self,
        node: Node,
        client: Client,
        name: str,
        events: PodEvents,
        *,
        log: Log | None = None,
    ) -> None:
        """name: of the Kubernetes node."""
        self._node = node
        self._events = events
        self._bound: dict[str, _Bound] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.informer: Informer[Pod] = Informer(
            client,
            Pod,
            namespace="*",
            fields={"spec.nodeName": name},
            changed=self._changed,
            gone=self._gone,
            synced=self._release_unknown,
            log=log,
        )
        self._looking = threading.Thread(target=self._look, name="modelcache-pods", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.informer.start()
        self._looking.start()

    def stop(self) -> None:
        """End; what is wanted stays wanted."""
        self.informer.stop()
        self._stopped.set()

    # Pods come and go

    def _changed(self, pod: Pod) -> None:
        key = _key(pod)
        if pod.status is not None and pod.status.phase in _OVER:
            self._gone(pod)
            return
        with self._lock:
            known = self._bound.get(key.uid)
        try:
            wanted = _wanted(pod)
        except UsageError as error:
            if known is None:
                self._keep(_Bound(key, (), 0))
                self._events.tell(Told(key, "Warning", "ModelRefused", error.message))
            return
        if known is not None and known.refs == wanted.refs and known.priority == wanted.priority:
            return
        self._keep(wanted)
        for ref in known.refs if known is not None else ():
            if ref not in wanted.refs:
                self._node.release(ref, _holder(key.uid))
        for ref in wanted.refs:
            self._want(wanted, ref)

    def _want(self, bound: _Bound, ref: Ref) -> None:
        try:
            self._node.want(
                ref,
                priority=bound.priority,
                lease=_holder(bound.key.uid),
                note=f"pod {bound.key.namespace}/{bound.key.name}"[:200],
                tenant=bound.key.namespace,
            )
        except ModelcacheError as error:
            self._events.tell(Told(bound.key, "Warning", "ModelRefused", error.message))

    def _gone(self, pod: Pod) -> None:
        with self._lock:
            bound = self._bound.pop(_key(pod).uid, None)
        for ref in bound.refs if bound is not None else ():
            self._node.release(ref, _holder(_key(pod).uid))

    def _keep(self, bound: _Bound) -> None:
        with self._lock:
            self._bound[bound.key.uid] = bound

    def _release_unknown(self) -> None:
        """Pods that went while nobody watched."""
        with self._lock:
            known = {_holder(uid) for uid in self._bound}
        ours = _holder("")
        self._node.release_where(
            lambda _, want: want.holder.startswith(ours) and want.holder not in known
        )

    # What is told of them

    def _look(self) -> None:
        while not self._stopped.wait(LOOK_S):
            statuses = {status.wanted_id: status for status in self._node.statuses()}
            with self._lock:
                bound = list(self._bound.values())
            for each in bound:
                for ref in each.refs:
                    status = statuses.get(wanted_id(ref))
                    holder = _holder(each.key.uid)
                    if status is not None and any(w.holder == holder for w in status.wants):
                        self._report(each, status)
                    else:
                        self._ask_again(each, ref)

    def _ask_again(self, bound: _Bound, ref: Ref) -> None:
        """A want that was refused, now and then: there may be room for it by now."""
        name, now_s = wanted_id(ref), monotonic()
        if now_s - bound.asked_s.get(name, float("-inf")) >= PROGRESS_S:
            bound.asked_s[name] = now_s
            self._want(bound, ref)

    def _report(self, bound: _Bound, status: WantedStatus) -> None:
        now_s = monotonic()
        phase, at_s = bound.told.get(status.wanted_id, (None, 0.0))
        same = phase is status.phase
        if same and (status.phase.settled or now_s - at_s < PROGRESS_S):
            return
        match status.phase:
            case ModelPhase.WARM:
                kind, reason = "Normal", "ModelWarm"
            case ModelPhase.FAILED:
                kind, reason = "Warning", "ModelFailed"
            case ModelPhase.QUEUED if status.trouble is not None:
                kind, reason = "Warning", "ModelRetrying"
            case _:
                kind, reason = "Normal", "ModelFetching"
                if phase is not None and now_s - at_s < PROGRESS_S:
                    return  # phases on the way are not worth an event each
        bound.told[status.wanted_id] = (status.phase, now_s)
        self._events.tell(Told(bound.key, kind, reason, progress_line(status)))


def _wanted(pod: Pod) -> _Bound:
    """What a pod asks for. Raises UsageError."""
    metadata = pod.metadata
    asked = pods.models_of((metadata.annotations if metadata else None) or {})
    volumes = [
        {"csi": volume.csi.to_dict()}
        for volume in (pod.spec.volumes if pod.spec is not None else None) or []
        if volume.csi is not None
    ]
    refs = dict.fromkeys([*asked.refs, *pods.refs_in_volumes(volumes)])
    priority = pods.SCHEDULED if asked.priority is None else asked.priority
    return _Bound(_key(pod), tuple(refs), priority)


def _key(pod: resource.Resource) -> PodKey:
    metadata: Any = pod.metadata  # type: ignore[attr-defined]
    return PodKey(metadata.namespace or "", metadata.name or "", metadata.uid or "")


def _holder(uid: str) -> str:
    return f"{HOLDER}/{uid}"
