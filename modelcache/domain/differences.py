"""What changed between two models, and what they share: blobs, compared by identity."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from modelcache.domain.manifests import BlobId, File, Manifest


class Change(StrEnum):
    """How a path of the second model stands to the first."""

    SAME = "same"
    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"
    RENAMED = "renamed"


@dataclass(frozen=True, slots=True)
class FileChange:
    """One path. before: of a renamed file, the path it had; size_bytes: in the second model."""

    path: str
    change: Change
    size_bytes: int
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Two models. files: by path, those that are the same included.

    shared_bytes: of blobs that both hold. fetch_bytes: what having the second costs whoever has the
    first. freed_bytes: what removing the first then frees.
    """

    files: tuple[FileChange, ...]
    shared_bytes: int
    fetch_bytes: int
    freed_bytes: int


def compare(first: Manifest, second: Manifest) -> Difference:
    """Compare by blob, so that equal bytes under another name are not called new.

    Blobs without a checksum that names them are equal only where they came from one place and
    state.
    """
    old, new = _by_path(first), _by_path(second)
    gone = {file.blob: path for path, file in old.items() if path not in new}
    changes = []
    for path, file in new.items():
        before = old.get(path)
        if before is not None:
            same = before.blob == file.blob
            changes.append(
                FileChange(path, Change.SAME if same else Change.CHANGED, file.size_bytes)
            )
        elif file.blob in gone:
            changes.append(FileChange(path, Change.RENAMED, file.size_bytes, gone.pop(file.blob)))
        else:
            changes.append(FileChange(path, Change.ADDED, file.size_bytes))
    renamed = {change.before for change in changes}
    changes += [
        FileChange(path, Change.REMOVED, file.size_bytes)
        for path, file in old.items()
        if path not in new and path not in renamed
    ]
    mine, others = _sizes(first), _sizes(second)
    return Difference(
        files=tuple(sorted(changes, key=lambda change: change.path)),
        shared_bytes=sum(size for blob, size in mine.items() if blob in others),
        fetch_bytes=sum(size for blob, size in others.items() if blob not in mine),
        freed_bytes=sum(size for blob, size in mine.items() if blob not in others),
    )


def _by_path(manifest: Manifest) -> dict[str, File]:
    return {file.path: file for file in manifest.files}


def _sizes(manifest: Manifest) -> dict[BlobId, int]:
    return {blob: file.size_bytes for blob, file in manifest.blobs().items()}
