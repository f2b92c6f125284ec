"""The cluster as forecasts need it: where models are, which places are free, whose pods start.

Watches fill caches; a thread of its own makes a new `View` of them within `REBUILD_S` of a change,
so that whoever asks reads what is ready, and waits for nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from lightkube import Client
from lightkube.operators import not_in
from lightkube.resources.core_v1 import Node, Pod

from modelcache.agent.clock import wall_clock_s
from modelcache.errors import UsageError
from modelcache.faces.controller.view import NodeView, view_of
from modelcache.faces.kubernetes.informer import Informer
from modelcache.faces.kubernetes.objects import ModelScale, NodeModels
from modelcache.faces.logs import Log
from modelcache.faces.scaler.declared import FromPods, Key, Scale, key_of, scale_of
from modelcache.faces.scaler.facts import (
    FINISHED,
    Meta,
    NodeFacts,
    PodFacts,
    node_facts,
    pod_facts,
    used_devices,
)
from modelcache.forecast.slots import Held, Place

REBUILD_S: Final = 0.25  # least time between two views: changes come in bursts
IDLE_S: Final = 5.0  # without news: agents fall silent, which nothing tells
SCALES_MAX: Final = 5000


@dataclass(frozen=True, slots=True)
class Report:
    """What is remembered of a `NodeModels`."""

    metadata: Meta
    view: NodeView


class Chosen:
    """Pods by what is asked for: each is looked at once, however many scales there are."""

    def __init__(
        self, pods: Iterable[PodFacts], asked: Iterable[tuple[str, Mapping[str, str]]]
    ) -> None:
        """asked: namespaces and selectors, none of them empty."""
        self._found: dict[tuple[str, str, str], list[PodFacts]] = {
            _first(namespace, selector): [] for namespace, selector in asked
        }
        for pod in pods:
            for name, value in pod.labels.items():
                found = self._found.get((pod.metadata.namespace, name, value))
                if found is not None:
                    found.append(pod)

    def of(self, namespace: str, selector: Mapping[str, str]) -> tuple[PodFacts, ...]:
        """Those of a namespace that have these labels."""
        found = self._found.get(_first(namespace, selector), ())
        return tuple(pod for pod in found if pod.has(selector))


@dataclass(frozen=True, slots=True)
class Server:
    """The pods of one scale, and what is known of its model."""

    pods: tuple[PodFacts, ...] = ()
    model_id: str = ""
    model_bytes: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """All of it at one moment. refused: why an object is not among the scales.

    places: by resource; their models are named by `Scale.slot_key`. number: grows with each view.
    """

    number: int = 0
    at_s: float = 0.0
    scales: Mapping[Key, Scale] = field(default_factory=dict)
    refused: Mapping[Key, str] = field(default_factory=dict)
    servers: Mapping[Key, Server] = field(default_factory=dict)
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    reports: Mapping[str, NodeView] = field(default_factory=dict)
    pods: Chosen = field(default_factory=lambda: Chosen((), ()))

    def pods_with(self, namespace: str, selector: Mapping[str, str]) -> tuple[PodFacts, ...]:
        """Pods of a namespace that have these labels, which a scale has to have asked for."""
        return self.pods.of(namespace, selector)


class Cluster:
    """See the module. Thread-safe."""

    def __init__(self, client: Client, *, log: Log | None = None) -> None:
        self._log = log
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._view: View | None = None
        self._listeners: list[Callable[[View], None]] = []
        self._parsed: dict[Key, tuple[str, Scale | str]] = {}

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

        self._reports: Informer[Report] = watched(NodeModels, keep=_report)
        self._nodes: Informer[NodeFacts] = watched(Node, keep=node_facts)
        self._pods: Informer[PodFacts] = watched(
            Pod, namespace="*", fields={"status.phase": not_in(FINISHED)}, keep=pod_facts
        )
        self._scales: Informer[Any] = watched(ModelScale, namespace="*")
        self._thread = threading.Thread(target=self._run, name="modelcache-scaler-view")

    def listen(self, listener: Callable[[View], None]) -> None:
        """Have it called with each view, in the order of their making. Before `start`."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin."""
        for informer in self._informers():
            informer.start()
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        self._news.set()
        for informer in self._informers():
            informer.stop()
        if self._thread.is_alive():
            self._thread.join()

    def view(self) -> View | None:
        """The newest; None until everything has been listed once."""
        return self._view

    def item(self, key: Key) -> Mapping[str, Any] | None:
        """A `ModelScale` as the API server has it."""
        namespace, name = key
        found: Mapping[str, Any] | None = self._scales.get(name, namespace)
        return found

    def _informers(self) -> tuple[Informer[Any], ...]:
        return self._reports, self._nodes, self._pods, self._scales

    def _wake(self, _: object) -> None:
        self._news.set()

    def _run(self) -> None:
        number = 0
        while not self._stopped.is_set():
            self._news.wait(IDLE_S)
            self._news.clear()
            begun_s = monotonic()
            if all(each.wait_synced(0) for each in self._informers()):
                number += 1
                view = self._look(number)
                self._view = view
                for listener in self._listeners:
                    listener(view)
            self._stopped.wait(max(0.0, REBUILD_S - (monotonic() - begun_s)))

    def _look(self, number: int) -> View:
        now_s = wall_clock_s()
        scales, refused = self._read_scales()
        reports = {
            each.metadata.name: each.view
            for each in self._reports.items()
            if not each.view.silent(now_s)
        }
        pods = self._pods.items()
        named = _Names(scales.values(), reports.values())
        chosen = Chosen(pods, _selectors(scales.values()))
        return View(
            number=number,
            at_s=now_s,
            scales=scales,
            refused=refused,
            servers={key: _server(each, chosen, named) for key, each in scales.items()},
            places=_places(
                scales.values(), self._nodes.items(), used_devices(pods), reports, named
            ),
            reports=reports,
            pods=chosen,
        )

    def _read_scales(self) -> tuple[dict[Key, Scale], dict[Key, str]]:
        scales: dict[Key, Scale] = {}
        refused: dict[Key, str] = {}
        parsed: dict[Key, tuple[str, Scale | str]] = {}
        for item in sorted(self._scales.items(), key=key_of):
            key, version = key_of(item), _version(item)
            before = self._parsed.get(key)
            found = before[1] if before is not None and before[0] == version else _parse(item)
            parsed[key] = (version, found)
            if isinstance(found, str):
                refused[key] = found
            elif len(scales) < SCALES_MAX:
                scales[key] = found
            else:
                refused[key] = f"there are more than {SCALES_MAX} of them"
        self._parsed = parsed
        return scales, refused


