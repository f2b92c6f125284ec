"""`ModelPrefetch` objects that are for this node: their refs are wanted while they exist."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lightkube import Client
from lightkube.resources.core_v1 import Node as KubernetesNode

from modelcache.agent.clock import wall_clock_s
from modelcache.agent.node import Node
from modelcache.config import parse_duration
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.storage_uris import is_claim, plain
from modelcache.domain.wanted import Want, wanted_id
from modelcache.errors import ModelcacheError, UsageError
from modelcache.faces.kubernetes.informer import Informer
from modelcache.faces.kubernetes.objects import ModelPrefetch, seconds_of
from modelcache.faces.logs import Log

HOLDER: Final = "prefetch"
HOLD_DEFAULT: Final = "10m"


@dataclass(frozen=True, slots=True)
class Declared:
    """What one object wants of nodes. expires_at_s: seconds since the epoch; None for never.

    ignored: URIs of claims, which stand in lists of what KServe serves, and need no fetching.
    """

    name: str
    refs: tuple[Ref, ...]
    selector: Mapping[str, str]
    priority: int
    expires_at_s: float | None
    parallelism: int
    admitted: frozenset[str]
    suspended: bool
    holds: bool = False
    hold_timeout_s: float = 0.0
    ignored: tuple[str, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is meant."""
        return all(labels.get(name) == value for name, value in self.selector.items())

    def is_for(self, node: str, labels: Mapping[str, str]) -> bool:
        """Whether a node is to have the models now."""
        admitted = not self.parallelism or node in self.admitted
        return not self.suspended and admitted and self.selects(labels)


def declared(item: Mapping[str, Any]) -> Declared:
    """Read a `ModelPrefetch`. Raises UsageError for what its schema cannot refuse."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    try:
        made_s = seconds_of(_of(metadata, "creationTimestamp"))
        retention = spec.get("retention")
        expires_s = None if retention is None else made_s + _seconds(retention)
        hold_s = _seconds(spec.get("holdTimeout") or HOLD_DEFAULT)
    except ValueError as error:
        raise UsageError(f"the object's times cannot be read: {error}") from error
    include, exclude = spec.get("include") or [], spec.get("exclude") or []
    written = spec.get("refs") or []
    return Declared(
        name=_of(metadata, "name"),
        refs=tuple(
            parse_ref(plain(uri)).filtered(include, exclude) for uri in written if not is_claim(uri)
        ),
        selector=spec.get("nodeSelector") or {},
        priority=int(spec.get("priority", 30)),
        expires_at_s=expires_s,
        parallelism=int(spec.get("parallelism") or 0),
        admitted=frozenset((item.get("status") or {}).get("admitted") or ()),
        suspended=bool(spec.get("suspend")),
        holds=bool(spec.get("holdNodes")),
        hold_timeout_s=hold_s,
        ignored=tuple(filter(is_claim, written)),
    )


class PrefetchWatcher:
    """Wants and releases as objects, and this node's labels, change."""

    def __init__(self, node: Node, client: Client, name: str, *, log: Log | None = None) -> None:
        """name: of the Kubernetes node."""
        self._node = node
        self._name = name
        self._log = log
        self._turn = threading.Lock()
        self._objects: Informer[Any] = Informer(
            client, ModelPrefetch, changed=self._again, gone=self._again, synced=self._look, log=log
        )
        self._nodes: Informer[KubernetesNode] = Informer(
            client,
            KubernetesNode,
            fields={"metadata.name": name},
            changed=self._again,
            synced=self._look,
            log=log,
        )

    def start(self) -> None:
        """Begin."""
        self._nodes.start()
        self._objects.start()

    def stop(self) -> None:
        """End; what is wanted stays wanted."""
        self._nodes.stop()
        self._objects.stop()

    def _again(self, _: object) -> None:
        self._look()

    def _look(self) -> None:
        """Want what is to be here, and nothing else of what objects wanted before."""
        if not (self._nodes.wait_synced(0) and self._objects.wait_synced(0)):
            return
        with self._turn:
            node = self._nodes.get(self._name)
            labels = (node.metadata.labels if node is not None and node.metadata else None) or {}
            present = {
                (status.wanted_id, want.holder): want
                for status in self._node.statuses()
                for want in status.wants
            }
            kept: set[tuple[str, str]] = set()
            for item in self._objects.items():
                try:
                    kept |= self._want(item, labels, present)
                except ModelcacheError as error:  # no matter to the others; its status tells
                    self._tell(item, error)
            self._node.release_where(
                lambda wanted, want: (
                    want.holder.startswith(f"{HOLDER}/") and (wanted, want.holder) not in kept
                )
            )

    def _want(
        self,
        item: Mapping[str, Any],
        labels: Mapping[str, str],
        present: Mapping[tuple[str, str], Want],
    ) -> set[tuple[str, str]]:
        """Want one object's models; which wants it has. present: wants that there are."""
        wanted = declared(item)
        holder = f"{HOLDER}/{wanted.name}"[:128]
        left_s = None if wanted.expires_at_s is None else wanted.expires_at_s - wall_clock_s()
        if not wanted.is_for(self._name, labels) or (left_s is not None and left_s <= 0):
            return set()
        found = set()
        for ref in wanted.refs:
            key = (wanted_id(ref), holder)
            found.add(key)
            before = present.get(key)
            if before is None or before.priority != wanted.priority:
                self._node.want(
                    ref,
                    priority=wanted.priority,
                    lease=holder,
                    ttl_s=left_s,
                    note=f"ModelPrefetch {wanted.name}"[:200],
                )
        return found

    def _tell(self, item: Mapping[str, Any], error: ModelcacheError) -> None:
        if self._log is not None:
            name = _of(item["metadata"], "name")
            self._log.warning("prefetch_refused", name=name, message=error.message)


def _of(metadata: Any, name: str) -> str:  # noqa: ANN401 - of a dict or of an ObjectMeta
    value = metadata.get(name) if isinstance(metadata, dict) else getattr(metadata, name)
    return str(value or "")


def _seconds(text: str) -> float:
    """`1h30m`: a sum of durations."""
    total, digits = 0.0, ""
    for char in text:
        digits += char
        if not char.isdigit():
            total += parse_duration(digits)
            digits = ""
    return total
