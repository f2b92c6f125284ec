"""Leases: reasons why a model must not be evicted.

A pin, and a volume that shows the model, is a file that stays until it is removed. A process lease
(a pull) is a file that its holder keeps locked: when the holder dies, however it dies, the lock is
gone and so the lease. A volume's file is also all that is known of it: what is mounted outlives
the agent that mounted it.
All changes are made under the store mutex, so nobody who has it sees a lease between its halves.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelcache.domain.manifests import ModelId, canonical_json
from modelcache.domain.volumes import Volume
from modelcache.store import files, locks
from modelcache.store.layout import Layout

PIN: Final = "pin"
PULL: Final = "pull"
VOLUME: Final = "volume"
_PIN_FILE: Final = "pin.json"
_VOLUME_PREFIX: Final = "volume-"  # then a hash of its id


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """Why a model is protected. pid: 0 for what outlives processes."""

    kind: str
    note: str
    pid: int


class Lease:
    """A process lease at hand; release it, or die."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd: int | None = fd

    def release(self) -> None:
        """Give up the protection. Idempotent."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            with files.translated(self._path):
                files.unlink(self._path)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        """Hold."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release."""
        self.release()


def hold(layout: Layout, model_id: ModelId, kind: str, note: str) -> Lease:
    """Take a process lease. The caller has the store mutex."""
    path = _folder(layout, model_id) / f"{kind}-{secrets.token_hex(6)}.json"
    fd = locks.lock_file(path, wait=True)
    assert fd is not None, "waited for"  # noqa: S101
    try:
        files.write_all(fd, canonical_json({"kind": kind, "note": note, "pid": os.getpid()}))
    except BaseException:
        os.close(fd)
        raise
    return Lease(path, fd)


def pin(layout: Layout, model_id: ModelId, note: str) -> None:
    """Protect a model until it is unpinned. Idempotent. The caller has the store mutex."""
    data = canonical_json({"kind": PIN, "note": note, "pid": 0})
    files.atomic_write(_folder(layout, model_id) / _PIN_FILE, data)


def unpin(layout: Layout, model_id: ModelId) -> bool:
    """Remove the pin; False if there was none. The caller has the store mutex."""
    path = layout.leases / model_id / _PIN_FILE
    found = path.exists()
    files.unlink(path)
    return found


def keep_volume(layout: Layout, volume: Volume) -> None:
    """Protect a model while a volume shows it. Idempotent. The caller has the store mutex."""
    plain = {**volume.to_json(), "kind": VOLUME, "note": volume.target, "pid": 0}
    path = _folder(layout, volume.model_id) / _volume_file(volume.volume_id)
    files.atomic_write(path, canonical_json(plain))


def drop_volume(layout: Layout, volume: Volume) -> None:
    """End that protection. Idempotent. The caller has the store mutex."""
    folder = layout.leases / volume.model_id
    files.unlink(folder / _volume_file(volume.volume_id))
    if folder.is_dir():
        files.fsync_directory(folder)


def volumes(layout: Layout) -> list[Volume]:
    """Every volume, by id. One whose file cannot be read protects its model, and is passed over."""
    found = []
    for path in layout.leases.glob(f"*/{_VOLUME_PREFIX}*.json"):
        try:
            found.append(Volume.from_json(json.loads(path.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return sorted(found, key=lambda volume: volume.volume_id)


def live(layout: Layout, model_id: ModelId) -> list[LeaseInfo]:
    """The leases that hold now. Exact under the store mutex; a moment's view without."""
    found = []
    for path in sorted((layout.leases / model_id).glob("*.json")):
        info = _read(path)
        if info is not None and (_stays(path) or locks.is_locked(path)):
            found.append(info)
    return found


def reap(layout: Layout) -> int:
    """Delete what dead holders left. The caller has the store mutex. Returns how many."""
    reaped = 0
    for path in layout.leases.glob("*/*.json"):
        if not _stays(path) and not locks.is_locked(path):
            files.unlink(path)
            reaped += 1
    for folder in layout.leases.iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return reaped


def _stays(path: Path) -> bool:
    return path.name == _PIN_FILE or path.name.startswith(_VOLUME_PREFIX)


def _volume_file(volume_id: str) -> str:
    return f"{_VOLUME_PREFIX}{sha256(volume_id.encode()).hexdigest()[:32]}.json"


def _folder(layout: Layout, model_id: ModelId) -> Path:
    folder = layout.leases / model_id
    files.ensure_folder(folder)
    return folder


def _read(path: Path) -> LeaseInfo | None:
    try:
        raw = json.loads(path.read_bytes() or b"{}")
        return LeaseInfo(
            str(raw.get("kind", "?")), str(raw.get("note", "")), int(raw.get("pid", 0))
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError):
        return LeaseInfo("unreadable", path.name, 0)  # protect what cannot be understood
