"""A real API server for all tests of this folder, with our kinds of objects in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lightkube import Client
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition

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


@pytest.fixture
def client(plane: ControlPlane) -> Iterator[Client]:
    """As the administrator."""
    with plane.client() as made:
        yield made
