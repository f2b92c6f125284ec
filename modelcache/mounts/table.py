"""What is mounted where, as this process sees it: /proc/self/mountinfo, see proc(5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount. root: which folder of its filesystem is shown. options: of this mount alone."""

    mount_id: int
    device: str
    root: str
    target: str
    options: frozenset[str]

    @property
    def read_only(self) -> bool:
        """Whether nobody can write through it."""
        return "ro" in self.options


def mounts_at(target: Path) -> list[Mounted]:
    """What is mounted at a path, the first below the last."""
    return [each for each in _all() if each.target == str(target)]


def mounts_below(folder: Path) -> list[Mounted]:
    """What is mounted at a folder or below it."""
    return [each for each in _all() if Path(each.target).is_relative_to(folder)]


def _all() -> Iterator[Mounted]:
    for line in MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        number, _, device, root, target, options = line.split(" ")[:6]
        yield Mounted(
            int(number), device, _plain(root), _plain(target), frozenset(options.split(","))
        )


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
