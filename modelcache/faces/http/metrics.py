"""Metrics for Prometheus: read from the daemon when they are asked for, kept nowhere else.

Labels are bounded: models by the first digits of their id and at most MODELS_MAX of them, sources
by kind and host with a bound of the tally's, peers only as sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import modelcache
from modelcache.agent.daemon import Daemon
from modelcache.agent.tally import BUCKETS_S
from modelcache.domain.wanted import ModelPhase, WantedStatus
from modelcache.faces.http.foresight_metrics import ForesightMetrics

MODELS_MAX: Final = 200  # more series of one node would help nobody; the most urgent are shown
ID_DIGITS: Final = 12
PEER_COUNTERS_MAX: Final = 64
_PRESENT: Final = frozenset(
    {"connections", "namesakes"}
)  # of the peers' numbers, what goes down again

_TROUBLES: Final = ("timed_out", "failed", "doubted")  # told even where there were none


def registry_for(daemon: Daemon) -> CollectorRegistry:
    """A registry of its own: what else runs in this process does not get into it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Daemon(daemon))
    registry.register(ForesightMetrics(daemon.node))
    ProcessCollector(namespace="modelcache", registry=registry)
    return registry


class _Daemon(Collector):
    """Reads one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment."""
        daemon = self._daemon
        version = {"version": modelcache.__version__, "node": daemon.node.name}
        yield InfoMetricFamily("modelcache", "The agent.", value=version)
        ready = float(not daemon.not_ready())
        yield GaugeMetricFamily("modelcache_ready", "Whether it takes work.", value=ready)
        draining = float(daemon.node.draining)
        yield GaugeMetricFamily("modelcache_draining", "Whether it is draining.", value=draining)
        yield from self._store()
        yield from self._models(daemon.node.statuses())
        yield from self._sums()
        yield from self._streams()
        yield from self._peers()

    def _store(self) -> Iterator[Metric]:
        usage = self._daemon.usage()
        stored = GaugeMetricFamily(
            "modelcache_store_bytes", "What the store takes, by kind.", labels=["kind"]
        )
        stored.add_metric(["blobs"], usage.blobs_bytes)
        stored.add_metric(["partial"], usage.partial_bytes)
        yield stored
        yield GaugeMetricFamily(
            "modelcache_store_quota_bytes", "Its quota; 0 for none.", value=usage.quota_bytes
        )
        yield GaugeMetricFamily(
            "modelcache_store_free_bytes", "Free on its filesystem.", value=usage.free_bytes
        )

    def _models(self, statuses: list[WantedStatus]) -> Iterator[Metric]:
        phases = Counter(status.phase for status in statuses)
        wanted = GaugeMetricFamily(
            "modelcache_wanted_models", "Wanted models, by phase.", labels=["phase"]
        )
        for phase in ModelPhase:
            wanted.add_metric([phase.value], phases[phase])
        yield wanted
        size = GaugeMetricFamily(
            "modelcache_model_size_bytes", "Size of a wanted model.", labels=["model"]
        )
        present = GaugeMetricFamily(
            "modelcache_model_present_bytes", "What of it is here.", labels=["model"]
        )
        rate = GaugeMetricFamily(
            "modelcache_model_rate_bytes_per_second", "How fast it comes.", labels=["model"]
        )
        left = GaugeMetricFamily(
            "modelcache_model_eta_seconds", "How long the rest will take.", labels=["model"]
        )
        # Two refs may mean one model; it is shown once.
        shown = {s.model_id[:ID_DIGITS]: s for s in reversed(statuses) if s.model_id}
        for name in list(reversed(shown))[:MODELS_MAX]:
            status = shown[name]
            size.add_metric([name], status.total_bytes)
            present.add_metric([name], status.done_bytes)
            rate.add_metric([name], status.rate_bytes_s)
            if status.eta_s is not None:
                left.add_metric([name], status.eta_s)
        yield from (size, present, rate, left)
        yield GaugeMetricFamily(
            "modelcache_connections",
            "Connections of pulls to their sources.",
            value=sum(status.connections for status in statuses),
        )

    def _sums(self) -> Iterator[Metric]:
        sums = self._daemon.node.tally.sums()
        pulls = CounterMetricFamily(
            "modelcache_pulls", "Attempts that are over, by how they ended.", labels=["result"]
        )
        for result, count in sorted(sums.pulls.items()):
            pulls.add_metric([result], count)
        yield pulls
        received = CounterMetricFamily(
            "modelcache_received_bytes",
            "What came from sources, of pulls that are over.",
            labels=["kind", "host"],
        )
        for (kind, host), received_bytes in sorted(sums.received.items()):
            received.add_metric([kind, host], received_bytes)
        yield received
        yield CounterMetricFamily(
            "modelcache_stored_bytes", "What came into the store.", value=sums.stored_bytes
        )
        yield CounterMetricFamily(
            "modelcache_retries", "Requests of pulls that were repeated.", value=sums.retries
        )
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        yield HistogramMetricFamily(
            "modelcache_pull_seconds",
            "How long attempts took, however they ended.",
            buckets=list(zip(bounds, sums.seconds, strict=True)),
            sum_value=sums.seconds_sum,
        )

    def _streams(self) -> Iterator[Metric]:
        mounts, troubles = self._daemon.volumes.streams()
        yield GaugeMetricFamily(
            "modelcache_streaming_volumes", "Shown before all was here.", value=mounts
        )
        met = CounterMetricFamily(
            "modelcache_streaming_troubles", "What readers met, by its name.", labels=["what"]
        )
        for what, count in {**dict.fromkeys(_TROUBLES, 0), **troubles}.items():
            met.add_metric([what], count)
        yield met

    def _peers(self) -> Iterator[Metric]:
        known = self._daemon.neighbours
        if known is None:
            return
        peers = GaugeMetricFamily(
            "modelcache_peers", "Other nodes of the cell, by whether they answer.", labels=["state"]
        )
        rows = known.peers()
        reachable = sum(bool(row.get("reachable", True)) for row in rows)
        peers.add_metric(["reachable"], reachable)
        peers.add_metric(["lost"], len(rows) - reachable)
        yield peers
        for name, value in sorted(known.counters().items())[:PEER_COUNTERS_MAX]:
            family = GaugeMetricFamily if name in _PRESENT else CounterMetricFamily
            text = f"Peers: {name.replace('_', ' ')}."
            yield family(f"modelcache_peer_{name}", text, value=value)
