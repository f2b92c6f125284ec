"""Examples of the guide are taken by a real API server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.installing import DAEMONSET, Kubectl, documents
from tests.servers.control_plane import ControlPlane

pytestmark = pytest.mark.cluster
GUIDE = DAEMONSET.parent / "docs" / "autoscaling.md"
FOREIGN = {
    "Certificate",
    "ClusterTriggerAuthentication",
    "KubeSchedulerConfiguration",
    "ProvisioningRequest",
    "ScaledObject",
}
"""Kinds that others bring, or that are no objects of a cluster."""


@pytest.mark.usefixtures("capacity_buffers")
def test_examples_of_the_guide_are_taken(plane: ControlPlane, tmp_path: Path):
    kubectl = Kubectl(plane, tmp_path)
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    found = [each for block in blocks for each in documents(block) if "kind" in each]
    kinds = {each["kind"] for each in found}
    assert {"CapacityBuffer", "ModelPrefetch", "ModelScale", "HorizontalPodAutoscaler"} <= kinds
    for each in found:
        if each["kind"] not in FOREIGN:
            if "namespace" in each["metadata"]:
                each["metadata"]["namespace"] = "default"
            kubectl.apply([each], dry_run=True)
