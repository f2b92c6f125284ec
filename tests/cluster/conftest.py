"""A real API server for all tests of this folder, with our kinds of objects in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from lightkube import ApiError, Client
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition

from modelcache.faces.kubernetes.objects import (
    ModelPrefetch,
    ModelScale,
    ModelScaleCheckpoint,
    NodeModels,
)
from modelcache.faces.scaler.buffers import CapacityBuffer
from tests.cluster import foreign
from tests.cluster.support import wait_until
from tests.servers.control_plane import ControlPlane
from tests.servers.process import ServerUnavailable

CRDS = Path(__file__).resolve().parents[2] / "daemonset" / "chart" / "crds"


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """etcd and kube-apiserver."""
    made = ControlPlane()
    try:
        made.__enter__()
    except ServerUnavailable as error:
        pytest.skip(str(error))
    try:
        with made.client() as client:
            install_crds(client)
        yield made
    finally:
        made.__exit__()


def install_crds(client: Client) -> None:
    """As `helm install` does, and wait until they are served."""
    for path in sorted(CRDS.glob("*.yaml")):
        crd = CustomResourceDefinition.from_dict(yaml.safe_load(path.read_text()))
        client.create(crd)
        client.wait(CustomResourceDefinition, crd.metadata.name, for_conditions=["Established"])
    for kind in (
        NodeModels,
        ModelPrefetch,
        ModelScale,
        ModelScaleCheckpoint,
    ):  # established before they are served
        wait_until(partial(_is_served, client, kind))


def _is_served(client: Client, kind: type[Any]) -> bool:
    try:
        namespaced = kind in {ModelScale, ModelScaleCheckpoint, CapacityBuffer}
        list(client.list(kind, namespace="*") if namespaced else client.list(kind))
    except ApiError:
        return False
    return True


@pytest.fixture
def client(plane: ControlPlane) -> Iterator[Client]:
    """As the administrator."""
    with plane.client() as made:
        yield made


@pytest.fixture(scope="session")
def capacity_buffers(plane: ControlPlane) -> None:
    """The kind of that name, as those define it who act upon it."""
    found = [
        each for each in foreign.definitions() if each["spec"]["names"]["kind"] == "CapacityBuffer"
    ]
    if not found:
        pytest.skip("CapacityBuffer's definition is not there: run `make test`")
    (definition,) = found
    with plane.client() as made:
        try:
            made.create(CustomResourceDefinition.from_dict(definition))
        except ApiError as error:  # another test has brought it
            if error.status.code != httpx2.codes.CONFLICT:
                raise
        name = definition["metadata"]["name"]
        made.wait(CustomResourceDefinition, name, for_conditions=["Established"])
        wait_until(partial(_is_served, made, CapacityBuffer))
