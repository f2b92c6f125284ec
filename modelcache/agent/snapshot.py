"""What a pull answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelcache.domain.manifests import ModelId
from modelcache.transfer.report import Report


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A warm model: where it is and what it is.

    fetched_bytes: taken from sources by this call; 0 when it was warm. from_cache: the origin was
    not even asked.
    """

    path: Path
    model_id: ModelId
    ref: str
    fetched_bytes: int = 0
    from_cache: bool = False
    report: Report | None = None
