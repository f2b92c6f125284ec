"""What a node's agent is asked to have, and how far it is: values that agent and clients share.

A model is *wanted* under a ref, by one or more *holders*, each with a priority and a name. The
agent works on it until it is warm, and keeps it while anybody wants it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Self

from modelcache.domain.refs import Ref
from modelcache.errors import UsageError

LEASE_DEFAULT: Final = "user"
PRIORITY_MAX: Final = 100
NOTE_CHARACTERS_MAX: Final = 256
WANTED_ID_DIGITS: Final = 16  # hex: two refs of one node do not meet in 64 bits
_TENANT: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LEASE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")


class ModelPhase(StrEnum):
    """Where a wanted model is. Only `warm` and `failed` stay as they are for a while."""

    QUEUED = "queued"  # its turn comes, or its next attempt
    RESOLVING = "resolving"
    TRANSFERRING = "transferring"
    PUBLISHING = "publishing"
    PAUSED = "paused"  # something more urgent has the bandwidth
    WARM = "warm"
    FAILED = "failed"  # somebody has to change something; tried again every few minutes

    @property
    def settled(self) -> bool:
        """Whether waiting any longer is of little use."""
        return self in {ModelPhase.WARM, ModelPhase.FAILED}


@dataclass(frozen=True, slots=True)
class Want:
    """One holder's wish. expires_at_s: seconds since the epoch; None for never.

    tenant: who is charged with the model, such as a namespace; empty for nobody.
    """

    holder: str
    priority: int
    since_s: float
    expires_at_s: float | None = None
    note: str = ""
    tenant: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises KeyError, TypeError, ValueError."""
        expires = plain["expires_at_s"]
        return cls(
            holder=str(plain["holder"]),
            priority=int(plain["priority"]),
            since_s=float(plain["since_s"]),
            expires_at_s=None if expires is None else float(expires),
            note=str(plain["note"]),
            tenant=str(plain.get("tenant", "")),
        )


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the last attempt failed: an error's code and its one line."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class WantedStatus:
    """One moment of a wanted model. ref: redacted. Byte counts are of distinct blobs.

    wanted_id: names it in the agent's API. model_id: empty until it is known. rate_bytes_s: over
    the last few seconds. sources: bytes that came from each source, peers among them, at the last
    attempt that told. attempts: failed in a row. retry_in_s: when the next one begins; None when
    none is planned. path: of the snapshot that is here, also while a newer one comes.
    """

    wanted_id: str
    ref: str
    phase: ModelPhase
    priority: int
    model_id: str = ""
    total_bytes: int = 0
    done_bytes: int = 0
    files_total: int = 0
    files_done: int = 0
    rate_bytes_s: float = 0.0
    eta_s: float | None = None
    connections: int = 0
    retries: int = 0
    sources: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 0
    retry_in_s: float | None = None
    trouble: Trouble | None = None
    path: str = ""
    wants: tuple[Want, ...] = ()

    @property
    def percent(self) -> float:
        """How much of it is here, 0 to 100; 100 means all of it."""
        if self.phase is ModelPhase.WARM:
            return 100.0
        if not self.total_bytes:
            return 0.0
        return min(99.9, 100 * self.done_bytes // (self.total_bytes / 10) / 10)

    def to_json(self) -> dict[str, Any]:
        """Plain values, the percentage among them."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        trouble = self.trouble
        plain["phase"] = self.phase.value
        plain["percent"] = self.percent
        plain["sources"] = dict(self.sources)
        plain["trouble"] = (
            {"code": trouble.code, "message": trouble.message} if trouble is not None else None
        )
        plain["wants"] = [want.to_json() for want in self.wants]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; what other versions add is dropped.

        Raises KeyError, TypeError, ValueError for what is no status.
        """
        known = {item.name for item in fields(cls)}
        values = {name: value for name, value in plain.items() if name in known}
        trouble = plain["trouble"]
        values["phase"] = ModelPhase(plain["phase"])
        values["trouble"] = (
            Trouble(str(trouble["code"]), str(trouble["message"])) if trouble is not None else None
        )
        values["wants"] = tuple(Want.from_json(each) for each in plain["wants"])
        return cls(**values)


def wanted_id(ref: Ref) -> str:
    """What a wanted ref, filters and all, is called in the agent's API and files."""
    return sha256(str(ref).encode()).hexdigest()[:WANTED_ID_DIGITS]


def check_want(
    holder: str, priority: int, ttl_s: float | None, note: str, tenant: str = ""
) -> None:
    """Refuse what cannot be a want. Raises UsageError."""
    if not _LEASE.fullmatch(holder):
        raise UsageError(
            f"lease {holder[:40]!r} is not a name: up to 128 letters, digits and . _ : / @ -"
        )
    if not 0 <= priority <= PRIORITY_MAX:
        raise UsageError(f"priority {priority} is not between 0 and {PRIORITY_MAX}")
    if ttl_s is not None and not 0 < ttl_s < float("inf"):
        raise UsageError("a want's time to live must be more than 0 seconds")
    if tenant and not _TENANT.fullmatch(tenant):
        raise UsageError(f"tenant {tenant[:40]!r} is not a namespace's name")
    if len(note) > NOTE_CHARACTERS_MAX or not (note.isprintable()):
        raise UsageError(f"a note is one line of at most {NOTE_CHARACTERS_MAX} characters")
