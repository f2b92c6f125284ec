"""What is mounted where, as this process sees it: /proc/self/mountinfo, see proc(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")
_FDINFO: Final = Path("/proc/self/fdinfo")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount. root: which folder of its filesystem is shown. options: of this mount alone.

    source: what it was mounted from, as whoever did it has called that.
    """

    mount_id: int
    device: str
    root: str
    target: str
    options: frozenset[str]
    filesystem: str
    source: str

    @property
    def read_only(self) -> bool:
        """Whether nobody can write through it."""
        return "ro" in self.options


def mounts_at(target: Path) -> list[Mounted]:
    """What is mounted at a path, the first below the last."""
    return [each for each in _all() if each.target == str(target)]


def top_at(target: Path) -> Mounted | None:
    """The mount that whoever goes to a folder comes to, or comes through; None without the folder.

    Asks nobody who serves it. Raises OSError.
    """
    try:
        fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return mount_of(fd)
    finally:
        os.close(fd)


def mount_of(fd: int) -> Mounted | None:
    """The mount that a descriptor was opened through; None when it is not mounted any more."""
    said = (_FDINFO / str(fd)).read_text(encoding="ascii")
    number = next(line.split()[1] for line in said.splitlines() if line.startswith("mnt_id:"))
    return next((each for each in _all() if each.mount_id == int(number)), None)


def mounts_below(folder: Path) -> list[Mounted]:
    """What is mounted at a folder or below it."""
    return [each for each in _all() if Path(each.target).is_relative_to(folder)]


def _all() -> Iterator[Mounted]:
    for line in MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        mine, _, its = line.partition(" - ")  # no space stands in a field
        number, _, device, root, target, options = mine.split(" ")[:6]
        filesystem, source = its.split(" ")[:2]
        yield Mounted(
            int(number),
            device,
            _plain(root),
            _plain(target),
            frozenset(options.split(",")),
            filesystem,
            _plain(source),
        )


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
