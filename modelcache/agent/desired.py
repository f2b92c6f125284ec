"""What this node is to have: the models wanted, by whom, kept in files that survive a restart.

One small file for each model, replaced by write, fsync, rename. A file that cannot be read is
passed over, told of, and left for whoever looks into it; it holds nothing back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import ModelId, canonical_json
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.wanted import Want, wanted_id
from modelcache.errors import UsageError
from modelcache.store import Store, files

FORMAT: Final = 1
UNKNOWN: Final = ModelId("")  # what a ref means that was never resolved
DESIRED_MAX: Final = 1000  # models of one node; each has a thread's worth of attention in turn
WANTS_MAX: Final = 1024  # holders of one model: more than a node runs pods


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """One model that is wanted. model_id: what the ref was last known to mean; empty before."""

    ref: Ref
    wants: tuple[Want, ...] = ()
    model_id: ModelId = UNKNOWN

    @property
    def wanted_id(self) -> str:
        """Its name in the API and on the disk."""
        return wanted_id(self.ref)

    @property
    def priority(self) -> int:
        """The highest of its wants."""
        return max((want.priority for want in self.wants), default=0)

    def with_want(self, want: Want) -> DesiredModel:
        """With one more; a holder has one, and the newer replaces the older.

        Raises UsageError when there are too many.
        """
        others = tuple(known for known in self.wants if known.holder != want.holder)
        if len(others) >= WANTS_MAX:
            raise UsageError(f"{self.ref.redacted()} has {WANTS_MAX} leases; release some first")
        return replace(self, wants=(*others, want))

    def without(self, holder: str | None) -> DesiredModel:
        """Without one holder's want; without any for None."""
        kept = () if holder is None else tuple(w for w in self.wants if w.holder != holder)
        return replace(self, wants=kept)

    def expired(self, now_s: float) -> DesiredModel:
        """Without the wants whose time is over. now_s: seconds since the epoch."""
        return replace(
            self,
            wants=tuple(w for w in self.wants if w.expires_at_s is None or w.expires_at_s > now_s),
        )

    def next_expiry_s(self) -> float | None:
        """When the first of its wants expires, if one does."""
        return min((w.expires_at_s for w in self.wants if w.expires_at_s is not None), default=None)


class DesiredFolder:
    """The files. Calls for one model must not overlap: the node has them under its lock."""

    def __init__(self, store: Store) -> None:
        self._folder = store.layout.desired

    def save(self, model: DesiredModel) -> None:
        """Durable on return. Raises StoreError."""
        plain = {
            "format": FORMAT,
            "model_id": model.model_id,
            "ref": str(model.ref),
            "wants": [want.to_json() for want in model.wants],
        }
        path = self._path(model)
        with files.translated(path):
            files.atomic_write(path, canonical_json(plain))

    def remove(self, model: DesiredModel) -> None:
        """Forget a model; it may be gone already. Raises StoreError."""
        with files.translated(self._folder):
            files.unlink(self._path(model))
            files.fsync_directory(self._folder)

    def load(self) -> Iterator[DesiredModel | Path]:
        """Every model, in a stable order; the path instead where a file cannot be read."""
        with files.translated(self._folder):
            paths = sorted(self._folder.glob("*.json"))
        for path in paths:
            yield _read(path) or path

    def _path(self, model: DesiredModel) -> Path:
        return self._folder / f"{model.wanted_id}.json"


def _read(path: Path) -> DesiredModel | None:
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != FORMAT:
            return None
        wants = tuple(Want.from_json(want) for want in raw["wants"])
        model = DesiredModel(parse_ref(raw["ref"]), wants, ModelId(str(raw["model_id"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        return None
    return model if path.stem == model.wanted_id else None
