"""The files that are to be pushed: found below a directory, or those of a model in the store.

A push publishes, so it is careful where a pull is generous: what is hidden stays behind, and a link
is followed only to what lies inside. What was left out is told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelcache.config import StoreSettings
from modelcache.domain.manifests import Manifest
from modelcache.domain.paths import check_path, check_tree
from modelcache.domain.refs import FileFilter, parse_ref
from modelcache.errors import (
    ModelcacheError,
    NotFound,
    NotInStore,
    SourceRefused,
    StoreError,
    UnsafePath,
    UsageError,
)
from modelcache.sources.oci.outgoing import translated
from modelcache.store import Store

FILES_MAX: Final = 10_000  # a manifest of more layers is beyond the 4 MiB that registries take
LEASE: Final = "push"
TOLD_MAX: Final = 5  # names of hidden files in one message


@dataclass(frozen=True, slots=True)
class Found:
    """One file. digest: `sha256:…` of its bytes, where it is known."""

    name: str
    path: Path
    size_bytes: int
    digest: str | None = None


@dataclass(slots=True)
class Gathered:
    """What will be pushed, by name; and what was hidden and so left out."""

    files: list[Found] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """One line about what was left out; empty for nothing."""
        if not self.hidden:
            return ""
        shown = ", ".join(self.hidden[:TOLD_MAX])
        more = len(self.hidden) - TOLD_MAX
        rest = f" and {more} more" if more > 0 else ""
        return f"left out, because hidden: {shown}{rest} (--hidden takes them)"


def gather(
    root: Path, accepted: FileFilter, *, hidden: bool = False, follow: bool = False
) -> Gathered:
    """The files of a directory, or one file, that the filter accepts; sorted by name.

    hidden: take names that begin with a dot. follow: links may lead out of the directory. Raises
    NotFound (also where nothing is left), Forbidden, and UnsafePath for links that lead out, for
    devices, and for names that could not be pulled.
    """
    found = Gathered()
    try:
        if root.is_dir():
            _Walk(root, accepted, found, hidden=hidden, follow=follow).run()
        elif accepted.accepts(root.name):
            found.files.append(_file(root.name, root))
    except OSError as error:
        raise translated(error, error.filename or root) from error
    if not found.files:
        note = f"; {found.note}" if found.hidden else ""
        raise NotFound(f"{root} has no file to push" + note)
    found.files.sort(key=lambda file: file.name)
    found.hidden.sort()
    check_tree(file.name for file in found.files)
    return found


@contextmanager
def opened(
    what: str, accepted: FileFilter, store: StoreSettings, *, hidden: bool, follow: bool
) -> Iterator[Gathered]:
    """What `what` names: a path, a file:// ref, or a model in the store, by ref or id.

    Such a model is not evicted meanwhile, unless the store cannot be written. Raises as `gather`,
    and NotInStore.
    """
    path = _local(what)
    if path is not None:
        yield gather(path, accepted, hidden=hidden, follow=follow)
        return
    try:
        kept = Store.open(store, write=False)
        model_id = kept.find(what)
    except UsageError as error:
        if "://" in what:
            raise NotInStore(f"{error.message}; pull it first, or name a directory") from error
        raise NotFound(f"{what} is neither a file or directory nor a model in the store") from error
    with ExitStack() as stack:
        with suppress(StoreError):  # one that only others may write keeps what they want
            writable = Store.open(store, write=True)
            stack.enter_context(writable.hold(model_id, LEASE, "being pushed"))
        snapshot = kept.snapshot_path(model_id)
        if snapshot is None:
            raise NotInStore(f"model {model_id[:12]} is not complete yet; pull it again")
        yield gather_model(kept.manifest(model_id), snapshot, accepted)


def gather_model(manifest: Manifest, snapshot: Path, accepted: FileFilter) -> Gathered:
    """The files of a model in the store. Blobs that are named by their SHA-256 need no reading."""
    files = [
        Found(
            file.path,
            snapshot / file.path,
            file.size_bytes,
            file.blob.replace("-", ":", 1) if file.blob.startswith("sha256-") else None,
        )
        for file in manifest.files
        if accepted.accepts(file.path)
    ]
    if not files:
        raise NotFound(f"model {manifest.model_id[:12]} has no file that the filter accepts")
    if len(files) > FILES_MAX:
        raise _too_many(f"model {manifest.model_id[:12]}")
    return Gathered(files)


def _local(what: str) -> Path | None:
    if what.startswith("file://"):
        return Path("/" + parse_ref(what).path.strip("/"))
    path = Path(what).expanduser()
    return path if "://" not in what and path.exists() else None


class _Walk:
    """One pass over a directory."""

    def __init__(
        self, root: Path, accepted: FileFilter, found: Gathered, *, hidden: bool, follow: bool
    ) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)
        self._accepted = accepted
        self._found = found
        self._hidden = hidden
        self._follow = follow

    def run(self) -> None:
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            for entry in self._entries(prefix):
                name = prefix + entry.name
                if entry.is_dir():
                    if not self._accepted.prunes(name):
                        self._check_link(entry, name)
                        waiting.append(f"{name}/")
                elif self._accepted.accepts(name):
                    self._check_link(entry, name)
                    self._found.files.append(_file(name, Path(entry.path)))
            if len(self._found.files) > FILES_MAX or len(waiting) > FILES_MAX:
                raise _too_many(str(self._root))

    def _entries(self, prefix: str) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self._root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith(".") and not self._hidden:
                    self._found.hidden.append(prefix + entry.name)
                else:
                    yield entry

    def _check_link(self, entry: os.DirEntry[str], name: str) -> None:
        if not entry.is_symlink():
            return
        target = os.path.realpath(entry.path)
        inside = target.startswith(self._real_root.rstrip("/") + "/")
        if not inside and not self._follow:
            raise UnsafePath(
                f"{entry.path} links to {target}, outside of what is pushed; leave it out with "
                f"--exclude '{name}', or take what it leads to with --follow-links"
            )
        if entry.is_dir():
            here = os.path.realpath(Path(entry.path).parent)
            if (here + "/").startswith(target.rstrip("/") + "/"):
                raise UnsafePath(
                    f"{entry.path} links to a directory that contains it; leave it out with "
                    f"--exclude '{name}/*'"
                )


def _file(name: str, path: Path) -> Found:
    check_path(name)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePath(f"{path} is a device, pipe or socket; leave it out with --exclude")
    return Found(name, path, status.st_size)


def _too_many(where: str) -> ModelcacheError:
    return SourceRefused(
        f"{where} has over {FILES_MAX} files, more layers than a registry's manifest holds; name "
        "the model's own directory, or leave files out with --exclude"
    )
