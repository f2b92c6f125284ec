"""Telling the cluster what this node has: its `NodeModels`, brought up to date as things change.

An update is sent when something changed, and now and then without, so that a silent node can be
told from one that has nothing to say. What the API server does not take is sent with the next one.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any, Final

import httpx2
from lightkube import ApiError, Client
from lightkube.resources.core_v1 import Node as KubernetesNode
from lightkube.types import PatchType

from modelcache.agent.daemon import Daemon
from modelcache.agent.foresight import Prediction
from modelcache.agent.measuring import ALL_ORIGINS, DISK, MIXED, PEERS
from modelcache.domain.volumes import progress_line
from modelcache.domain.wanted import ModelPhase, WantedStatus
from modelcache.faces import units
from modelcache.faces.kubernetes.names import GROUP, VERSION
from modelcache.faces.kubernetes.objects import NodeModels, now_text
from modelcache.faces.logs import Log

MODELS_MAX: Final = 500
QUIET_S: Final = 60.0  # an update is sent at least so often
STORED_EVERY_S: Final = 10.0  # looking through a store of many models takes a while
MESSAGE_MAX: Final = 300
WHOLE_FROM_S: Final = 10.0  # from here on fractions of a second mean nothing
_RATES: Final = {
    "originBytesPerSecond": (ALL_ORIGINS, MIXED),  # where it was never read alone, with others
    "peerBytesPerSecond": (PEERS, MIXED),
    "diskBytesPerSecond": (DISK,),
}


class Reporting:
    """See the module."""

    def __init__(
        self,
        daemon: Daemon,
        client: Client,
        name: str,
        *,
        version: str,
        every_s: float,
        log: Log | None = None,
    ) -> None:
        """name: of the Kubernetes node. every_s: least time between updates."""
        self._daemon = daemon
        self._client = client
        self._name = name
        self._version = version
        self._every_s = every_s
        self._log = log
        self._stored: tuple[float, list[dict[str, Any]]] = (float("-inf"), [])
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modelcache-report", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Say that this node drains, if it does, and end."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        told: dict[str, Any] | None = None
        told_s = float("-inf")
        while True:
            last = self._stopped.is_set()
            status = self.status()
            if status != told or monotonic() - told_s > QUIET_S:
                try:
                    self._send(status)
                    told, told_s = status, monotonic()
                except (ApiError, httpx2.HTTPError) as error:
                    if self._log is not None:
                        self._log.warning("report_failed", message=str(error)[:200])
            if last:
                return
            self._stopped.wait(self._every_s)

    def status(self) -> dict[str, Any]:
        """What is told, but for the time."""
        node, usage = self._daemon.node, self._daemon.usage()
        reasons = self._daemon.not_ready()
        statuses = node.statuses()
        wanted = [_wanted(status, node.foresight.wanted(status.wanted_id)) for status in statuses]
        here = {model["modelId"] for model in wanted}
        stored = [model for model in self._stored_models() if model["modelId"] not in here]
        models = [*wanted, *stored]
        used = usage.blobs_bytes + usage.partial_bytes
        quota_left = usage.quota_bytes - used if usage.quota_bytes else usage.free_bytes
        free = max(0, min(usage.free_bytes, quota_left))
        return {
            "agent": {
                "version": self._version,
                "ready": not reasons,
                "draining": node.draining,
                "reasons": reasons,
            },
            "warm": sum(model["percent"] == 100 for model in models),  # noqa: PLR2004
            "warming": sum(status.phase is not ModelPhase.WARM for status in statuses),
            "store": {
                "usedBytes": used,
                "quotaBytes": usage.quota_bytes,
                "freeBytes": free,
                "used": units.size(used),
                "free": units.size(free),
            },
            "rates": self._rates(),
            "models": models[:MODELS_MAX],
        }

    def _rates(self) -> dict[str, int]:
        """Bytes a second, of what was measured since the agent began."""
        bytes_s = self._daemon.node.measuring.bytes_s
        measured = {
            field: next((rate for name in names if (rate := bytes_s(name))), None)
            for field, names in _RATES.items()
        }
        return {field: round(rate) for field, rate in measured.items() if rate is not None}

    def _stored_models(self) -> list[dict[str, Any]]:
        at_s, models = self._stored
        if monotonic() - at_s > STORED_EVERY_S:
            models = [
                {
                    "ref": model.refs[0] if model.refs else "",
                    "modelId": model.model_id,
                    "phase": ModelPhase.WARM.value,
                    "percent": 100,
                    "totalBytes": model.size_bytes,
                    "doneBytes": model.size_bytes,
                    "missingBytes": 0,
                    "holders": 0,
                }
                for model in self._daemon.engine.models()
                if model.warm
            ]
            self._stored = (monotonic(), models)
        return models

    def _send(self, status: dict[str, Any]) -> None:
        change = {"status": {**status, "updatedAt": now_text()}}
        try:
            self._patch(change)
        except ApiError as error:
            if error.status.code != httpx2.codes.NOT_FOUND:
                raise
            self._create()
            self._patch(change)

    def _patch(self, change: dict[str, Any]) -> None:
        self._client.patch(NodeModels.Status, self._name, change, patch_type=PatchType.MERGE)

    def _create(self) -> None:
        """It goes when its node goes."""
        metadata: dict[str, Any] = {"name": self._name}
        try:
            node = self._client.get(KubernetesNode, self._name)
        except ApiError:
            node = None  # an agent on a machine that is no node of the cluster
        if node is not None and node.metadata is not None:
            metadata["ownerReferences"] = [
                {"apiVersion": "v1", "kind": "Node", "name": self._name, "uid": node.metadata.uid}
            ]
        made = NodeModels.from_dict(
            {"apiVersion": f"{GROUP}/{VERSION}", "kind": "NodeModels", "metadata": metadata}
        )
        try:
            self._client.create(made)
        except ApiError as error:
            if error.status.code != httpx2.codes.CONFLICT:
                raise


def _told(seconds: float) -> float:
    """Rounded, so that what has hardly changed is not sent again."""
    return round(seconds) if seconds >= WHOLE_FROM_S else round(seconds, 1)


def _wanted(status: WantedStatus, told: Prediction | None) -> dict[str, Any]:
    model: dict[str, Any] = {
        "ref": status.ref,
        "wantedId": status.wanted_id,
        "modelId": status.model_id,
        "phase": status.phase.value,
        "percent": int(status.percent),
        "priority": status.priority,
        "totalBytes": status.total_bytes,
        "doneBytes": status.done_bytes,
        "holders": len(status.wants),
        "message": "" if status.phase is ModelPhase.WARM else progress_line(status)[:MESSAGE_MAX],
    }
    if status.phase is ModelPhase.WARM:
        model["missingBytes"] = 0
    elif status.total_bytes:
        model["missingBytes"] = max(0, status.total_bytes - status.done_bytes)
    if told is not None:
        model["ready"] = {
            "p50Seconds": _told(told.p50_s),
            "p90Seconds": _told(told.p90_s),
            "confident": told.confident,
        }
    if status.eta_s is not None:
        model["etaSeconds"] = round(status.eta_s)
    return model
