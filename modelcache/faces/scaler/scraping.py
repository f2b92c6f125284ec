"""Reading demand: pods' metrics in Prometheus' text, or one number from a Prometheus.

What is read was written by others: an answer has a size and a time limit, is followed nowhere, and
is never repeated to anybody.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from modelcache.errors import CorruptData, SourceUnavailable, UsageError

BODY_BYTES_MAX: Final = 8 << 20  # an inference server's metrics take some hundred KiB
ANSWER_S: Final = 3.0
_TEXT: Final = "text/plain;version=0.0.4"
_TOKEN_BYTES_MAX: Final = 64 << 10


class Scraper:
    """Makes the requests. Thread-safe."""

    def __init__(self, prometheus: str = "", token_file: Path | None = None) -> None:
        """prometheus: its address, such as `http://prometheus.monitoring:9090`."""
        self._prometheus = prometheus.rstrip("/")
        self._token_file = token_file
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(ANSWER_S),
            trust_env=False,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=64, max_keepalive_connections=64),
        )

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def metrics(
        self, host: str, port: int, path: str, names: Sequence[str], labels: Mapping[str, str]
    ) -> list[float | None]:
        """For each metric all samples that have these labels, added up; None where there is none.

        Raises SourceUnavailable, CorruptData.
        """
        where = f"[{host}]" if ":" in host else host
        body = self._get(f"http://{where}:{port}{path}", {"Accept": _TEXT})
        found = [
            [value for value in _samples(body, name, labels) if math.isfinite(value)]
            for name in names
        ]
        return [math.fsum(values) if values else None for values in found]

    def query(self, query: str) -> float:
        """The one number that a query gives.

        Raises UsageError where no Prometheus is known, or the answer is not one number;
        SourceUnavailable, CorruptData.
        """
        if not self._prometheus:
            raise UsageError("no Prometheus is known; start the scaler with --prometheus")
        headers = {}
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {_read_token(self._token_file)}"
        body = self._get(f"{self._prometheus}/api/v1/query", headers, {"query": query})
        return _number(body)

    def _get(
        self, url: str, headers: Mapping[str, str], params: Mapping[str, str] | None = None
    ) -> bytes:
        until_s = monotonic() + ANSWER_S
        try:
            with self._client.stream("GET", url, headers=headers, params=params) as answer:
                body = _bounded(answer, until_s)
                if answer.status_code in {400, 422}:  # what Prometheus says of a wrong query
                    raise UsageError("Prometheus does not accept the query")
                if answer.status_code != httpx2.codes.OK:
                    raise SourceUnavailable(f"{_bare(url)} answers {answer.status_code}")
                return body
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = str(error)[:200] or type(error).__name__
            raise SourceUnavailable(f"{_bare(url)} does not answer: {why}") from error


def _bounded(answer: httpx2.Response, until_s: float) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    for part in answer.iter_bytes():
        size_bytes += len(part)
        if size_bytes > BODY_BYTES_MAX:
            raise SourceUnavailable(f"an answer has more than {BODY_BYTES_MAX} bytes")
        if monotonic() > until_s:
            raise SourceUnavailable(f"an answer took longer than {ANSWER_S:.0f} s")
        parts.append(part)
    return b"".join(parts)


def _samples(body: bytes, metric: str, labels: Mapping[str, str]) -> Iterator[float]:
    # Only lines that can be meant are parsed: an inference server tells thousands of others.
    lines = [
        line
        for line in body.decode("utf-8", "replace").split("\n")
        if line.startswith(metric) and line[len(metric) : len(metric) + 1] in {"{", " ", "\t"}
    ]
    try:
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if all(sample.labels.get(name) == value for name, value in labels.items()):
                    yield float(sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise CorruptData(f"the lines of {metric} are not Prometheus' text") from error


def _number(body: bytes) -> float:
    try:
        data = httpx2.Response(200, content=body).json()["data"]
        value = _value_of(data)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptData("what Prometheus answers is not an answer to a query") from error
    if not math.isfinite(value):
        raise UsageError("the query gives no finite number")
    return value


def _value_of(data: Mapping[str, Any]) -> float:
    kind, result = data["resultType"], data["result"]
    if kind == "scalar":
        return float(result[1])
    if kind != "vector" or len(result) != 1:
        count = len(result) if kind == "vector" else 0
        raise UsageError(
            f"the query gives {count} series of type {kind} where one number is needed; "
            "use sum(…), and `or vector(0)` where there may be none"
        )
    return float(result[0]["value"][1])


def _read_token(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(_TOKEN_BYTES_MAX).strip()
    except (OSError, UnicodeError) as error:
        raise SourceUnavailable(f"cannot read the token in {path}") from error


def _bare(url: str) -> str:
    return url.partition("?")[0]
