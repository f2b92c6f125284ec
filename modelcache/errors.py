"""Every error the project raises on purpose, grouped by what the caller does about it.

The families answer one question, "and now?": fix the input (`UsageError`), wait or try elsewhere
(`SourceUnavailable`), change something at the origin (`SourceRefused`), resolve again
(`OriginChanged`), fetch again (`CorruptData`), make room or repair the store (`StoreError`), or
nothing at all (`Cancelled`). Boundaries translate foreign exceptions into these with `from`; a
message says what was wrong, where, and what to do, and never carries a secret or a signed URL.
"""

from __future__ import annotations

from typing import ClassVar


class ModelcacheError(Exception):
    """Root of the tree. `code` is stable: it stands in JSON output, journals and logs."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    @property
    def message(self) -> str:
        """The one line a person reads."""
        return str(self.args[0]) if self.args else self.code


class UsageError(ModelcacheError):
    """The caller asked for something that cannot be: fix the input."""

    code = "usage"
    exit_code = 2


class InvalidRef(UsageError):
    """A ref that does not parse or names no known scheme."""

    code = "invalid_ref"


class InvalidConfig(UsageError):
    """A setting with a wrong name, type or value."""

    code = "invalid_config"


class NotInStore(UsageError):
    """The named model is not on this node."""

    code = "not_in_store"
    exit_code = 1


class UnsupportedDtype(UsageError):
    """A tensor's type, or the type it should become, is not one of the library's."""

    code = "unsupported_dtype"


class NoDevice(UsageError):
    """The device that tensors should go to is not there."""

    code = "no_device"


class SourceUnavailable(ModelcacheError):
    """A source failed in a way that time or another source may heal: retry elsewhere."""

    code = "source_unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Throttled(SourceUnavailable):
    """The source asked for less (429, 503 SlowDown): wait, then come with fewer connections."""

    code = "throttled"


class CredentialsExpired(SourceUnavailable):
    """A signed request was refused because of its age: sign again and repeat."""

    code = "credentials_expired"


class NotYet(SourceUnavailable):
    """A peer that is still fetching does not have this chunk: ask it again a little later."""

    code = "not_yet"


class AgentUnavailable(SourceUnavailable):
    """No agent answers where one was looked for: start it, or name another."""

    code = "agent_unavailable"


class Draining(SourceUnavailable):
    """The agent is about to leave its node and takes nothing new: ask another node's."""

    code = "draining"


class Misdirected(SourceUnavailable):
    """A peer was asked under another name than its own: learn its name, and ask again.

    node: that name.
    """

    code = "misdirected"

    def __init__(self, message: str, *, node: str) -> None:
        super().__init__(message)
        self.node = node


class NotWarmYet(SourceUnavailable):
    """The model is on its way: wait, and ask again."""

    code = "not_warm_yet"


class SourceRefused(ModelcacheError):
    """The origin said no, and will go on saying no until somebody changes something there."""

    code = "source_refused"


class NotFound(SourceRefused):
    """No such host, bucket, key or page; or a prefix that matches nothing."""

    code = "not_found"


class NotHeld(SourceRefused):
    """A peer does not have this blob, and will not have it soon: ask somebody else."""

    code = "not_held"


class Forbidden(SourceRefused):
    """Credentials that do not permit this."""

    code = "forbidden"


class NoCredentials(SourceRefused):
    """The origin wants credentials and none were found."""

    code = "no_credentials"


class OriginChanged(SourceRefused):
    """An object is no longer what the manifest pinned: resolve the ref again."""

    code = "origin_changed"


class UnsafePath(SourceRefused):
    """The origin names a file that cannot be placed inside a snapshot."""

    code = "unsafe_path"


class CorruptData(ModelcacheError):
    """Bytes that do not match what they should be: discard them and fetch again."""

    code = "corrupt_data"


class DigestMismatch(CorruptData):
    """The checksum the origin published is not the checksum of what arrived."""

    code = "digest_mismatch"


class BadTensors(CorruptData):
    """A file of tensors contradicts itself or its index: nothing of it is used.

    Where it matches its origin's checksum, it is bad there.
    """

    code = "bad_tensors"


class StoreError(ModelcacheError):
    """The local store cannot do this; what it already holds is untouched."""

    code = "store_error"


class StoreFull(StoreError):
    """No room, by quota or by the disk, even after evicting what may be evicted."""

    code = "store_full"


class MemoryFull(StoreFull):
    """No room in memory, by quota or by the machine, even without what may be dropped from it."""

    code = "memory_full"


class QuotaExceeded(StoreFull):
    """A namespace may not have so many bytes of models on a node."""

    code = "quota_exceeded"


class StoreReadOnly(StoreError):
    """The store cannot be written, or not be used at all, by this user."""

    code = "store_read_only"


class StoreTooNew(StoreError):
    """The store was made by a newer version."""

    code = "store_too_new"


class Leased(StoreError):
    """The model is protected by a lease."""

    code = "leased"


class VolumeConflict(StoreError):
    """The volume is published already, at another place or with something else in it."""

    code = "volume_conflict"


class MountFailed(StoreError):
    """The kernel does not mount this here."""

    code = "mount_failed"


class BlobBusy(StoreError):
    """Another process or thread is fetching this blob: wait for it, or help when it dies."""

    code = "blob_busy"


class Cancelled(ModelcacheError):
    """Somebody asked to stop; finished chunks are kept and the next pull resumes."""

    code = "cancelled"
    exit_code = 130


def error_named(code: str, message: str, otherwise: type[ModelcacheError]) -> ModelcacheError:
    """The error with this code, as its own class; `otherwise` where none has it."""
    return _FAMILIES.get(code, otherwise)(message)


def _families() -> dict[str, type[ModelcacheError]]:
    found: dict[str, type[ModelcacheError]] = {}
    waiting: list[type[ModelcacheError]] = [ModelcacheError]
    while waiting:
        family = waiting.pop()
        found.setdefault(family.code, family)
        waiting += family.__subclasses__()
    return found


_FAMILIES = _families()
