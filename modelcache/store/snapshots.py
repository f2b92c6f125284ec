"""Snapshots: trees of hard links to blobs. Built aside, then shown by one rename."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from modelcache.domain.manifests import File, Manifest
from modelcache.domain.paths import parents
from modelcache.errors import CorruptData
from modelcache.store import files
from modelcache.store.layout import Layout, fan_out

TEMPORARY = ".tmp-"


def build(layout: Layout, manifest: Manifest) -> Path:
    """Show the model's tree; durable on return. An existing snapshot is returned as it is.

    Raises CorruptData when a blob is missing. A crash leaves at most a tree under a temporary
    name, which garbage collection removes.
    """
    target = layout.snapshot(manifest.model_id)
    if target.is_dir():
        return target
    temporary = layout.snapshots / f"{TEMPORARY}{manifest.model_id[:12]}-{secrets.token_hex(4)}"
    with files.translated(target):
        temporary.mkdir(mode=0o755)
        made = {""}
        for file in manifest.files:
            _make_parents(temporary, file.path, made)
            _link(layout, file, f"{temporary}{os.sep}{file.path}")
        fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files.sync_filesystem(fd)
        finally:
            os.close(fd)
        try:
            files.rename(temporary, target)
        except OSError:
            if not target.is_dir():  # not merely beaten to it by another process
                raise
            files.remove_tree(temporary)
        files.fsync_directory(layout.snapshots)
    return target


def relink(layout: Layout, manifest: Manifest, file: File) -> None:
    """Point one file of an existing snapshot at the blob's present content. Atomic."""
    target = layout.snapshot(manifest.model_id) / file.path
    if not target.parent.is_dir():
        return
    temporary = target.parent / f".{secrets.token_hex(6)}.relink"
    with files.translated(target):
        _link(layout, file, temporary)
        files.rename(temporary, target)


def _make_parents(root: Path, path: str, made: set[str]) -> None:
    for parent in parents(path):
        if parent not in made:
            (root / parent).mkdir(mode=0o755)
            made.add(parent)


def _link(layout: Layout, file: File, target: Path | str) -> None:
    blob = f"{layout.blobs}{os.sep}{fan_out(file.blob)}{os.sep}{file.blob}"
    try:
        files.link(blob, target)
    except FileNotFoundError as error:
        raise CorruptData(f"blob of {file.path} is missing from the store; pull again") from error
