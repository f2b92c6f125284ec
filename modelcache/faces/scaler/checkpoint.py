"""What a scaler has seen of one `ModelScale`, as an object of the cluster holds it. Pure.

Columns of numbers as JSON, compressed by zlib, as base64: an hour of samples and 400 starts are a
few KB. zlib's checksum tells damage, and whatever is read is held against the same limits as what
is written: a content is taken as a whole, or not at all.

Beside the content stands what decides whether it still holds: of which object it is (`scaleUid`),
how its demand was read (`demandSource`), and whose starts these were (`server`). Times are Unix
times, as the next scaler runs elsewhere.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any, Final

from modelcache.errors import CorruptData
from modelcache.faces.kubernetes.objects import seconds_of
from modelcache.faces.scaler.declared import FromPods, FromPrometheus, Scale
from modelcache.forecast.demand import Sample

VERSION: Final = 1
SAMPLES_MAX: Final = 240  # of an hour: one every 15 s, four in the minute that a slope is taken of
STARTS_MAX: Final = 200  # of each kind
UNDER_WAY_MAX: Final = 500  # of each kind
UID_MAX: Final = 64
CONTENT_MAX: Final = 96 * 1024  # as base64; what the schema admits, and far below etcd's 1.5 MB
PLAIN_MAX: Final = 256 * 1024  # uncompressed
TIME_MAX_S: Final = 1e11  # the year 5138; what is above is no time in seconds

_DAMAGE: Final = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError, zlib.error)


@dataclass(frozen=True, slots=True)
class Ended:
    """A start that came to its end. ready_s: when, in Unix time; seconds: since its binding."""

    ready_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class KeptStarts:
    """Starts of one server, oldest first. under_way: whether warm, by the pod's uid."""

    warm: tuple[Ended, ...] = ()
    cold: tuple[Ended, ...] = ()
    abandoned: int = 0
    under_way: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """See the module. demand_source is empty, and there are no samples, where none is stated."""

    scale_uid: str
    written_s: float
    demand_source: str
    server: str
    samples: tuple[Sample, ...] = ()
    starts: KeptStarts = field(default_factory=KeptStarts)

    @property
    def empty(self) -> bool:
        """Whether a scaler that had it would know no more than without."""
        return not self.samples and self.starts == KeptStarts()


def source_print(source: FromPods | FromPrometheus | None) -> str:
    """What tells a source of demand from all others; empty for none."""
    return "" if source is None else _print([type(source).__name__, asdict(source)])


def server_print(scale: Scale) -> str:
    """What tells servers apart whose starts need not take equally long.

    That is the model, the pods' labels and their devices; not where demand is read, nor any number
    that only says what to make of the starts.
    """
    return _print(server_of(scale))


def server_of(scale: Scale) -> tuple[object, ...]:
    """The same, to be compared within one process."""
    return (
        *(scale.wanted, scale.model_id, dict(scale.selector)),
        *(scale.asked.gpus, scale.gpu_resource),
    )