class _Names:
    """Which scales mean the model of a report's line."""

    def __init__(self, scales: Iterable[Scale], reports: Iterable[NodeView]) -> None:
        self._by_name: dict[str, list[str]] = {}
        self.ids: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        for scale in scales:
            self._by_name.setdefault(scale.wanted or scale.model_id, []).append(scale.slot_key)
        extra: dict[str, list[str]] = {}
        for report in reports:
            for held in report.models:
                for key in self._by_name.get(held.wanted_id) or self.meant(held.model_id):
                    self._learn(key, held.model_id, held.total_bytes)
                    # What another node has of it without anybody's wish is known by its id alone.
                    if held.model_id and key not in extra.setdefault(held.model_id, []):
                        extra[held.model_id].append(key)
        for name, keys in extra.items():
            self._by_name[name] = list(dict.fromkeys([*self._by_name.get(name, ()), *keys]))

    def meant(self, *called: str) -> list[str]:
        """Keys of scales, for any of a model's names."""
        found = (key for name in called if name for key in self._by_name.get(name, ()))
        return list(dict.fromkeys(found))

    def _learn(self, key: str, model_id: str, size_bytes: int) -> None:
        if model_id:
            self.ids[key] = model_id
        self.sizes[key] = max(size_bytes, self.sizes.get(key, 0))


def _selectors(scales: Iterable[Scale]) -> Iterator[tuple[str, Mapping[str, str]]]:
    for scale in scales:
        yield scale.key[0], scale.selector
        if isinstance(scale.source, FromPods):
            yield scale.key[0], scale.source.selector


def _first(namespace: str, selector: Mapping[str, str]) -> tuple[str, str, str]:
    name, value = next(iter(selector.items()))
    return namespace, name, value


def _server(scale: Scale, pods: Chosen, named: _Names) -> Server:
    slot_key = scale.slot_key
    return Server(
        pods=pods.of(scale.key[0], scale.selector),
        model_id=named.ids.get(slot_key, scale.model_id),
        model_bytes=named.sizes.get(slot_key, 0),
    )


def _places(
    scales: Iterable[Scale],
    nodes: list[NodeFacts],
    used: Mapping[str, Mapping[str, int]],
    reports: Mapping[str, NodeView],
    named: _Names,
) -> dict[str, tuple[Place, ...]]:
    held = {name: _held(report, named) for name, report in reports.items()}
    return {
        resource: tuple(
            Place(
                name=node.metadata.name,
                free_gpus=node.devices.get(resource, 0)
                - used.get(node.metadata.name, {}).get(resource, 0),
                schedulable=node.schedulable,
                models=held.get(node.metadata.name, {}),
            )
            for node in nodes
        )
        for resource in {scale.gpu_resource for scale in scales}
    }


def _held(report: NodeView, named: _Names) -> dict[str, Held]:
    found: dict[str, Held] = {}
    for each in report.models:
        for key in named.meant(each.wanted_id, each.model_id):
            if key not in found or each.warm:
                found[key] = Held(each.warm, each.missing_bytes, each.ready)
    return found


def _report(item: Any) -> Report:  # noqa: ANN401 - a NodeModels
    metadata = item.metadata
    return Report(Meta("", metadata.name, metadata.resourceVersion), view_of(item))


def _parse(item: Mapping[str, Any]) -> Scale | str:
    try:
        return scale_of(item)
    except UsageError as error:
        return error.message


def _version(item: Any) -> str:  # noqa: ANN401
    return str(item.metadata.resourceVersion)
