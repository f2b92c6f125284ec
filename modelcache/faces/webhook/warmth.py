"""What is known of the cluster's models: which ids a ref has, and whether a node has them all.

It is learnt from the `NodeModels` objects that agents write, never by asking an origin: an
admission must not wait for one. An index is kept as objects change, so that looking costs the same
whatever the number of nodes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lightkube import Client

from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.wanted import wanted_id
from modelcache.errors import UsageError
from modelcache.faces.kubernetes.informer import Informer
from modelcache.faces.kubernetes.objects import NodeModels
from modelcache.faces.logs import Log

IDS_MAX: Final = 4
"""Of one ref: a tag that moved, while nodes still have what it named before."""
WARM_PERCENT: Final = 100


class Warmth(Protocol):
    """What a mutation asks. It answers at once."""

    def model_ids(self, ref: Ref) -> list[str]:
        """Ids that nodes have for a ref, those that most nodes have first; at most IDS_MAX."""
        ...

    def together_somewhere(self, refs: Sequence[Ref]) -> bool:
        """Whether some one node has all of them, complete."""
        ...


class NothingKnown:
    """Where no cluster is watched."""

    def model_ids(self, ref: Ref) -> list[str]:  # noqa: ARG002
        """None."""
        return []

    def together_somewhere(self, refs: Sequence[Ref]) -> bool:  # noqa: ARG002
        """Not that anybody knew."""
        return False


@dataclass(frozen=True, slots=True)
class Held:
    """One model of a node. wanted: the id of its ref, which objects hold without secrets."""

    wanted: str
    model_id: str
    whole: bool


class Index:
    """Who has what, by the id of a ref. Thread-safe."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[Held, ...]] = {}
        self._ids: dict[str, Counter[str]] = {}
        self._whole: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def put(self, node: str, models: Iterable[Held]) -> None:
        """Replace what is known of a node; nothing for a node that is gone."""
        held = tuple(dict.fromkeys(models))
        with self._lock:
            for old in self._nodes.pop(node, ()):
                self._forget(node, old)
            for new in held:
                self._ids.setdefault(new.wanted, Counter())[new.model_id] += 1
                if new.whole:
                    self._whole.setdefault(new.wanted, set()).add(node)
            if held:
                self._nodes[node] = held

    def model_ids(self, ref: Ref) -> list[str]:
        """See `Warmth`."""
        wanted = wanted_id(ref)
        with self._lock:
            found = sorted(self._ids.get(wanted, {}).items(), key=lambda each: (-each[1], each[0]))
        return [model_id for model_id, _ in found[:IDS_MAX]]

    def together_somewhere(self, refs: Sequence[Ref]) -> bool:
        """See `Warmth`."""
        wanted = [wanted_id(ref) for ref in refs]
        with self._lock:
            sets = sorted((self._whole.get(each, set()) for each in wanted), key=len)
            return bool(sets) and any(all(node in other for other in sets) for node in sets[0])

    def _forget(self, node: str, held: Held) -> None:
        ids = self._ids.get(held.wanted, Counter())
        ids[held.model_id] -= 1
        if ids[held.model_id] <= 0:
            del ids[held.model_id]
        if not ids:
            self._ids.pop(held.wanted, None)
        whole = self._whole.get(held.wanted, set())
        whole.discard(node)
        if not whole:
            self._whole.pop(held.wanted, None)


class ClusterWarmth(Index):
    """An index that follows the cluster from `start` to `stop`."""

    def __init__(self, client: Client, *, log: Log | None = None) -> None:
        super().__init__()
        self._informer: Informer[Any] = Informer(
            client,
            NodeModels,
            changed=lambda item: self.put(item.metadata.name, models_in(item.status)),
            gone=lambda item: self.put(item.metadata.name, ()),
            log=log,
        )

    def start(self) -> None:
        """Begin."""
        self._informer.start()

    def wait_synced(self, timeout_s: float) -> bool:
        """Whether all there is is known, within the time."""
        return self._informer.wait_synced(timeout_s)

    def stop(self) -> None:
        """End."""
        self._informer.stop()


def models_in(status: Mapping[str, Any] | None) -> Iterator[Held]:
    """The models of a `NodeModels` status; entries that are not as they should be are left out."""
    models = (status or {}).get("models")
    for entry in models if isinstance(models, list) else ():
        with suppress(UsageError, AttributeError, LookupError, TypeError, ValueError):
            wanted = entry.get("wantedId") or wanted_id(parse_ref(entry["ref"]))
            model_id = entry.get("modelId")
            whole = float(entry.get("percent") or 0) >= WARM_PERCENT
            if isinstance(model_id, str) and model_id:
                yield Held(wanted, model_id, whole)
