"""`file://`: a file or directory of this machine, or of a share mounted on it.

Links to regular files are followed wherever they lead (Hugging Face caches are trees of links). A
link to a directory is followed only inside the tree and never up, so that neither a loop nor a link
to `/` pulls in the machine. Devices, pipes and sockets are refused. Nothing is read but metadata.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from modelcache.config import FileSettings, LocalCopy
from modelcache.domain.manifests import Checksum, File, Manifest, Pin, blob_id
from modelcache.domain.paths import DEPTH_MAX, check_path
from modelcache.domain.refs import FileFilter, Ref
from modelcache.errors import (
    Forbidden,
    InvalidRef,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceUnavailable,
    UnsafePath,
)
from modelcache.sources.source import LocalTarget

FILES_MAX: Final = 200_000  # far beyond any model: somebody named the wrong directory
_LINK: Final = "hard"
_NO_FILE: Final = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL})


class FileSource:
    """See Source."""

    def __init__(self, origin: Ref, settings: FileSettings) -> None:
        """Raises InvalidRef for a `link` option that means nothing."""
        link = origin.option("link")
        if link not in {None, _LINK}:
            raise InvalidRef(f"option link={link} in file ref is not known; write link={_LINK}")
        self._origin = origin
        self._link = link == _LINK or settings.link is LocalCopy.HARDLINK
        self._share = self._link or settings.link is LocalCopy.REFLINK

    def resolve(self, ref: Ref) -> Manifest:
        """See Source. Raises UnsafePath for links out of the tree and for what is not a file."""
        root = "/" + ref.path.strip("/")
        try:
            if Path(root).is_dir():
                files = list(_files_below(root, ref.files))
            else:
                files = list(_single(root, ref.files))
        except OSError as error:
            raise _translated(error, root) from error
        if not files:
            raise NotFound(f"{root} has no file that the ref's filter accepts")
        return Manifest.of(str(self._origin), files)

    def locate(self, file: File, *, fresh: bool = False) -> LocalTarget:
        """See Source. The state is compared here: the kernel knows no preconditions."""
        del fresh
        path = file.key
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                path = os.path.realpath(path)  # what a hard link must name
                status = os.stat(path)  # noqa: PTH116 - once per small file, where Path is slow
        except OSError as error:
            raise _translated(error, path) from error
        if _pin(status) != file.pin or status.st_size != file.size_bytes:
            raise OriginChanged(
                f"{file.key} was changed since it was listed; pull again to resolve it anew"
            )
        return LocalTarget(path, link=self._link, share=self._share)

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


def _single(path: str, accepted: FileFilter) -> Iterator[File]:
    name = path.rpartition("/")[2]
    status = os.stat(path)  # noqa: PTH116 - see locate
    if accepted.accepts(name):
        yield _file(name, path, status)


def _files_below(root: str, accepted: FileFilter) -> Iterator[File]:
    """Accepted files with their paths relative to `root`."""
    real_root = os.path.realpath(root)
    found = 0
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(os.path.join(root, prefix)) as entries:  # noqa: PTH118 - see locate
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir():
                    if not accepted.prunes(path):
                        _check_directory(entry, path, real_root)
                        waiting.append(f"{path}/")
                elif accepted.accepts(path):
                    found += 1
                    yield _file(path, entry.path, entry.stat())
        if found > FILES_MAX or len(waiting) > FILES_MAX:
            raise UnsafePath(f"{root} holds over {FILES_MAX} files; name the model's own directory")


def _check_directory(entry: os.DirEntry[str], path: str, real_root: str) -> None:
    if path.count("/") >= DEPTH_MAX:
        check_path(path + "/x")  # says how deep is too deep
    if not entry.is_symlink():
        return
    target = os.path.realpath(entry.path)
    here = os.path.realpath(os.path.dirname(entry.path))  # noqa: PTH120 - see locate
    if not _is_within(target, real_root):
        raise UnsafePath(
            f"{entry.path} links to {target}, a directory outside the model; leave it out with "
            f"--exclude '{path}/*' or name the directory it leads to"
        )
    if _is_within(here, target):
        raise UnsafePath(
            f"{entry.path} links to a directory that contains it; leave it out with "
            f"--exclude '{path}/*'"
        )


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _file(path: str, key: str, status: os.stat_result) -> File:
    check_path(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePath(f"{key} is a device, pipe or socket; leave it out with --exclude '{path}'")
    if not os.access(key, os.R_OK):
        raise PermissionError(0, "not readable", key)
    pin = _pin(status)
    size = status.st_size
    blob = blob_id(origin="file", key=key, size_bytes=size, pin=pin, checksums=())
    return File(path, size, key, blob, pin)


def _pin(status: os.stat_result) -> Pin:
    """The inode number tells a replaced file from its predecessor.

    Not the device: network filesystems number theirs anew at each mount. Not the change time: a
    hard link from the store changes it.
    """
    return Pin(modified=str(status.st_mtime_ns), version=f"inode:{status.st_ino}")


def _translated(error: OSError, path: str) -> ModelcacheError:
    where = os.fsdecode(error.filename or path)
    match error:
        case PermissionError():
            return Forbidden(f"{where} may not be read by this user")
        case FileNotFoundError() | NotADirectoryError():
            if os.path.islink(where):  # noqa: PTH114 - see locate
                return NotFound(f"{where} is a link to something that does not exist")
            return NotFound(f"{where} does not exist")
        case _ if error.errno in _NO_FILE:
            return NotFound(f"{where} cannot be opened: {error.strerror}")
        case _:
            return SourceUnavailable(f"{where}: {error.strerror}")
