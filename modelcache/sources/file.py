"""`file://`: a file or directory of this machine, or of a share mounted on it.

Links are followed to regular files, wherever those lie (Hugging Face caches are trees of links); a
link to a directory is followed only inside the tree, so that a loop or a link to `/` cannot pull in
the machine. Devices, pipes and sockets are refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from modelcache.config import FileSettings, LocalCopy
from modelcache.domain.manifests import Checksum, File, Manifest, Pin, blob_id
from modelcache.domain.refs import Ref
from modelcache.errors import (
    Forbidden,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceUnavailable,
    UnsafePath,
)
from modelcache.sources.source import LocalTarget

FILES_MAX: Final = 1_000_000  # a tree larger than any model: somebody named the wrong directory


class FileSource:
    """See Source."""

    def __init__(self, origin: Ref, settings: FileSettings) -> None:
        self._origin = origin
        self._link = settings.link is LocalCopy.HARDLINK or origin.option("link") == "hard"

    def resolve(self, ref: Ref) -> Manifest:
        """See Source."""
        root = Path("/" + ref.path.lstrip("/"))
        try:
            if root.is_dir():
                found = [
                    self._file(name, path)
                    for name, path in _walk(root, root.resolve(), "")
                    if ref.files.accepts(name)
                ]
            else:
                root.stat()
                found = [self._file(root.name, root)] if ref.files.accepts(root.name) else []
        except FileNotFoundError as error:
            raise NotFound(f"{error.filename or root} does not exist") from error
        except PermissionError as error:
            raise Forbidden(f"{error.filename or root} may not be read by this user") from error
        except OSError as error:
            raise SourceUnavailable(f"{error.filename or root}: {error.strerror}") from error
        if not found:
            raise NotFound(f"{root} has no file that the ref's filter accepts")
        return Manifest.of(str(self._origin), found)

    def locate(self, file: File, *, fresh: bool = False) -> LocalTarget:
        """See Source."""
        del fresh
        try:
            status = Path(file.key).stat()
        except OSError as error:
            raise OriginChanged(f"{file.key} is gone: {error.strerror}; pull again") from error
        if _pin(status) != file.pin or status.st_size != file.size_bytes:
            raise OriginChanged(f"{file.key} was changed since it was listed; pull again")
        return LocalTarget(file.key, link=self._link)

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """See Source. A local file has no headers; its state is compared instead."""
        del headers
        self.locate(file)

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """See Source. Filesystems publish none."""
        del file, headers
        return ()

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """See Source. Never asked for: there are no responses."""
        del headers, body
        return SourceUnavailable(f"{file.key}: status {status}")

    def _file(self, name: str, path: Path) -> File:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnsafePath(f"{path} is neither a file nor a directory; exclude it")
        if not os.access(path, os.R_OK):
            raise PermissionError(13, "Permission denied", str(path))
        pin = _pin(status)
        key = str(path)
        size = status.st_size
        blob = blob_id(origin="file://", key=key, size_bytes=size, pin=pin, checksums=())
        return File(name, size, key, blob, pin)


def _pin(status: os.stat_result) -> Pin:
    return Pin(modified=str(status.st_mtime_ns), version=f"{status.st_dev}:{status.st_ino}")


def _walk(directory: Path, root: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Files below `directory` with their names relative to the root, in a stable order."""
    entries = sorted(os.scandir(directory), key=lambda item: item.name)
    if len(entries) > FILES_MAX:
        raise UnsafePath(f"{directory} has over {FILES_MAX} entries; name a model's directory")
    for entry in entries:
        path = Path(entry.path)
        name = prefix + entry.name
        if not entry.is_dir():
            yield name, path
        elif not entry.is_symlink():
            yield from _walk(path, root, f"{name}/")
        else:
            inside = path.resolve()
            if root not in inside.parents or directory.resolve().is_relative_to(inside):
                raise UnsafePath(
                    f"{path} is a link to a directory outside the model or above itself; exclude "
                    "is no help here, so name the directory it leads to"
                )
            yield from _walk(path, root, f"{name}/")
