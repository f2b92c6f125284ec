"""Our HTTP client beside the standard library's: large ranges, and many small ones, into memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench import measure
from bench.origins import Origins, Scenario, Transport

SIZE_BYTES = 2 << 30
SMALL_TOTAL_BYTES = 256 << 20
WAYS = {
    "64 MiB ranges, 4 connections": (SIZE_BYTES, 64 << 20, 4),
    "64 KiB ranges, 1 connection": (SMALL_TOTAL_BYTES, 64 << 10, 1),
}
KINDS = ("own", "http.client")


def measure_clients(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds and CPU seconds of each client for each way."""
    origins = Origins(folder)
    runs: list[dict[str, Any]] = []
    with (
        origins.prepared(Scenario.FILE, SIZE_BYTES),
        origins.serving(Scenario.FILE, Transport.HTTP) as origin,
    ):
        origins.warm(origin)
        for number in range(rounds):
            for way, sizes in WAYS.items():
                for kind in KINDS:
                    command = [sys.executable, "-m", "bench.peers.clients", kind, origin.raw_url]
                    cost = measure.run([*command, *map(str, sizes)], {}, folder)
                    if cost.failure:
                        raise RuntimeError(cost.failure)
                    runs.append({"way": way, "kind": kind, "round": number})
                    runs[-1] |= json.loads(cost.output)
                    print(f"  {runs[-1]}", file=sys.stderr)
    return runs
