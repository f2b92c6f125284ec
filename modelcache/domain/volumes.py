"""A volume: one model, or a folder of it, at a path where a pod sees it.

A volume is *published* at a target; whoever asks names it, so that asking twice is asking once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final, Self

from modelcache.domain.manifests import ModelId
from modelcache.domain.members import Priority
from modelcache.domain.paths import check_path
from modelcache.domain.refs import Ref
from modelcache.domain.wanted import ModelPhase, WantedStatus
from modelcache.errors import UnsafePath, UsageError

PATH_BYTES_MAX: Final = 4095  # of Linux
_VOLUME_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,119}")


class MountMode(StrEnum):
    """Whether a model is shown when all of it is here, or at once."""

    FULL = "full"
    STREAM = "stream"


def mount_mode(text: str, what: str) -> MountMode:
    """As somebody has written it. what: where, for the message. Raises UsageError."""
    try:
        return MountMode(text)
    except ValueError:
        raise UsageError(f"{what} is {text[:20]!r}; there are full and stream") from None


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """Have a model at a path. target: absolute. sub_path: a folder of the model; empty for all."""

    volume_id: str
    target: str
    ref: Ref
    sub_path: str = ""
    priority: int = Priority.MOUNTED
    note: str = ""
    tenant: str = ""
    mode: MountMode = MountMode.FULL

    def __post_init__(self) -> None:
        """Raises UsageError."""
        check_volume(self.volume_id, self.target)
        if self.sub_path:
            try:
                check_path(self.sub_path)
            except UnsafePath as error:
                raise UsageError(f"sub path {self.sub_path[:80]!r}: {error.message}") from error

    @property
    def lease(self) -> str:
        """Who wants the model while it comes."""
        return lease_of(self.volume_id)


@dataclass(frozen=True, slots=True)
class Volume:
    """A published volume. ref: redacted. since_s: seconds since the epoch.

    mode: how it is mounted; a model that was warm when a stream was asked for is mounted full.
    """

    volume_id: str
    target: str
    model_id: ModelId
    ref: str
    sub_path: str = ""
    since_s: float = 0.0
    mode: MountMode = MountMode.FULL

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises KeyError, TypeError, ValueError."""
        return cls(
            volume_id=str(plain["volume_id"]),
            target=str(plain["target"]),
            model_id=ModelId(str(plain["model_id"])),
            ref=str(plain["ref"]),
            sub_path=str(plain["sub_path"]),
            since_s=float(plain["since_s"]),
            mode=MountMode(plain.get("mode", MountMode.FULL)),  # absent before there were two
        )


def lease_of(volume_id: str) -> str:
    """Under which name a volume wants its model."""
    return f"volume/{volume_id}"


def check_volume(volume_id: str, target: str) -> None:
    """Refuse what names no volume, or no place for one. Raises UsageError."""
    if not _VOLUME_ID.fullmatch(volume_id):
        raise UsageError(
            f"volume id {volume_id[:40]!r} is not a name: up to 120 letters, digits and . _ : -"
        )
    steps = target.split("/")
    good = steps[0] == "" and all(step not in {"", ".", ".."} for step in steps[1:])
    if not good or not target.isprintable() or len(target.encode()) > PATH_BYTES_MAX:
        raise UsageError(f"target {target[:80]!r} is not a plain absolute path")


def progress_line(status: WantedStatus) -> str:
    """How far a model is, in one line that says when it is there; for who waits for a volume."""
    ref = status.ref
    if status.phase is ModelPhase.WARM:
        return f"{ref} is warm"
    if status.phase is ModelPhase.QUEUED and status.trouble is None:
        return f"{ref} waits for its turn"
    if status.trouble is not None and status.phase in {ModelPhase.QUEUED, ModelPhase.FAILED}:
        again = "" if status.retry_in_s is None else f"; tried again in {status.retry_in_s:.0f} s"
        return f"{ref}: {status.trouble.message}{again}"
    if not status.total_bytes:
        return f"resolving {ref}"
    words = "paused at" if status.phase is ModelPhase.PAUSED else "fetching"
    done, total = _gigabytes(status.done_bytes), _gigabytes(status.total_bytes)
    peers = sum(1 for source in status.sources if source.startswith("peer:"))
    origin = len(status.sources) > peers
    whom = [f"{peers} peer{'s' * (peers != 1)}"] if peers else []
    whom += ["the origin"] if origin else []
    since = f", from {' and '.join(whom)}" if whom else ""
    left = "" if status.eta_s is None else f", ready in about {max(1, round(status.eta_s))} s"
    return f"{words} {done}/{total} GB of {ref}{since}{left}"


def _gigabytes(size_bytes: int) -> str:
    value = size_bytes / 1e9
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"  # noqa: PLR2004
