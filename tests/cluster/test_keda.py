"""KEDA's side of the external scaler: a client that is generated from its protocol."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from grpc_tools import protoc
from lightkube import Client
from lightkube.resources.core_v1 import Node, Pod

from modelcache.faces.kubernetes.objects import ModelScale, NodeModels
from modelcache.faces.scaler.life import Scaler
from modelcache.faces.scaler.protocol import externalscaler_pb2 as protocol
from tests.cluster.autoscaling import WAITING, Gateway, gateway
from tests.cluster.serving import (
    become,
    make_gpu_node,
    make_scale,
    make_server_pod,
    scaling,
    tell,
)
from tests.cluster.support import delete_pod, remove, wait_until
from tests.faces.scaler.keda import serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
ROOT = Path(__file__).resolve().parents[2]
PROTO = "modelcache/faces/scaler/protocol/externalscaler.proto"
NODE = "k1"
ANSWER_S = 20.0


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """What KEDA's protocol is for a client, made by the compiler."""
    folder = tmp_path_factory.mktemp("stubs")
    arguments = ["protoc", f"--proto_path={ROOT}", f"--grpc_python_out={folder}", str(ROOT / PROTO)]
    assert protoc.main(arguments) == 0
    path = folder / PROTO.replace(".proto", "_pb2_grpc.py")
    spec = importlib.util.spec_from_file_location("externalscaler_pb2_grpc", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def scaler(client: Client) -> Iterator[Scaler]:
    make_gpu_node(client, NODE)
    with scaling(client) as made:
        yield made
    for item in client.list(ModelScale, namespace="*"):
        client.delete(ModelScale, item.metadata.name, namespace=item.metadata.namespace)
    for pod in client.list(Pod, namespace="default"):
        delete_pod(client, str(pod.metadata.name))
    remove(client, NodeModels, NODE)
    remove(client, Node, NODE)


@pytest.fixture
def keda(scaler: Scaler, stubs: ModuleType) -> Iterator[Any]:
    """A client of a server that runs."""
    with (
        serving(scaler.outlooks, scaler.metrics) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield stubs.ExternalScalerStub(channel)


def asked(**metadata: str) -> protocol.ScaledObjectRef:
    metadata = {"scalerAddress": "modelcache-scaler-keda.modelcache:9873", **metadata}
    return protocol.ScaledObjectRef(name="llama", namespace="default", scalerMetadata=metadata)


def is_active(keda: Any, **metadata: str) -> bool | str:
    try:
        return bool(keda.IsActive(asked(**metadata), timeout=ANSWER_S).result)
    except grpc.RpcError as error:
        return str(error.code().name)


def value(keda: Any, **metadata: str) -> float:
    spec = keda.GetMetricSpec(asked(**metadata), timeout=ANSWER_S).metricSpecs[0]
    assert (spec.targetSize, spec.targetSizeFloat) == (1, 1.0)
    request = protocol.GetMetricsRequest(
        scaledObjectRef=asked(**metadata), metricName=spec.metricName
    )
    (found,) = keda.GetMetrics(request, timeout=ANSWER_S).metricValues
    assert found.metricName == spec.metricName
    return float(found.metricValueFloat or found.metricValue)


def scale_on(client: Client, front: Gateway) -> None:
    """Which recommends what the gateway says waits, by the half."""
    make_scale(
        client,
        "llama",
        demand=front.demand(WAITING, "gauge"),
        costs={"late": 1, "idle": 1000},
    )


def test_what_should_be_is_told_with_one_as_its_target(client: Client, keda: Any):
    tell(client, NODE, 100)
    with gateway(client, NODE) as front:
        front.waiting.set(7)
        scale_on(client, front)
        wait_until(lambda: is_active(keda) is True)
        assert value(keda) == 4
        assert value(keda, metric="load") == 3.5
        assert value(keda, metric="load", quantile="0.5") == 3.5
        front.waiting.set(0)
        wait_until(lambda: is_active(keda) is False)
        assert value(keda) == 0


def test_it_stays_active_while_anything_is_on_its_way(client: Client, keda: Any):
    with gateway(client, NODE) as front:
        scale_on(client, front)
        wait_until(lambda: is_active(keda) is False)
        make_server_pod(client, "p1", app="llama")  # which no node has yet
        wait_until(lambda: is_active(keda) is True)
        delete_pod(client, "p1")
        wait_until(lambda: is_active(keda) is False)
        make_server_pod(client, "p2", app="llama", node=NODE)
        wait_until(lambda: is_active(keda) is True)
        become(client, "p2", ready=True)
        wait_until(lambda: is_active(keda) is False)


def test_from_zero_may_wait_for_a_warm_node(client: Client, keda: Any):
    tell(client, NODE, 50)
    with gateway(client, NODE) as front:
        front.waiting.set(7)
        scale_on(client, front)
        wait_until(lambda: is_active(keda) is True)
        assert is_active(keda, fromZero="warm") is False
        tell(client, NODE, 100)
        wait_until(lambda: is_active(keda, fromZero="warm") is True)


def test_changes_are_pushed(client: Client, keda: Any):
    with gateway(client, NODE) as front:
        scale_on(client, front)
        wait_until(lambda: is_active(keda) is False)
        stream = keda.StreamIsActive(asked(), timeout=60)
        assert next(stream).result is False
        front.waiting.set(7)
        assert next(stream).result is True
        front.waiting.set(0)
        assert next(stream).result is False
        stream.cancel()
        specs = keda.StreamMetricSpec(asked(), timeout=60)
        assert next(specs) == keda.GetMetricSpec(asked(), timeout=ANSWER_S)
        specs.cancel()


def test_what_is_not_known_is_an_error_upon_which_nothing_changes(client: Client, keda: Any):
    assert is_active(keda) == "NOT_FOUND"
    assert is_active(keda, model="other") == "NOT_FOUND"
    make_scale(client, "llama")
    wait_until(lambda: is_active(keda) == "UNAVAILABLE")
    with pytest.raises(grpc.RpcError, match="no source of demand is stated"):
        value(keda)


@pytest.mark.parametrize(
    "metadata", [{"metric": "backlog"}, {"quantile": "p99"}, {"fromZero": "x"}, {"modle": "llama"}]
)
def test_metadata_that_cannot_be_is_refused(client: Client, keda: Any, metadata: dict[str, str]):
    make_scale(client, "llama")
    assert is_active(keda, **metadata) == "INVALID_ARGUMENT"
    with pytest.raises(grpc.RpcError) as caught:
        next(keda.StreamIsActive(asked(**metadata), timeout=ANSWER_S))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_another_metric_is_not_there(client: Client, keda: Any):
    make_scale(client, "llama")
    request = protocol.GetMetricsRequest(scaledObjectRef=asked(), metricName="other")
    with pytest.raises(grpc.RpcError, match="no metric 'other'"):
        keda.GetMetrics(request, timeout=ANSWER_S)
