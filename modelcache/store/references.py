"""What refs were resolved to: one small file each, named by the hash of the ref.

They are hints that save asking the origin: one that is lost or unreadable is as if never written.
The text of a ref may carry what only its user should see, so the files are readable by the owner
alone and `all_refs` gives the redacted form.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from modelcache.domain.manifests import ModelId, canonical_json
from modelcache.domain.refs import Ref, parse_ref
from modelcache.errors import InvalidRef
from modelcache.store import files
from modelcache.store.layout import Layout


def remember(layout: Layout, ref: Ref, model_id: ModelId, now_s: float) -> None:
    """Note what a ref was resolved to. Durable on return."""
    value = {"model_id": model_id, "ref": str(ref), "resolved_at_s": now_s}
    with files.translated(layout.refs):
        files.atomic_write(layout.ref(ref), canonical_json(value))


def recall(layout: Layout, ref: Ref) -> tuple[ModelId, float] | None:
    """What a ref was resolved to, and when (seconds since the epoch)."""
    found = _read(layout.ref(ref))
    return found[1:] if found else None


def all_refs(layout: Layout) -> dict[ModelId, list[str]]:
    """Every remembered ref by model, as users may see them (without URLs' queries)."""
    found: dict[ModelId, list[str]] = {}
    for path in sorted(layout.refs.glob("*.json")):
        entry = _read(path)
        if entry is not None:
            with suppress(InvalidRef):
                found.setdefault(entry[1], []).append(parse_ref(entry[0]).redacted())
    return found


def forget(layout: Layout, model_id: ModelId) -> None:
    """Remove every ref to a model."""
    for path in layout.refs.glob("*.json"):
        entry = _read(path)
        if entry is not None and entry[1] == model_id:
            files.unlink(path)


def _read(path: Path) -> tuple[str, ModelId, float] | None:
    try:
        raw = json.loads(path.read_bytes())
        return str(raw["ref"]), ModelId(str(raw["model_id"])), float(raw["resolved_at_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
