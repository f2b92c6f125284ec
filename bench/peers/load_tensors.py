"""Loads a model by one of several loaders, once, and prints what that took as a line of JSON.

`python -m bench.peers.load_tensors HOW PATH-OR-REF [STORE]`. Imports are done before the clock
starts. A tensor counts as loaded when a byte of each of its pages has been read, so that a mapping
that has read nothing yet gains nothing by that. first_s: until the first tensor; all_s: until the
last. over_bytes: peak of resident memory beyond the tensors, and beyond what was there before.
huge_bytes: what of this process's memory is in huge pages at the end.

Before the clock starts memory is filled and freed (`bench/memory.py`).
"""

# ruff: noqa: PLC0415 - each loader is imported only where it is measured

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from bench.memory import back_memory

Tensors = Iterator[tuple[str, Any]]
KEEP_ALL = 1 << 62


def files_of(where: str) -> list[str]:
    """The model's files, in their order."""
    return sorted(map(str, Path(where).glob("*.safetensors")))


def sources() -> None:
    """What our loaders would import when they see the ref; the others' imports are done too."""
    for name in ("awscrt.checksums", "modelcache.sources.http", "modelcache.sources.s3"):
        import_module(name)


def ours(where: str) -> Callable[[], Tensors]:
    """What `modelcache.load` does, tensor by tensor."""
    from modelcache.loader import iter_tensors

    return lambda: iter_tensors(where, framework="torch", window_bytes=KEEP_ALL)


def ours_origin(where: str) -> Callable[[], Tensors]:
    """The same, with nothing kept."""
    from modelcache.loader import iter_tensors, origin

    del origin
    sources()
    return lambda: iter_tensors(where, framework="torch", window_bytes=KEEP_ALL, through="origin")


def ours_store(where: str) -> Callable[[], Tensors]:
    """The same, through an empty store."""
    from modelcache.agent import pulling
    from modelcache.loader import arriving, iter_tensors

    del arriving, pulling
    sources()
    store = sys.argv[3]
    return lambda: iter_tensors(where, framework="torch", window_bytes=KEEP_ALL, store=store)


def pull_only(where: str) -> Callable[[], Tensors]:
    """The download alone."""
    import modelcache
    from modelcache.agent import pulling

    del pulling
    sources()

    def run() -> Tensors:
        modelcache.pull(where, store=sys.argv[3])
        yield from ()

    return run


def pull_then_load(where: str) -> Callable[[], Tensors]:
    """One after the other."""
    import modelcache
    from modelcache.agent import pulling
    from modelcache.loader import iter_tensors

    del pulling
    sources()

    def run() -> Tensors:
        path = modelcache.pull(where, store=sys.argv[3]).path
        yield from iter_tensors(path, framework="torch", window_bytes=KEEP_ALL)

    return run


def mapped(where: str) -> Callable[[], Tensors]:
    """As `load_file` does: tensors on the CPU are a mapping."""
    from safetensors.torch import load_file

    def run() -> Tensors:
        for file in files_of(where):
            yield from load_file(file).items()

    return run


def copied(where: str) -> Callable[[], Tensors]:
    """The same, copied out of the mapping."""
    from safetensors import safe_open

    def run() -> Tensors:
        for file in files_of(where):
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    yield name, opened.get_tensor(name).clone()

    return run


def runai(where: str) -> Callable[[], Tensors]:
    """Run:ai Model Streamer, unbounded, so that its tensors stay."""
    os.environ.setdefault("RUNAI_STREAMER_MEMORY_LIMIT", "-1")
    from runai_model_streamer import SafetensorsStreamer

    def run() -> Tensors:
        with SafetensorsStreamer() as streamer:
            files = files_of(where) if "://" not in where else sys.argv[3].split(",")
            streamer.stream_files(files)
            yield from streamer.get_tensors()

    return run


def fast(where: str) -> Callable[[], Tensors]:
    """fastsafetensors, without GPU Direct Storage."""
    from fastsafetensors import fastsafe_open

    def run() -> Tensors:
        with fastsafe_open(files_of(where), nogds=True, device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield name, opened.get_tensor(name)

    return run


LOADERS: dict[str, Callable[[str], Callable[[], Tensors]]] = {
    "modelcache": ours,
    "modelcache-origin": ours_origin,
    "modelcache-store": ours_store,
    "pull": pull_only,
    "pull-then-load": pull_then_load,
    "safetensors": mapped,
    "safetensors-copy": copied,
    "runai": runai,
    "fastsafetensors": fast,
}


def touch(tensor: torch.Tensor) -> None:
    """Read a byte of each page."""
    tensor.reshape(-1).view(torch.uint8)[:: os.sysconf("SC_PAGE_SIZE")].sum()


def resident_bytes(name: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


def huge_bytes() -> int:
    """AnonHugePages of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


def main() -> None:
    """See the module."""
    run = LOADERS[sys.argv[1]](sys.argv[2])
    touch(torch.zeros(8))
    back_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before = resident_bytes("VmRSS")
    used = resource.getrusage(resource.RUSAGE_SELF)
    start_s = perf_counter()
    first_s = None
    kept = {}
    for name, tensor in run():
        touch(tensor)
        kept[name] = tensor
        first_s = first_s if first_s is not None else perf_counter() - start_s
    all_s = perf_counter() - start_s
    now = resource.getrusage(resource.RUSAGE_SELF)
    size = sum(tensor.nbytes for tensor in kept.values())
    told = {
        "first_s": first_s,
        "all_s": all_s,
        "cpu_s": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
        "bytes": size,
        "tensors": len(kept),
        "over_bytes": resident_bytes("VmHWM") - before - size,
        "huge_bytes": huge_bytes(),
    }
    print(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)  # nobody waits for some gigabytes to be unmapped, or for a loader's own threads


main()
