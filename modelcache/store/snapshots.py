"""Snapshots: trees of hard links to blobs. Built aside, then shown by one rename.

While a tree is being built its root folder is locked by the builder, so that garbage collection
can tell it from what a crash left.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import File, Manifest, ModelId
from modelcache.domain.paths import parents
from modelcache.errors import CorruptData
from modelcache.store import files, locks
from modelcache.store.layout import Layout, fan_out

TEMPORARY: Final = ".tmp-"
FOLDER_MODE: Final = 0o755  # pods of any user read below it
FSYNC_FOLDERS_MAX: Final = 64  # beyond, one sync of the whole filesystem is cheaper
LINK_TRIES: Final = 16  # every neighbour that pulls the same small blob replaces it once


@contextmanager
def building(layout: Layout, model_id: ModelId) -> Iterator[Path]:
    """A new folder to build a tree in, locked; what is left of it at the end is removed."""
    temporary = layout.snapshots / f"{TEMPORARY}{model_id[:12]}-{secrets.token_hex(4)}"
    with locks.mutex(layout), files.translated(temporary):  # or it were collected unlocked
        files.make_folder(temporary, FOLDER_MODE)
        fd = files.open_directory(temporary)
        locks.try_lock(fd)
    try:
        yield temporary
    finally:
        os.close(fd)
        if temporary.is_dir():
            files.remove_tree(temporary)


def fill(layout: Layout, manifest: Manifest, root: Path) -> None:
    """Link the model's blobs into the empty folder `root`; durable on return.

    Raises CorruptData when a blob is missing.
    """
    with files.translated(root):
        made = [""]
        known = {""}
        for file in manifest.files:
            for parent in parents(file.path):
                if parent not in known:
                    files.make_folder(root / parent, FOLDER_MODE)
                    known.add(parent)
                    made.append(parent)
            _link(layout, file, f"{root}/{file.path}")
        _sync(root, made)


def show(layout: Layout, root: Path, model_id: ModelId) -> None:
    """Give a filled tree its name; durable on return. The caller has the store mutex."""
    with files.translated(root):
        files.rename(root, layout.snapshot(model_id))
        files.fsync_directory(layout.snapshots)


def stale_files(layout: Layout, manifest: Manifest) -> list[File]:
    """Files of a shown snapshot that are not, or no longer, links to the present blobs.

    A crash between the repair of a blob and the linking of its snapshots leaves such, and so does
    whoever deletes files in a snapshot.
    """
    root = layout.snapshot(manifest.model_id)
    return [file for file in manifest.files if not _is_linked(layout, file, f"{root}/{file.path}")]


def relink(layout: Layout, manifest: Manifest, file: File) -> None:
    """Point one file of a shown snapshot at the blob's present content. Atomic, idempotent.

    Does nothing for a model without a snapshot. Raises CorruptData when the blob is missing.
    """
    root = layout.snapshot(manifest.model_id)
    target = root / file.path
    if not root.is_dir() or _is_linked(layout, file, str(target)):
        return  # renaming a link over another of the same file would leave both
    temporary = root.parent / f"{TEMPORARY}{secrets.token_hex(6)}"
    with locks.mutex(layout), files.translated(target):
        for parent in parents(file.path):
            if not (root / parent).is_dir():
                files.make_folder(root / parent, FOLDER_MODE)
        try:
            _link(layout, file, str(temporary))
            files.rename(temporary, target)
        finally:
            files.unlink(temporary)
        files.fsync_directory(target.parent)


def _is_linked(layout: Layout, file: File, target: str) -> bool:
    try:
        return os.path.samestat(os.stat(target), os.stat(_blob(layout, file)))  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False


def _blob(layout: Layout, file: File) -> str:
    return f"{layout.blobs}/{fan_out(file.blob)}/{file.blob}"


def _link(layout: Layout, file: File, target: str, *, tries: int = LINK_TRIES) -> None:
    blob = _blob(layout, file)
    try:
        files.link(blob, target)
    except FileNotFoundError as error:
        # So the kernel answers, too, for a file that a neighbour's commit replaces at this moment.
        if tries > 1 and os.path.exists(blob):  # noqa: PTH110
            _link(layout, file, target, tries=tries - 1)
            return
        raise CorruptData(f"blob of {file.path} is missing from the store; pull again") from error
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        _copy(blob, target)  # an empty file that 65,000 others are too: ext4's limit


def _copy(blob: str, target: str) -> None:
    shutil.copy(blob, target)
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.fsync(fd)
    finally:
        os.close(fd)


def _sync(root: Path, folders: list[str]) -> None:
    if len(folders) <= FSYNC_FOLDERS_MAX:
        for folder in reversed(folders):
            files.fsync_directory(root / folder)
        return
    fd = files.open_directory(root)
    try:
        files.sync_filesystem(fd)
    finally:
        os.close(fd)
