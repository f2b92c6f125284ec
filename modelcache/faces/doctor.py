"""`doctor`: is this machine set up to be fast, and what should be changed."""

from __future__ import annotations

import mmap
import os
import platform
import resource
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

from modelcache.agent.clock import wall_clock_s
from modelcache.config import BLOCK_BYTES, Settings
from modelcache.domain.places import Scheme
from modelcache.domain.ranges import MIB
from modelcache.domain.refs import Ref
from modelcache.errors import ModelcacheError
from modelcache.faces import units
from modelcache.sources.opening import open_source
from modelcache.store import files
from modelcache.store.blocks import in_huge_pages
from modelcache.transfer.memory import cheap_memory_bytes
from modelcache.transfer.policy import MEMORY_SHARE

DISK_TEST_BYTES: Final = 512 * MIB
NETWORK_TEST_BYTES: Final = 1024 * MIB
OPEN_FILES_MIN: Final = 4096
CLOCK_SKEW_MAX_S: Final = 300.0  # S3 refuses signatures beyond 15 minutes
SLOW_DISK_BYTES_S: Final = 500e6
FUSE: Final = Path("/dev/fuse")
PASSTHROUGH_KERNEL: Final = (6, 9)


class Verdict(StrEnum):
    """How a finding is meant."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. advice: what to change, where something should be."""

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "detail": self.detail,
            "advice": self.advice,
        }


def examine(settings: Settings, ref: Ref | None) -> Iterator[Finding]:
    """Look at everything, cheap things first. Makes and removes one file in the store's folder."""
    yield Finding(
        "system",
        Verdict.OK,
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} processors",
    )
    yield _open_files()
    folder = _nearest(settings.store.path)
    yield from _filesystem(folder, settings)
    yield from _features(folder)
    yield _streaming()
    yield _page_cache()
    yield _network()
    if ref is not None:
        yield from _origin(settings, ref)
    elif settings.s3.endpoint or os.environ.get("AWS_ACCESS_KEY_ID") or _has_aws_files():
        yield _credentials(settings)


def _streaming() -> Finding:
    """Whether models can be mounted before they are here, and at what cost."""
    name = "streaming"
    if not FUSE.exists():
        return Finding(name, Verdict.WARN, f"no {FUSE}", "modprobe fuse, for `mount --stream`")
    if os.geteuid() != 0:
        return Finding(name, Verdict.WARN, "FUSE is there", "only root can `mount --stream`")
    words = platform.release().split(".")
    if (int(words[0]), int("".join(filter(str.isdigit, words[1])))) < PASSTHROUGH_KERNEL:
        said = (
            "FUSE without passthrough: files are read through us until all of a model is here, and "
            "mounts end with an agent that is killed before"
        )
        return Finding(name, Verdict.OK, said)
    return Finding(name, Verdict.OK, "FUSE with passthrough, and mounts outlive their agent")


def report_text(findings: list[Finding]) -> str:
    """The findings, and what to change."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:4}  {finding.name.ljust(width)}  {finding.detail}")
        if finding.advice:
            lines.append(f"      {' ' * width}  -> {finding.advice}")
    return "\n".join(lines)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} open files (at most {hard})"
    if soft < OPEN_FILES_MIN:
        advice = f"raise the limit to {OPEN_FILES_MIN}: ulimit -n, or LimitNOFILE= in the unit"
        return Finding("limits", Verdict.WARN, detail, advice)
    return Finding("limits", Verdict.OK, detail)


def _filesystem(folder: Path, settings: Settings) -> Iterator[Finding]:
    path = settings.store.path
    in_the_way = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not in_the_way.is_dir():
        yield Finding("store", Verdict.FAIL, f"{in_the_way} is not a folder", "use --store")
        return
    kind = _filesystem_type(folder)
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    detail = f"{folder} is {kind}, {units.size(free)} free"
    if kind in {"nfs", "nfs4", "cifs", "9p", "overlay", "tmpfs"}:
        advice = "put the store on a local disk (ext4 or xfs); --store or store.path"
        yield Finding("store", Verdict.WARN, detail, advice)
    elif not os.access(folder, os.W_OK):
        yield Finding("store", Verdict.FAIL, detail, "this user cannot write there; use --store")
    else:
        yield Finding("store", Verdict.OK, detail)
    quota = settings.store.quota_bytes
    if quota > free:
        advice = "lower store.quota_bytes to what the disk holds"
        yield Finding("quota", Verdict.WARN, f"{units.size(quota)} quota", advice)


def _features(folder: Path) -> Iterator[Finding]:
    path = folder / f".doctor-{secrets.token_hex(4)}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        yield Finding("writing", Verdict.FAIL, f"{folder}: {error.strerror}", "use --store")
        return
    try:
        os.pwrite(fd, b"x" * files.ALIGNMENT, 0)
        yield _probe("xattr", lambda: os.setxattr(fd, "user.modelcache.doctor", b"1"))
        yield _reflink(folder, fd)
        yield _disk(path)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def _probe(name: str, attempt: Callable[[], None]) -> Finding:
    try:
        attempt()
    except OSError as error:
        detail = f"not supported ({error.strerror}); a file beside each blob is used instead"
        return Finding(name, Verdict.OK, detail)
    return Finding(name, Verdict.OK, "supported")


def _reflink(folder: Path, fd: int) -> Finding:
    twin = folder / f".doctor-{secrets.token_hex(4)}"
    other = os.open(twin, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        works = files.clone(fd, other)
    finally:
        os.close(other)
        twin.unlink()
    detail = "supported" if works else "not supported here; file:// models and repairs are copied"
    return Finding("reflink", Verdict.OK, detail)


def _disk(path: Path) -> Finding:
    """Write past the page cache for a moment."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        advice = "writes go through the page cache, at more CPU and memory; use ext4 or xfs"
        return Finding("O_DIRECT", Verdict.WARN, "refused by this filesystem", advice)
    try:
        files.preallocate(fd, DISK_TEST_BYTES)
        started_s = perf_counter()
        _in_threads(lambda offset, block: os.pwrite(fd, block, offset), DISK_TEST_BYTES)
        rate = DISK_TEST_BYTES / (perf_counter() - started_s)
    except OSError as error:
        return Finding("disk", Verdict.FAIL, f"write test failed: {error.strerror}", "free space")
    finally:
        os.close(fd)
    detail = f"{units.rate(rate)} written with O_DIRECT"
    if rate < SLOW_DISK_BYTES_S:
        advice = "the disk sets the pace; a local NVMe disk would not"
        return Finding("disk", Verdict.WARN, detail, advice)
    return Finding("disk", Verdict.OK, detail)


