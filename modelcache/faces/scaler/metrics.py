"""Prometheus metrics of what is forecast: a dozen series for each `ModelScale`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelcache.errors import ModelcacheError
from modelcache.faces.scaler.checkpoint_store import CheckpointStore
from modelcache.faces.scaler.outlooks import Outlooks
from modelcache.faces.scaler.restoring import Restoring
from modelcache.faces.scaler.series import NAMES, Series, series_of

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class ScalerMetrics:
    """Of one scaler, in a registry of their own."""

    def __init__(self, outlooks: Outlooks, store: CheckpointStore, restoring: Restoring) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Forecasts(outlooks))
        self.registry.register(_Checkpoints(store, restoring))
        self.requests = Counter(
            "modelcache_scaler_requests",
            "Questions, by who asks (metrics, keda, scheduler) and how they ended.",
            ["face", "result"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "modelcache_scaler_request_seconds",
            "Time from a question to its answer.",
            ["face"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.certificate_end = Gauge(
            "modelcache_scaler_certificate_end_timestamp_seconds",
            "When the certificate that a face (metrics, keda) shows ends, in Unix time.",
            ["face"],
            registry=self.registry,
        )
        ProcessCollector(namespace="modelcache", registry=self.registry)


class _Forecasts(Collector):
    def __init__(self, outlooks: Outlooks) -> None:
        self._outlooks = outlooks

    def collect(self) -> Iterator[Metric]:
        """Everything at the moment of the scrape; what is not known has no sample."""
        families: dict[str, GaugeMetricFamily] = {}
        for series in self._all():
            if series.value is None:
                continue
            name = series.metric
            family = families.get(name)
            if family is None:
                labels = ["namespace", *series.labels]
                family = GaugeMetricFamily(name, NAMES[name], labels=labels)
                families[name] = family
            family.add_metric([series.namespace, *series.labels.values()], series.value)
        yield from families.values()

    def _all(self) -> Iterator[Series]:
        try:
            view = self._outlooks.view()
        except ModelcacheError:
            return
        for scale in view.scales.values():
            try:
                found = self._outlooks.of(scale, view)
            except ModelcacheError:
                continue
            shared = self._outlooks.shared_slots(scale, view)
            yield from series_of(scale, found, shared)


class _Checkpoints(Collector):
    def __init__(self, store: CheckpointStore, restoring: Restoring) -> None:
        self._store, self._restoring = store, restoring

    def collect(self) -> Iterator[Metric]:
        """What became of checkpoints, and how old those were that this scaler began with."""
        results = CounterMetricFamily(
            "modelcache_scaler_checkpoints",
            "Checkpoints that were loaded or unusable, written or refused.",
            labels=["result"],
        )
        for result, count in self._store.counts.items():
            results.add_metric([result], count)
        yield results
        ages = GaugeMetricFamily(
            "modelcache_scaler_checkpoint_age_seconds",
            "How old a checkpoint was when it was loaded: so long nobody may have looked.",
            labels=["namespace", "model"],
        )
        for (namespace, name), age_s in self._restoring.ages_s().items():
            ages.add_metric([namespace, name], age_s)
        yield ages
