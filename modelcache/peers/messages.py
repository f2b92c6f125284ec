"""What nodes say to each other: announcements, and questions about refs. JSON, strictly bounded.

What comes in is checked to the last field before anybody sees it: a message becomes names in logs,
addresses to connect to, and loops over chunks. Unknown fields are left alone, so that nodes of two
versions understand each other while a cluster is being updated.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from modelcache.domain.addresses import PORT_MAX, is_host, is_zone
from modelcache.domain.holdings import PARTLY, Holding, HoldingState
from modelcache.domain.manifests import BlobId, ModelId, is_blob_id
from modelcache.domain.members import Member, NodeId, is_node_id
from modelcache.domain.ranges import ChunkGrid
from modelcache.errors import CorruptData

ANNOUNCEMENT_BYTES_MAX: Final = 8 << 20
RESOLVE_BYTES_MAX: Final = 64 << 10  # a ref with its filter
REF_CHARACTERS_MAX: Final = 16 << 10
BLOBS_MAX: Final = 16_384  # the shards of hundreds of models
MODELS_MAX: Final = 4096
HANDED_MAX: Final = 64  # what a node would keep that others had
ORIGINS_MAX: Final = 256
ORIGIN_CHARACTERS_MAX: Final = 512
BLOB_BYTES_MAX: Final = 1 << 50
CHUNKS_MAX: Final = 1 << 20  # of one blob: 16 TiB in chunks of the usual size
SECONDS_MAX: Final = 86_400.0
LIFE_CHARACTERS_MAX: Final = 32
CONNECTIONS_MAX: Final = 1 << 20
_MODEL: Final = re.compile(r"[0-9a-f]{64}")
_FIELDS_BYTES: Final = 400  # more than a holding's fields without its bitmap take
_ROOM_BYTES: Final = ANNOUNCEMENT_BYTES_MAX - (2 << 20)  # what models and origins leave to blobs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Announcement:
    """What one node says about itself, and about some blobs and models.

    models: those of the models asked about that are complete here. asked_models: the ones it wants
    to hear about in return. throttled: origins that asked this node for less, and for how many
    seconds more. origins: how many connections it has to each. handed: refs of models that only the
    sender has, and that the receiver may keep. life: of the process that says it; two of one name
    are told apart by it.
    """

    node: NodeId
    member: Member
    blobs: tuple[Holding, ...] = ()
    models: tuple[ModelId, ...] = ()
    asked_models: tuple[ModelId, ...] = ()
    draining: bool = False
    leaving: bool = False
    throttled: Mapping[str, float] = field(default_factory=dict)
    origins: Mapping[str, int] = field(default_factory=dict)
    handed: tuple[str, ...] = ()
    life: str = ""

    def to_json(self) -> bytes:
        """At most ANNOUNCEMENT_BYTES_MAX bytes: blobs that do not fit are left unsaid."""
        return _encode(
            {
                "asked_models": list(self.asked_models[:MODELS_MAX]),
                "blobs": _said_of(self.blobs),
                "draining": self.draining,
                "handed": list(self.handed[:HANDED_MAX]),
                "host": self.member.host,
                "leaving": self.leaving,
                "life": self.life,
                "models": list(self.models[:MODELS_MAX]),
                "node": self.node,
                "origins": dict(list(self.origins.items())[:ORIGINS_MAX]),
                "port": self.member.port,
                "throttled": dict(list(self.throttled.items())[:ORIGINS_MAX]),
                "zone": self.member.zone,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Announcement:
        """Inverse of `to_json`. Raises CorruptData."""
        return _decode(data, ANNOUNCEMENT_BYTES_MAX, cls._from_fields)

    @classmethod
    def _from_fields(cls, raw: dict[str, Any]) -> Announcement:
        return cls(
            node=NodeId(_text(raw["node"], is_node_id)),
            member=Member(
                _text(raw["host"], is_host),
                _whole(raw["port"], 1, PORT_MAX),
                _text(raw["zone"], is_zone),
            ),
            blobs=tuple(_holding(each) for each in _listed(raw["blobs"], BLOBS_MAX)),
            models=_models(raw["models"]),
            asked_models=_models(raw["asked_models"]),
            draining=_flag(raw["draining"]),
            leaving=_flag(raw["leaving"]),
            throttled=_by_origin(raw["throttled"], _seconds),
            origins=_by_origin(raw["origins"], lambda value: _whole(value, 0, CONNECTIONS_MAX)),
            handed=tuple(_text(ref, _is_ref) for ref in _listed(raw.get("handed", []), HANDED_MAX)),
            life=_text(raw.get("life", ""), _is_life),
        )


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """What does a ref mean? max_age_s: how old the answer may be.

    stale: do not ask the origin; say what was pulled for it before. for_pods: only pods want it,
    so it may lead nowhere that is not for them.
    """

    ref: str
    max_age_s: float
    stale: bool = False
    for_pods: bool = False

    def to_json(self) -> bytes:
        """The request's body."""
        return _encode(
            {
                "for_pods": self.for_pods,
                "max_age_s": self.max_age_s,
                "ref": self.ref,
                "stale": self.stale,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> ResolveRequest:
        """Inverse of `to_json`; whether it is a ref is for others to say. Raises CorruptData."""
        return _decode(
            data,
            RESOLVE_BYTES_MAX,
            lambda raw: cls(
                _text(raw["ref"], _is_ref),
                _seconds(raw["max_age_s"]),
                _flag(raw["stale"]),
                _flag(raw.get("for_pods", False)),  # which earlier versions do not say
            ),
        )


def _encode(raw: dict[str, Any]) -> bytes:
    return json.dumps(raw, separators=(",", ":"), sort_keys=True).encode("ascii")


def _decode(data: bytes, most_bytes: int, read: Callable[[dict[str, Any]], T]) -> T:
    if len(data) > most_bytes:
        raise CorruptData(f"a peer's message has {len(data)} bytes; {most_bytes} are allowed")
    try:
        return read(_table(json.loads(data)))
    except KeyError as error:
        raise CorruptData(f"a peer's message lacks {error.args[0]}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptData("a peer's message cannot be read; do both nodes run the same?") from error


def _said_of(blobs: tuple[Holding, ...]) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    room = _ROOM_BYTES
    for holding in blobs[:BLOBS_MAX]:
        chunks = base64.b64encode(holding.chunks).decode("ascii")
        room -= _FIELDS_BYTES + len(chunks)
        if room < 0:
            break
        said.append(
            {
                "blob": holding.blob,
                "chunk_bytes": holding.grid.chunk_bytes,
                "chunks": chunks,
                "size_bytes": holding.grid.size_bytes,
                "state": holding.state.value,
            }
        )
    return said


def _holding(entry: object) -> Holding:
    raw = _table(entry)
    size_bytes = _whole(raw["size_bytes"], 0, BLOB_BYTES_MAX)
    grid = ChunkGrid(size_bytes, _whole(raw["chunk_bytes"], 1, BLOB_BYTES_MAX))
    state = HoldingState(raw["state"])
    if grid.count > CHUNKS_MAX:
        raise ValueError("too many chunks")
    try:
        chunks = base64.b64decode(_text(raw["chunks"], str.isascii), validate=True)
    except binascii.Error as error:
        raise ValueError("a bitmap is malformed") from error
    expected = -(-grid.count // 8) if state in PARTLY else 0
    if len(chunks) != expected:
        raise ValueError("a bitmap does not fit its blob")
    return Holding(BlobId(_text(raw["blob"], is_blob_id)), state, grid, chunks)


def _models(raw: object) -> tuple[ModelId, ...]:
    return tuple(
        ModelId(_text(each, lambda text: _MODEL.fullmatch(text) is not None))
        for each in _listed(raw, MODELS_MAX)
    )


def _table(raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError("not a table")
    return raw


def _by_origin(raw: object, read: Callable[[object], T]) -> dict[str, T]:
    table = _table(raw)
    if len(table) > ORIGINS_MAX:
        raise ValueError("too many origins")
    return {_text(name, _is_origin): read(value) for name, value in table.items()}


def _is_origin(text: str) -> bool:
    return 0 < len(text) <= ORIGIN_CHARACTERS_MAX and text.isprintable()


def _is_life(text: str) -> bool:
    return len(text) <= LIFE_CHARACTERS_MAX and text.isascii() and (not text or text.isalnum())


def _is_ref(text: str) -> bool:
    """Whether it can be one; whether it is one is for others to say."""
    return 0 < len(text) <= REF_CHARACTERS_MAX


def _listed(raw: object, most: int) -> list[Any]:
    if not isinstance(raw, list) or len(raw) > most:
        raise ValueError("not a list, or too long")
    return raw


def _text(value: object, holds: Callable[[str], bool]) -> str:
    if not isinstance(value, str) or not holds(value):
        raise ValueError("text that cannot be")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not a yes or no")
    return value


def _whole(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError("not a number, or out of bounds")
    return value


def _seconds(value: object) -> float:
    if type(value) not in {int, float}:
        raise TypeError("not a number")
    number = float(value)  # type: ignore[arg-type]  # one of the two
    if not math.isfinite(number) or number < 0:
        raise ValueError("not a time")
    return min(number, SECONDS_MAX)
