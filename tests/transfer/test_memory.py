"""How much of the page cache is cheap: what the kernel's files are taken to mean."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.transfer.memory import cheap_memory_bytes

MIB = 1 << 20
AVAILABLE = 8192 * MIB
MEMINFO = f"MemTotal:       99999999 kB\nMemAvailable:   {AVAILABLE // 1024} kB\n"
REPORTING = "0000010000"
NOT_REPORTING = "0110000000"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GiB available and nothing special."""
    put(tmp_path / "proc/meminfo", MEMINFO)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add_virtio_device(root: Path, number: str, features: str) -> None:
    device = root / "sys/bus/virtio/devices" / f"virtio{number}"
    put(device / "device", f"{number}\n")
    put(device / "features", f"{features}\n")


def test_what_the_kernel_calls_available_is_cheap(root: Path):
    assert cheap_memory_bytes(root) == AVAILABLE


def test_nothing_is_cheap_where_nothing_tells(tmp_path: Path):
    assert cheap_memory_bytes(tmp_path) == 0


def test_nothing_is_cheap_where_the_host_takes_free_pages_back(root: Path):
    add_virtio_device(root, "0x0005", REPORTING)
    assert cheap_memory_bytes(root) == 0


def test_a_balloon_that_leaves_free_pages_alone_does_no_harm(root: Path):
    add_virtio_device(root, "0x0005", NOT_REPORTING)
    assert cheap_memory_bytes(root) == AVAILABLE


def test_the_same_bit_of_another_device_means_nothing(root: Path):
    add_virtio_device(root, "0x0001", REPORTING)
    assert cheap_memory_bytes(root) == AVAILABLE


@pytest.mark.parametrize(
    ("groups", "limit"),
    [
        ("0::/kubepods/pod1", "sys/fs/cgroup/kubepods/pod1/memory.max"),
        ("0::/kubepods/pod1", "sys/fs/cgroup/kubepods/memory.max"),  # the pod's, not ours
        ("0::/", "sys/fs/cgroup/memory.max"),  # inside a container
        ("4:memory:/pods/a", "sys/fs/cgroup/memory/pods/a/memory.limit_in_bytes"),
        ("4:cpu,memory:/a", "sys/fs/cgroup/memory/memory.limit_in_bytes"),  # a's is the host's path
    ],
)
def test_a_limit_of_the_control_group_counts(root: Path, groups: str, limit: str):
    put(root / "proc/self/cgroup", f"9:name=systemd:/\n{groups}\n")
    put(root / limit, f"{768 * MIB}\n")
    assert cheap_memory_bytes(root) == 768 * MIB


def test_a_control_group_without_a_limit_limits_nothing(root: Path):
    put(root / "proc/self/cgroup", "0::/kubepods\n")
    put(root / "sys/fs/cgroup/kubepods/memory.max", "max\n")
    assert cheap_memory_bytes(root) == AVAILABLE


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A control group of this machine with 512 MiB."""
    name = f"modelcache-test-{os.getpid()}"
    for top, limit in (
        ("/sys/fs/cgroup", "memory.max"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ):
        group = Path(top) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(512 * MIB))
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("no memory control group can be made here")


def test_a_real_control_group_is_found(limited_group: Path, tmp_path: Path):
    # Only this machine's groups: whether its host takes pages back is not the question here.
    put(tmp_path / "proc/meminfo", MEMINFO)
    (tmp_path / "proc/self").symlink_to("/proc/self")
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").symlink_to("/sys/fs/cgroup")
    program = (
        "from pathlib import Path; from modelcache.transfer.memory import cheap_memory_bytes;"
        f"print(cheap_memory_bytes(Path({str(tmp_path)!r})))"
    )
    enter = f'echo $$ > {limited_group}/cgroup.procs; exec "$@"'
    shown = subprocess.run(
        ["sh", "-c", enter, "sh", sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(shown.stdout) == 512 * MIB
