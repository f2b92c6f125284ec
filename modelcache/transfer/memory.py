"""How much of the page cache a pull may fill without making anybody pay for it.

Three things make a page dear: there is none to spare, our control group may not have it, or the
machine is a guest that hands free pages back to its host (free page reporting of virtio-balloon)
and has to fault each one in again: here 1.2 s/GB against 0.2 for pages freed a moment ago
(`bench/io_policy.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

# Of the virtio specification, 5.5: the device's number, and the feature's bit.
BALLOON_DEVICE: Final = 5
FREE_PAGE_REPORTING: Final = 5


def cheap_memory_bytes(root: Path = Path("/")) -> int:
    """Memory the kernel gives without swapping or asking a host; 0 where nothing tells.

    root: where /proc and /sys are.
    """
    if _returns_free_pages(root / "sys/bus/virtio/devices"):
        return 0
    return min([_available_bytes(root), *_limits(root)])


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that could be had without swapping, by machine and control group; 0 if nobody tells.

    Other files' pages are part of it.
    """
    return min([_available_bytes(root), *_limits(root)])


def _returns_free_pages(devices: Path) -> bool:
    for device in devices.glob("*"):
        with suppress(OSError, ValueError):
            number = int((device / "device").read_text(), 16)
            features = (device / "features").read_text()
            if (
                number == BALLOON_DEVICE
                and features[FREE_PAGE_REPORTING : FREE_PAGE_REPORTING + 1] == "1"
            ):
                return True
    return False


def _available_bytes(root: Path) -> int:
    with suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _limits(root: Path) -> Iterator[int]:
    """What our control group and those above it may use, page cache included (cgroup v2 and v1)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's; then only the top is ours, and is read too.
        inner = top / group.strip("/")
        for folder in (inner, *inner.parents):
            with suppress(OSError, ValueError):  # no such file at a root, "max" where there is none
                yield int((folder / name).read_text())
            if folder == top:
                break
