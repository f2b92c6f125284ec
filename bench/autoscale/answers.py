"""How fast external metrics are answered with 1,000 of them, and how old what is answered is.

A real API server, and `modelcache scaler` behind its aggregation: 1,000 ModelScales, each reading
its demand every five seconds. Four connections ask for one after the other, as an autoscaler's
workers do. Then an agent's report is changed, and how long it takes
until an answer says so is measured. Client, both servers and etcd share the machine.
"""

from __future__ import annotations

import json
import ssl
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any, Final

from tests.cluster.autoscaling import ROOT, WAITING, ScalerProcess, gateway, registered
from tests.cluster.conftest import install_crds
from tests.cluster.serving import make_gpu_node, make_scale, tell
from tests.servers.control_plane import ADMIN, ControlPlane

SERIES: Final = 1000
CONNECTIONS: Final = 4
ROUNDS: Final = 2
CHANGES: Final = 20
METRIC: Final = "modelcache_recommended_replicas"
SETTLE_S: Final = 15.0  # every source has been read by then
TARGET_S: Final = 0.1
NODE: Final = "b1"


def measure_answers(*, quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds through the API server and from the scaler itself; and ages."""
    count = SERIES // 10 if quick else SERIES
    with ControlPlane() as plane, plane.client() as client, tempfile.TemporaryDirectory() as folder:
        install_crds(client)
        make_gpu_node(client, NODE)
        tell(client, NODE, 100)
        with gateway(client, NODE) as front, registered(plane, Path(folder)) as scaler:
            front.waiting.set(20)
            demand = {**front.demand(WAITING, "gauge"), "intervalSeconds": 5}
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(lambda n: make_scale(client, f"m{n}", demand=demand), range(count)))
            _known(plane, f"m{count - 1}")
            sleep(SETTLE_S)
            runs = [
                _timed("the API server", count, lambda: _through(plane)),
                _timed("the scaler itself", count, lambda: _direct(plane, scaler)),
            ]
            tell(client, NODE, 100)
            return [*runs, _ages(plane, client)]


def _through(plane: ControlPlane) -> tuple[HTTPSConnection, dict[str, str]]:
    context = ssl.create_default_context(cafile=str(plane.api.certificates.ca_file))
    connection = HTTPSConnection("127.0.0.1", plane.api.port, context=context, timeout=30)
    return connection, {"Authorization": f"Bearer {ADMIN}"}


def _direct(plane: ControlPlane, scaler: ScalerProcess) -> tuple[HTTPSConnection, dict[str, str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # a server of ours
    shown = plane.api.front_proxy
    context.load_cert_chain(shown.cert_file, shown.key_file)
    connection = HTTPSConnection("127.0.0.1", scaler.port, context=context, timeout=30)
    return connection, {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}


def _timed(where: str, count: int, connect: Any) -> dict[str, Any]:  # noqa: ANN401
    def load(first: int) -> Iterator[float]:
        connection, headers = connect()
        for _ in range(ROUNDS):
            for number in range(first, count, CONNECTIONS):
                begun_s = perf_counter()
                status, body = _get(connection, headers, METRIC, f"m{number}")
                assert status == 200, body
                yield perf_counter() - begun_s
        connection.close()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        times = sorted(
            t for part in pool.map(lambda n: list(load(n)), range(CONNECTIONS)) for t in part
        )
    return {
        "what": "answers",
        "where": where,
        "series": count,
        "asked": len(times),
        "p50_ms": round(1000 * times[len(times) // 2], 2),
        "p99_ms": round(1000 * times[len(times) * 99 // 100], 2),
        "max_ms": round(1000 * times[-1], 2),
        "p99_of_target": round(times[len(times) * 99 // 100] / TARGET_S, 3),
    }


def _ages(plane: ControlPlane, client: Any) -> dict[str, Any]:  # noqa: ANN401
    """From the moment the API server has taken a report to an answer that has it."""
    connection, headers = _through(plane)
    times: list[float] = []
    for change in range(CHANGES):
        percent = 50 if change % 2 == 0 else 100
        tell(client, NODE, percent)
        begun_s = monotonic()
        wanted = "0" if percent < 100 else "1"
        while True:
            _, body = _get(connection, headers, "modelcache_warm_nodes", "m0")
            if body["items"][0]["value"] == wanted:
                break
        times.append(monotonic() - begun_s)
    times.sort()
    return {
        "what": "age",
        "changes": len(times),
        "p50_s": round(times[len(times) // 2], 3),
        "max_s": round(times[-1], 3),
    }


def _known(plane: ControlPlane, name: str) -> None:
    connection, headers = _through(plane)
    until_s = monotonic() + 180
    while _get(connection, headers, METRIC, name)[0] != 200:
        assert monotonic() < until_s
        sleep(0.5)


def _get(
    connection: HTTPSConnection, headers: dict[str, str], metric: str, model: str
) -> tuple[int, dict[str, Any]]:
    path = f"{ROOT}/namespaces/default/{metric}?labelSelector=model%3D{model}"
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