def thinned(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """At most SAMPLES_MAX of them, as evenly as can be; the first and the newest among them."""
    last = len(samples) - 1
    if last < SAMPLES_MAX:
        return tuple(samples)
    return tuple(samples[index * last // (SAMPLES_MAX - 1)] for index in range(SAMPLES_MAX))


def content_of(found: Checkpoint) -> str:
    """The columns. What is more than the limits is left out, the oldest first."""
    samples, starts = thinned(found.samples), found.starts
    plain = {
        "demand": _rows([(each.at_s, each.rate, each.waiting) for each in samples]),
        "warm": _rows([(each.ready_s, each.seconds) for each in starts.warm[-STARTS_MAX:]]),
        "cold": _rows([(each.ready_s, each.seconds) for each in starts.cold[-STARTS_MAX:]]),
        "abandoned": starts.abandoned,
        "underWay": {
            name: sorted(uid for uid, warm in starts.under_way.items() if warm is wanted)[
                :UNDER_WAY_MAX
            ]
            for name, wanted in (("warm", True), ("cold", False))
        },
    }
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(zlib.compress(text, 9)).decode()


def spec_of(found: Checkpoint) -> dict[str, Any]:
    """The object's spec. samples, starts: for people."""
    when = datetime.fromtimestamp(found.written_s, UTC)
    ended = (found.starts.warm, found.starts.cold)
    return {
        "version": VERSION,
        "scaleUid": found.scale_uid,
        "writtenAt": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "demandSource": found.demand_source,
        "server": found.server,
        "samples": min(len(found.samples), SAMPLES_MAX),
        "starts": sum(min(len(each), STARTS_MAX) for each in ended),
        "content": content_of(found),
    }


def checkpoint_of(item: Any) -> Checkpoint:  # noqa: ANN401 - as the API server has it
    """Inverse of `spec_of`. Raises CorruptData for what no scaler of this version has written."""
    try:
        spec = item["spec"]
        version = spec["version"]
        if version != VERSION:
            raise CorruptData(f"version {version!r} is not {VERSION}, the one that is known here")
        plain = _plain(spec["content"])
        return Checkpoint(
            scale_uid=str(spec["scaleUid"]),
            written_s=seconds_of(spec["writtenAt"]),
            demand_source=str(spec["demandSource"]),
            server=str(spec["server"]),
            samples=tuple(Sample(*row) for row in _columns(plain["demand"], 3, SAMPLES_MAX)),
            starts=_starts(plain),
        )
    except _DAMAGE as error:
        why = " ".join(str(error).split())[:100]
        raise CorruptData(f"its content is damaged: {why or type(error).__name__}") from error


def _plain(content: str) -> dict[str, Any]:
    if len(content) > CONTENT_MAX:
        raise ValueError(f"it has more than {CONTENT_MAX} characters")
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(base64.b64decode(content, validate=True), PLAIN_MAX)
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("it ends too early or too late")
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise TypeError("it holds no object")
    return plain


def _starts(plain: Mapping[str, Any]) -> KeptStarts:
    under_way = plain["underWay"]
    abandoned = plain["abandoned"]
    if type(abandoned) is not int or abandoned < 0:
        raise ValueError(f"{str(abandoned)[:20]} is no number of starts")
    return KeptStarts(
        warm=tuple(Ended(*row) for row in _columns(plain["warm"], 2, STARTS_MAX)),
        cold=tuple(Ended(*row) for row in _columns(plain["cold"], 2, STARTS_MAX)),
        abandoned=abandoned,
        under_way={
            **dict.fromkeys(_uids(under_way["warm"]), True),
            **dict.fromkeys(_uids(under_way["cold"]), False),
        },
    )


def _uids(found: Any) -> list[str]:  # noqa: ANN401 - JSON
    if not isinstance(found, list) or len(found) > UNDER_WAY_MAX:
        raise TypeError("the starts under way are no list of some")
    if not all(isinstance(uid, str) and 0 < len(uid) <= UID_MAX for uid in found):
        raise ValueError("a start under way has no uid")
    return found


def _rows(rows: Sequence[tuple[float, ...]]) -> list[list[float]]:
    """Columns of rows; the first is the time, which becomes steps of milliseconds."""
    if not rows:
        return []
    times, *others = zip(*sorted(rows), strict=True)
    millis = [round(1000 * each) for each in times]
    steps = [millis[0], *(after - before for before, after in pairwise(millis))]
    return [steps, *([_short(value) for value in column] for column in others)]


def _columns(found: Any, width: int, most: int) -> Iterable[tuple[float, ...]]:  # noqa: ANN401
    """Inverse of `_rows`. Raises TypeError, ValueError."""
    if found == []:
        return []
    if not isinstance(found, list) or len(found) != width:
        raise TypeError("a table has other columns")
    if not all(isinstance(column, list) and 0 < len(column) <= most for column in found):
        raise ValueError("a table is too long, or none")
    for value in (value for column in found for value in column):
        if type(value) not in {int, float} or not math.isfinite(value) or value < 0:
            raise ValueError("a number is none, or below 0")
    times = [millis / 1000 for millis in accumulate(found[0])]
    if times[-1] > TIME_MAX_S:
        raise ValueError("a time is none")
    return zip(times, *(map(float, column) for column in found[1:]), strict=True)


def _short(value: float) -> float:
    """Six digits that count; a whole number without a point."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded


def _print(parts: Any) -> str:  # noqa: ANN401 - what JSON can hold
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
