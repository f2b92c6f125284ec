"""Load on the admission webhook: reviews at a fixed rate, as API servers send them.

    python -m bench.webhook [--rate 100] [--seconds 10] [--connections 4]

Starts `modelcache webhook`, sends each review at its time, or once its connection is free again,
and takes the time from when it was due to its last byte: what waits is not left out. Half of the
pods ask for two models, half for none. Prints milliseconds, and p99 as a share of its target.
Client and server are on one machine and share its cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from pathlib import Path
from time import perf_counter, sleep

import httpx2

from tests.faces.webhook.support import pod, review
from tests.servers.certificates import Certificates, make_certificates
from tests.servers.process import free_port

TARGET_S = 0.050
START_S = 20.0
WARM_UP = 50  # reviews of each connection
HEADERS = {"Content-Type": "application/json"}
BODIES = (
    json.dumps(review(pod("s3://bucket/llama=/models/llama,hf://org/name=/models/name"))),
    json.dumps(review(pod())),
)


def main() -> None:
    """Run it and print one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = make_certificates(Path(folder))
        with running(made) as (process, port):
            times = load(port, made.ca_file, given)
            cpu_s = cpu_of(process.pid)
    times.sort()
    found = {
        "reviews": len(times),
        "rate": given.rate,
        "p50_ms": round(1000 * times[len(times) // 2], 2),
        "p99_ms": round(1000 * times[len(times) * 99 // 100], 2),
        "max_ms": round(1000 * times[-1], 2),
        "p99_of_target": round(times[len(times) * 99 // 100] / TARGET_S, 3),
        "server_cpu_ms_a_review": round(
            1000 * cpu_s / (len(times) + WARM_UP * given.connections), 2
        ),
    }
    print(json.dumps(found))


@contextlib.contextmanager
def running(made: Certificates) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The webhook as a process, once it is ready; and its port."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "modelcache.main", "webhook", "--no-affinity"),
            *("--listen", f"127.0.0.1:{port}", "--linger", "0s", "--log-level", "warning"),
            *("--cert-file", str(made.cert_file), "--key-file", str(made.key_file)),
        ]
    )
    try:
        until_s = perf_counter() + START_S
        context = ssl.create_default_context(cafile=str(made.ca_file))
        with httpx2.Client(verify=context, trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    client.get(f"https://127.0.0.1:{port}/readyz").raise_for_status()
                    break
                assert perf_counter() < until_s, "the webhook did not start"
                sleep(0.05)
        yield process, port
    finally:
        process.terminate()
        process.wait()


def load(port: int, ca_file: Path, given: argparse.Namespace) -> list[float]:
    """Seconds that each review took. Connections take turns, each from a thread of its own."""
    count = int(given.rate * given.seconds)
    start_s = perf_counter() + 1.0

    def sent_by(turn: int) -> list[float]:
        times = []
        context = ssl.create_default_context(cafile=str(ca_file))
        connection = HTTPSConnection("127.0.0.1", port, context=context, timeout=START_S)
        with contextlib.closing(connection):
            for number in range(WARM_UP):
                ask(connection, number)
            for number in range(turn, count, given.connections):
                due_s = start_s + number / given.rate
                sleep(max(0.0, due_s - perf_counter()))
                ask(connection, number // given.connections)
                times.append(perf_counter() - due_s)
        return times

    with ThreadPoolExecutor(given.connections) as pool:
        return [took_s for each in pool.map(sent_by, range(given.connections)) for took_s in each]


def ask(connection: HTTPSConnection, number: int) -> None:
    """One review, and its whole answer."""
    connection.request("POST", "/mutate", BODIES[number % 2], HEADERS)
    answer = json.loads(connection.getresponse().read())
    assert answer["response"]["allowed"], answer


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has taken, its start included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
