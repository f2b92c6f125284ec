"""`python -m bench [STUDY ...]`: run studies, keep their numbers, write RESULTS.md and the plot.

pull     modelcache beside other tools (--quick: smaller, once)
warm     the second pull of a model that is there
io       direct or buffered writing: what `--io auto` rests on
client   our HTTP client beside http.client: what the transfer engine's own rests on
serve    the peer plane beside other servers: what a GB costs the one that gives it
simulate the planner on up to 5,000 nodes, in virtual time (--quick: up to 256 of them)
swarm    eight agents on hosts of their own, every link shaped, and the same simulated (root)
mount    streaming mounts beside a bind mount, rclone's and s3fs (root)
autoscale autoscalers and slow starts, simulated; external metrics with a real API server
estimate predicted starts, simulated and on three hosts whose links change (root for the latter)
publish  a volume of a warm model, as kubelet asks for it (root)
load     tensors, beside other loaders (wants `make .venv/.load`: several GB, so only if named)
report   only write RESULTS.md and the plot again, from the numbers kept in bench/results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import (
    comparison,
    estimate,
    http_client,
    io_policy,
    load,
    mount,
    publish,
    results,
    serve,
    simulate,
    swarm,
    warm,
)
from bench.autoscale import answers
from bench.autoscale import study as study_of_scaling
from bench.contenders import TOOLS
from bench.origins import SMALL_BYTES, Scenario, Transport
from tests.servers.process import TOOLS as PROGRAMS

GIB = 1 << 30
TOOLS_BIN = PROGRAMS / "bin"
LOADERS = ("torch", "safetensors", "runai-model-streamer", "fastsafetensors")
STUDIES = (
    *("pull", "warm", "io", "client", "serve", "simulate", "swarm", "publish", "mount"),
    *("estimate", "autoscale"),
)
SIZES = {Scenario.FILE: 4 * GIB, Scenario.MODEL: 4 * GIB, Scenario.SMALL: 10_000 * SMALL_BYTES}
QUICK = {Scenario.FILE: GIB, Scenario.MODEL: GIB, Scenario.SMALL: 1_000 * SMALL_BYTES}


def main() -> None:
    """Parse, run, write."""
    options = _parse()
    studies = options.studies or [*STUDIES]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="modelcache-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for study in studies:
            if study == "report":
                continue
            print(f"{study}:", file=sys.stderr)
            numbers = {
                "pull": lambda: _pull(options, folder),
                "warm": lambda: warm.measure_warm(folder, options.rounds + 4),
                "io": lambda: io_policy.measure_policies(folder, options.rounds),
                "client": lambda: http_client.measure_clients(folder, options.rounds),
                "serve": lambda: serve.measure_servers(folder, options.rounds),
                "swarm": lambda: swarm.measure_swarm(
                    folder, 1 if options.quick else options.rounds
                ),
                "publish": lambda: publish.measure_publishing(folder, options.rounds),
                "mount": lambda: mount.measure_mounts(
                    folder, 1 if options.quick else options.rounds
                ),
                "load": lambda: load.measure_loaders(
                    folder,
                    1 if options.quick else options.rounds,
                    quick=options.quick,
                    cases=options.case,
                ),
                "autoscale": lambda: [
                    *study_of_scaling.measure(quick=options.quick),
                    *answers.measure_answers(quick=options.quick),
                ],
                "estimate": lambda: estimate.measure(folder, quick=options.quick),
                "simulate": lambda: simulate.measure(quick=options.quick),
            }[study]()
            results.keep(study, {"machine": machine(folder), "runs": numbers})
    results.write()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, "load", "report"], metavar="STUDY")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each tool (3)")
    parser.add_argument("--scenario", nargs="+", choices=list(Scenario), default=list(Scenario))
    parser.add_argument("--transport", nargs="+", choices=list(Transport), default=list(Transport))
    parser.add_argument("--tool", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--case", nargs="+", choices=load.CASES, default=load.CASES, help="of load")
    parser.add_argument("--quick", action="store_true", help="1 GiB and 1,000 files, once")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure (/tmp)")
    return parser.parse_args()


def _pull(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    extent = comparison.Extent(
        [Scenario(name) for name in options.scenario],
        [Transport(name) for name in options.transport],
        1 if options.quick else options.rounds,
        QUICK if options.quick else SIZES,
        options.tool,
    )
    return [run.to_json() for run in comparison.compare(extent, folder)]


def machine(folder: Path) -> dict[str, Any]:
    """What the numbers were measured on."""
    processor = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    filesystem = subprocess.run(
        ["df", "--output=fstype", str(folder)], capture_output=True, text=True, check=False
    ).stdout.split()[-1]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processors": os.cpu_count(),
        "processor": processor,
        "memory_gib": round(memory / GIB),
        "kernel": platform.release(),
        "filesystem": filesystem,
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, arguments in {
        "rclone": ["version"],
        "s5cmd": ["version"],
        "aria2c": ["--version"],
        "curl": ["--version"],
        "nginx": ["-v"],
        "s3fs": ["--version"],
        "docker-registry": ["--version"],
        "oras": ["version"],
        "skopeo": ["--version"],
    }.items():
        folder = Path(sys.executable).parent
        program = shutil.which(
            name, path=f"{folder}:{TOOLS_BIN}:/usr/sbin:{os.environ.get('PATH', '')}"
        )
        if program:
            done = subprocess.run(
                [program, *arguments], capture_output=True, text=True, check=False
            )
            found[name] = (done.stdout or done.stderr).splitlines()[0].strip()
    for package in (
        "boto3",
        "awscrt",
        "obstore",
        "huggingface_hub",
        "google-cloud-storage",
        *LOADERS,
    ):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import importlib.metadata as m; print(m.version({package!r}))",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if not done.returncode:
            found[package] = done.stdout.strip()
    return found


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except json.JSONDecodeError as error:
        sys.exit(f"numbers in bench/results are damaged: {error}")
