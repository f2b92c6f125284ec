"""Metrics of what is predicted, how well that comes true, and how fast sources are.

Bounded: models by the first digits of their ids and at most MODELS_MAX of them at once, histograms
by the knowledge's own bound, sources by that of the measuring. Values for other nodes are in the
API, not in series. The level of a prediction is a label of that name: `quantile` is Prometheus' own
for summaries, which these are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from modelcache.agent.foresight.knowledge import BUCKETS_S, RATIOS
from modelcache.agent.node import Node
from modelcache.domain.wanted import ModelPhase, WantedStatus
from modelcache.forecast.calibration import LEVELS

MODELS_MAX: Final = 50  # each is asked about anew at every scrape
ID_DIGITS: Final = 12


class ForesightMetrics(Collector):
    """Reads one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment."""
        yield from self._models(self._node.statuses())
        yield from self._times()
        yield from self._score()
        bandwidth = GaugeMetricFamily(
            "modelcache_source_bandwidth_bytes",
            "Bytes a second that a source gave last: an origin, all of them, peers, or the disk.",
            labels=["source"],
        )
        measuring = self._node.measuring
        for name in measuring.names():
            bytes_s = measuring.bytes_s(name)
            if bytes_s is not None:
                bandwidth.add_metric([name], bytes_s)
        yield bandwidth

    def _models(self, statuses: list[WantedStatus]) -> Iterator[Metric]:
        predicted = GaugeMetricFamily(
            "modelcache_predicted_seconds",
            "When a wanted model will be ready here, as predicted now.",
            labels=["model", "tier", "level"],
        )
        missing = GaugeMetricFamily(
            "modelcache_bytes_missing",
            "What of a wanted model is not here; 0 for a warm one.",
            labels=["model"],
        )
        shown: set[str] = set()
        for status in statuses:
            name = status.model_id[:ID_DIGITS]
            if not name or name in shown or len(shown) >= MODELS_MAX:
                continue
            shown.add(name)
            warm = status.phase is ModelPhase.WARM
            missing.add_metric([name], 0 if warm else status.total_bytes - status.done_bytes)
            told = self._node.foresight.wanted(status.wanted_id)
            if told is not None:
                for level, seconds in zip(LEVELS, (told.p50_s, told.p90_s), strict=True):
                    predicted.add_metric([name, told.needs.tier.value, str(level)], seconds)
        yield predicted
        yield missing

    def _times(self) -> Iterator[Metric]:
        knowledge = self._node.foresight.knowledge
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        times = HistogramMetricFamily(
            "modelcache_time_to_ready_seconds",
            "From when a model was wanted until it was warm, by how much of it was here.",
            labels=["model", "tier"],
        )
        for (model, tier), (counts, total) in sorted(knowledge.times().items()):
            buckets = list(zip(bounds, counts, strict=True))
            times.add_metric([model, tier.value], buckets=buckets, sum_value=total)
        yield times
        counts, total = knowledge.ratios()
        yield HistogramMetricFamily(
            "modelcache_prediction_ratio",
            "Truth by prediction, of starts that fetched something.",
            buckets=list(zip([*map(str, RATIOS), "+Inf"], counts, strict=True)),
            sum_value=total,
        )

    def _score(self) -> Iterator[Metric]:
        knowledge = self._node.foresight.knowledge
        standing = knowledge.standing()
        starts = CounterMetricFamily(
            "modelcache_predicted_starts",
            "Predicted starts that are over, by what became of them.",
            labels=["result"],
        )
        for finished, count in knowledge.ended().items():
            starts.add_metric(["ready" if finished else "abandoned"], count)
        yield starts
        yield GaugeMetricFamily(
            "modelcache_prediction_starts",
            "Starts that the score below rests on; at most the last 200.",
            value=standing.starts,
        )
        coverage = GaugeMetricFamily(
            "modelcache_prediction_coverage_ratio",
            "Share of starts that were ready by their prediction of a level.",
            labels=["level"],
        )
        for level, share in standing.coverage.items():
            if share is not None:
                coverage.add_metric([str(level)], share)
        yield coverage
        error = GaugeMetricFamily(
            "modelcache_prediction_error_ratio",
            "Median distance of the middle prediction from the truth, by the truth.",
        )
        if standing.error is not None:
            error.add_metric([], standing.error)
        yield error
        yield GaugeMetricFamily(
            "modelcache_prediction_confident",
            "Whether the p90 comes true 85 to 95 times of a hundred.",
            value=float(standing.confident),
        )
