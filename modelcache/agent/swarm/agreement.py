"""What a ref means, agreed among all nodes that ask at the same time.

A tag that moves while a fleet starts would give some nodes one model and some another. So one node
resolves for all: the one that rendezvous hashing names for the ref. It remembers its answer for a
moment and gives everybody the same. Where it does not answer, the next one does, and at last each
node asks the origin itself. If the origin does not answer either, what any node has pulled for the
ref before is better than nothing.

A manifest that a peer gives is believed as far as the cluster's credential goes: it says which
bytes are meant, and every byte is still checked against what the origin publishes of it.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from modelcache.domain.manifests import (
    Algorithm,
    Assembly,
    BlobId,
    Checksum,
    Manifest,
    canonical_json,
    is_blob_id,
)
from modelcache.errors import CorruptData, ModelcacheError, NotHeld, SourceUnavailable

ANSWERS_MAX: Final = 256  # refs remembered
Ask = Callable[[], Manifest]


@dataclass(slots=True)
class _Answer:
    """One ref's; whoever comes while it is being asked waits for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    manifest: Manifest | None = None
    at_s: float = float("-inf")


class Agreement:
    """The answers of this node. Thread-safe."""

    def __init__(self, keep_s: float) -> None:
        """keep_s: for how long the same is answered again."""
        self._keep_s = keep_s
        self._answers: dict[str, _Answer] = {}
        self._lock = threading.Lock()

    def answer(self, ref: str, ask: Ask) -> Manifest:
        """What the ref means, asked at most once in `keep_s`. Raises what `ask` raises."""
        with self._lock:
            answer = self._answers.setdefault(ref, _Answer())
            while len(self._answers) > ANSWERS_MAX:
                del self._answers[next(iter(self._answers))]
        with answer.lock:
            if answer.manifest is None or monotonic() - answer.at_s > self._keep_s:
                answer.manifest = ask()
                answer.at_s = monotonic()
            return answer.manifest


def first_answer(asks: Sequence[Callable[[], Manifest | None]]) -> Manifest | None:
    """The first of some peers that answers."""
    for ask in asks:
        try:
            manifest = ask()
        except (SourceUnavailable, CorruptData, NotHeld):
            continue
        except ModelcacheError:
            return None  # it has asked the origin, and was refused: see for ourselves
        if manifest is not None:
            return manifest
    return None


def to_message(manifest: Manifest) -> bytes:
    """A manifest as peers tell it to each other: with what is not kept in stores."""
    return canonical_json(
        {
            "assemblies": [_assembly(assembly) for assembly in manifest.assemblies],
            "manifest": json.loads(manifest.to_json()),
            "notes": list(manifest.notes),
        }
    )


def from_message(data: bytes) -> Manifest:
    """Inverse of `to_message`. Raises CorruptData."""
    try:
        raw = json.loads(data)
        told = Manifest.from_json(canonical_json(raw["manifest"]))
        return Manifest.of(
            told.origin,
            told.files,
            archives=told.archives,
            assemblies=[_assembly_of(each) for each in raw["assemblies"]],
            notes=[str(note)[:1000] for note in raw["notes"]],
            unpacked_from=told.unpacked_from,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptData("a peer's manifest cannot be read") from error


def _assembly(assembly: Assembly) -> dict[str, Any]:
    return {
        "algorithm": assembly.checksum.algorithm.value,
        "label": assembly.label,
        "pieces": [
            {"blob": piece}
            if isinstance(piece, str)
            else {"bytes": base64.b64encode(piece).decode("ascii")}
            for piece in assembly.pieces
        ],
        "value": assembly.checksum.value,
    }


def _assembly_of(raw: dict[str, Any]) -> Assembly:
    pieces: list[bytes | BlobId] = []
    for piece in raw["pieces"]:
        if "blob" in piece:
            if not is_blob_id(piece["blob"]):
                raise ValueError("a blob id is malformed")
            pieces.append(BlobId(piece["blob"]))
        else:
            pieces.append(base64.b64decode(piece["bytes"], validate=True))
    checksum = Checksum(Algorithm(raw["algorithm"]), str(raw["value"]))
    return Assembly(str(raw["label"]), checksum, tuple(pieces))