def _in_threads(write: Callable[[int, memoryview], int], size_bytes: int, threads: int = 4) -> None:
    def work(first: int) -> None:
        block = in_huge_pages(BLOCK_BYTES)
        for offset in range(first * BLOCK_BYTES, size_bytes, threads * BLOCK_BYTES):
            write(offset, block)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))  # raises what a thread raised


def _page_cache() -> Finding:
    cheap_bytes = cheap_memory_bytes()
    if cheap_bytes:
        most = units.size(int(cheap_bytes * MEMORY_SHARE))
        return Finding("page cache", Verdict.OK, f"--io auto leaves pulls of up to {most} in it")
    detail = "free pages belong to the host of this virtual machine; --io auto writes past it"
    return Finding("page cache", Verdict.OK, detail)


def _network() -> Finding:
    """Bytes through a socket of this machine into memory: what no network will exceed."""
    listener = socket.create_server(("127.0.0.1", 0))
    block = memoryview(mmap.mmap(-1, BLOCK_BYTES))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            for _ in range(NETWORK_TEST_BYTES // BLOCK_BYTES):
                connection.sendall(block)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    into = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    received = 0
    with socket.create_connection(listener.getsockname()) as client:
        started_s = perf_counter()
        while size := client.recv_into(into, len(into), socket.MSG_WAITALL):
            received += size
        rate = received / (perf_counter() - started_s)
    server.join()
    listener.close()
    return Finding("network", Verdict.OK, f"{units.rate(rate)} from a local socket into memory")


def _credentials(settings: Settings) -> Finding:
    try:
        import botocore.session  # noqa: PLC0415 - an optional extra
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    except ImportError:
        return Finding("s3", Verdict.WARN, "not installed", "install modelcache with [s3]")
    try:
        session = botocore.session.Session(profile=settings.s3.profile or None)
        found = session.get_credentials()
    except BotoCoreError as error:
        return Finding("s3", Verdict.FAIL, str(error), "see ~/.aws/config")
    if found is None:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role"
        return Finding("s3", Verdict.WARN, "no credentials found", advice)
    frozen = found.get_frozen_credentials()
    detail = f"credentials from {found.method}, key {(frozen.access_key or '')[:4]}..."
    return Finding("s3", Verdict.OK, detail)


def _origin(settings: Settings, ref: Ref) -> Iterator[Finding]:
    if ref.scheme is Scheme.S3:
        yield _credentials(settings)
    started_s = perf_counter()
    try:
        manifest = open_source(ref.origin(), settings).resolve(ref)
    except ModelcacheError as error:
        yield Finding("origin", Verdict.FAIL, error.message)
        return
    seconds = perf_counter() - started_s
    checked = sum(bool(file.checksums) for file in manifest.files)
    yield Finding(
        "origin",
        Verdict.OK,
        f"{ref.redacted()} resolved in {units.duration(seconds)}: "
        f"{units.count(len(manifest.files), 'file')}, {units.size(manifest.size_bytes)}, "
        f"{checked} with a checksum",
    )
    if ref.scheme is not Scheme.FILE:
        yield from _clock(settings, ref)


def _clock(settings: Settings, ref: Ref) -> Iterator[Finding]:
    import http.client  # noqa: PLC0415 - only here

    endpoint = ref.option("endpoint") or settings.s3.endpoint
    url = endpoint if ref.scheme is Scheme.S3 else f"{ref.scheme}://{ref.authority}"
    parts = urlsplit(url or "https://s3.amazonaws.com")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=5.0)
    try:
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date")
        skew = abs(wall_clock_s() - parsedate_to_datetime(date or "").timestamp())
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return  # the server told no time; nothing to say about ours
    finally:
        connection.close()
    if skew > CLOCK_SKEW_MAX_S:
        advice = "signatures will be refused; synchronise the clock (NTP)"
        yield Finding("clock", Verdict.FAIL, f"{units.duration(skew)} off", advice)
    else:
        yield Finding("clock", Verdict.OK, f"within {units.duration(max(skew, 1.0))} of the origin")


def _has_aws_files() -> bool:
    return any((Path.home() / ".aws" / name).exists() for name in ("config", "credentials"))


def _nearest(path: Path) -> Path:
    """The deepest folder of `path` that exists: where the store is or would be."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _filesystem_type(path: Path) -> str:
    best, kind = -1, "unknown"
    resolved = str(path.resolve())
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, name, *_ = line.split()
            inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
            if inside and len(point) > best:
                best, kind = len(point), name
    return kind
