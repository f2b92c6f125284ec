"""The controller's loop: what is there, what should be, and the changes between the two.

Everything is decided from caches that watches fill, and nothing is remembered besides: a new
leader begins where the last one was killed. A change that the API server refuses is tried again in
the next round, for it is still missing then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final

import httpx2
from lightkube import ApiError, Client
from lightkube.resources.core_v1 import Node, NodeStatus, Pod, PodStatus
from lightkube.types import PatchType

from modelcache.agent.clock import wall_clock_s
from modelcache.errors import ModelcacheError
from modelcache.faces.controller import gates, labels, progress, readiness, startup
from modelcache.faces.controller.health import Health
from modelcache.faces.controller.view import NodeView, views_of
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.events import PodEvents, PodKey, Told
from modelcache.faces.kubernetes.informer import Informer
from modelcache.faces.kubernetes.objects import ModelPrefetch, NodeModels, now_text
from modelcache.faces.logs import Log
from modelcache.faces.watcher.prefetches import Declared, declared

ROUND_S: Final = 0.5  # least time between two rounds: changes come in bursts
IDLE_S: Final = 10.0  # a round without news: time limits pass, and agents fall silent


class Controlling:
    """See the module."""

    def __init__(
        self, client: Client, *, log: Log | None = None, health: Health | None = None
    ) -> None:
        self._client = client
        self._health = health or Health()
        self._log = log
        self._news = threading.Event()
        self._events = PodEvents(client, "controller", log=log)

        def watched(kind: type[Any], **where: Any) -> Informer[Any]:  # noqa: ANN401
            return Informer(
                client,
                kind,
                changed=self._wake,
                gone=self._wake,
                synced=self._news.set,
                log=log,
                **where,
            )

        self._reports = watched(NodeModels)
        self._nodes = watched(Node)
        self._prefetches = watched(ModelPrefetch)
        self._pods = watched(Pod, namespace="*", labels={names.POD_LABEL: "true"})

    def lead(self, over: threading.Event) -> None:
        """Work until told that it is over."""
        informers = (self._reports, self._nodes, self._prefetches, self._pods)
        self._health.leads(leading=True)
        self._events.start()
        for informer in informers:
            informer.start()
        try:
            while not over.is_set():
                if all(each.wait_synced(0) for each in informers):
                    self._news.clear()
                    start_s = monotonic()
                    self.look()
                    self._health.rounded(monotonic() - start_s)
                self._health.waits()
                over.wait(ROUND_S)
                self._wait_for_news(over)
        finally:
            self._health.leads(leading=False)
            for informer in informers:
                informer.stop()
            self._events.stop()

    def look(self) -> None:
        """One round: change what is not as it should be."""
        now_s = wall_clock_s()
        views = views_of(self._reports.items())
        nodes = {_name(node): node for node in self._nodes.items()}
        wishes = self._declared()
        for name, node in nodes.items():
            self._guarded(f"Node {name}", partial(self._node, node, views, now_s))
            self._guarded(f"Node {name}", partial(self._free, node, views, wishes, now_s))
        known = {
            name: (node.metadata.labels if node.metadata is not None else None) or {}
            for name, node in nodes.items()
        }
        for item in self._prefetches.items():
            name = str(item["metadata"]["name"])
            self._guarded(f"ModelPrefetch {name}", partial(self._prefetch, item, known, views))
        for pod in self._pods.items():
            self._guarded(f"Pod {_name(pod)}", partial(self._pod, pod, views, now_s))

    # Nodes

    def _node(self, node: Node, views: Mapping[str, NodeView], now_s: float) -> None:
        metadata, name = node.metadata, _name(node)
        view = views.get(name)
        present = (metadata.labels if metadata is not None else None) or {}
        changes = labels.label_changes(present, labels.warm_labels(view, now_s))
        if changes:
            self._client.patch(
                Node, name, {"metadata": {"labels": changes}}, patch_type=PatchType.MERGE
            )
        condition = labels.agent_condition(view, now_s)
        if condition is None:
            return
        told = (node.status.conditions if node.status is not None else None) or []
        old = next((each for each in told if each.type == names.AGENT_READY), None)
        if old is None or (old.status, old.reason) != (condition["status"], condition["reason"]):
            condition["lastTransitionTime"] = condition["lastHeartbeatTime"] = now_text()
            self._client.patch(
                NodeStatus,
                name,
                {"status": {"conditions": [condition]}},
                patch_type=PatchType.STRATEGIC,
            )

    def _free(
        self, node: Node, views: Mapping[str, NodeView], wishes: list[Declared], now_s: float
    ) -> None:
        """Take away the taints of a node that has come up."""
        metadata, spec, name = node.metadata, node.spec, _name(node)
        taints = [taint.key for taint in (spec.taints if spec is not None else None) or []]
        if metadata is None or not startup.held_by(taints):
            return
        made = metadata.creationTimestamp
        age_s = now_s - made.timestamp() if made is not None else 0.0
        labels_ = metadata.labels or {}
        why = startup.is_free(views.get(name), labels_, wishes, age_s=age_s, now_s=now_s)
        if why is None:
            return
        change: list[dict[str, Any]] = []
        for at in reversed([at for at, key in enumerate(taints) if key in startup.TAINTS]):
            path = f"/spec/taints/{at}"
            change += [
                {"op": "test", "path": f"{path}/key", "value": taints[at]},
                {"op": "remove", "path": path},
            ]
        self._client.patch(Node, name, change, patch_type=PatchType.JSON)
        if self._log is not None:
            self._log.warning("startup_taint_removed", node=name, why=why)

    def _declared(self) -> list[Declared]:
        """Of objects that can be."""
        found: list[Declared] = []
        for item in self._prefetches.items():
            with suppress(ModelcacheError):
                found.append(declared(item))
        return found

    # ModelPrefetch

    def _prefetch(
        self,
        item: Mapping[str, Any],
        nodes: Mapping[str, Mapping[str, str]],
        views: Mapping[str, NodeView],
    ) -> None:
        metadata, before = item["metadata"], item.get("status") or {}
        generation, now = int(metadata.get("generation") or 0), now_text()
        try:
            status = progress.status_of(
                declared(item),
                generation=generation,
                before=before,
                nodes=nodes,
                views=views,
                now=now,
            )
        except ModelcacheError as error:
            status = progress.refused(generation, error.message, before, now)
        if status != before:
            self._client.patch(
                ModelPrefetch.Status,
                str(metadata["name"]),
                {"status": status},
                patch_type=PatchType.MERGE,
            )

    # Pods

    def _pod(self, pod: Pod, views: Mapping[str, NodeView], now_s: float) -> None:
        metadata, spec = pod.metadata, pod.spec
        if metadata is None or spec is None or metadata.deletionTimestamp is not None:
            return
        annotations = metadata.annotations or {}
        wanted = gates.wanted_by(annotations)
        waiting = [gate.name for gate in spec.schedulingGates or []]
        if names.GATE in waiting:
            made = metadata.creationTimestamp
            age_s = now_s - made.timestamp() if made is not None else 0.0
            why = gates.is_lifted(wanted, annotations, list(views.values()), age_s=age_s)
            if why is not None:
                self._lift(pod, waiting, why)
        elif spec.nodeName and wanted:
            self._condition(pod, wanted, views.get(spec.nodeName))

    def _lift(self, pod: Pod, waiting: list[str], why: str) -> None:
        at = waiting.index(names.GATE)
        change = [
            {"op": "test", "path": f"/spec/schedulingGates/{at}/name", "value": names.GATE},
            {"op": "remove", "path": f"/spec/schedulingGates/{at}"},
        ]
        self._client.patch(
            Pod, _name(pod), change, namespace=_namespace(pod), patch_type=PatchType.JSON
        )
        uid = str(pod.metadata.uid) if pod.metadata is not None else ""
        key = PodKey(_namespace(pod), _name(pod), uid)
        self._events.tell(Told(key, "Normal", "WeightsGateLifted", f"may be scheduled: {why}"))

    def _condition(self, pod: Pod, wanted: tuple[str, ...], view: NodeView | None) -> None:
        told = (pod.status.conditions if pod.status is not None else None) or []
        old = next((each for each in told if each.type == names.WEIGHTS_READY), None)
        present = None
        if old is not None:
            probed = old.lastProbeTime
            present = readiness.Told(
                old.status,
                old.reason or "",
                old.message or "",
                probed.timestamp() if probed is not None else 0.0,
            )
        condition = readiness.weights_condition(wanted, view, present, now_text())
        if condition is not None:
            self._client.patch(
                PodStatus,
                _name(pod),
                {"status": {"conditions": [condition]}},
                namespace=_namespace(pod),
                patch_type=PatchType.STRATEGIC,
            )

    # Parts

    def _wake(self, _: object) -> None:
        self._news.set()

    def _wait_for_news(self, over: threading.Event) -> None:
        until_s = monotonic() + IDLE_S
        while not over.is_set() and monotonic() < until_s and not self._news.wait(ROUND_S):
            continue

    def _guarded(self, what: str, change: Callable[[], None]) -> None:
        """One object's trouble is no matter to the others."""
        failed: Exception | None = None
        try:
            change()
        except ApiError as error:
            if error.status.code != httpx2.codes.NOT_FOUND:  # it went meanwhile
                failed = error
        except httpx2.HTTPError as error:
            failed = error
        self._health.looked(what.partition(" ")[0], failed=failed is not None)
        if failed is not None:
            self._tell(what, failed)

    def _tell(self, what: str, error: Exception) -> None:
        if self._log is not None:
            self._log.warning("change_failed", object=what, message=str(error)[:200])


def _name(item: Node | Pod) -> str:
    return str(item.metadata.name) if item.metadata is not None else ""


def _namespace(pod: Pod) -> str:
    return str(pod.metadata.namespace) if pod.metadata is not None else ""
