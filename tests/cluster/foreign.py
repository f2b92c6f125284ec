"""What others wrote and the tests run or hold us against: a sidecar, and kinds of objects.

Fetched through Go modules by `python -m tests.tools`, with hashes that stand here or in go.sum, and
kept outside of checkouts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.servers.control_plane import ASSETS

CACHE = ASSETS.parent
SIDECARS = Path(__file__).parent / "sidecars"
PROVISIONER = CACHE / "csi-provisioner-v5.2.0" / "csi-provisioner"
PROVISIONER_PACKAGE = "github.com/kubernetes-csi/external-provisioner/v5/cmd/csi-provisioner"
CRD_KIND = "CustomResourceDefinition"


@dataclass(frozen=True, slots=True)
class Kinds:
    """CustomResourceDefinitions of a module. files: globs within it. hash: as in go.sum."""

    module: str
    hash: str
    files: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return CACHE / "crds" / self.module.rpartition("/")[2].replace("@", "-")


KINDS = (
    Kinds(
        "github.com/prometheus-operator/prometheus-operator@v0.82.2",
        "h1:qalPLM8wkvCtu9aHcoSKGDpCZR3aWRMKeHev5WomTBQ=",
        (
            "example/prometheus-operator-crd/*_podmonitors.yaml",
            "example/prometheus-operator-crd/*_prometheusrules.yaml",
            "example/prometheus-operator-crd/*_servicemonitors.yaml",
        ),
    ),
    Kinds(
        "github.com/cert-manager/cert-manager@v1.17.2",
        "h1:QQYTEOsHf/Z3BFzKH2sIILHJwZA5Ut0LYZlHyNViupg=",
        ("deploy/crds/crd-*issuers.yaml", "deploy/crds/crd-certificates.yaml"),
    ),
    Kinds(
        "github.com/kserve/kserve@v0.15.2",
        "h1:uph7Umk331fvBMrHHpTJNDt6+lf3IAuyiskaQw8wIAk=",
        ("config/crd/full/serving.kserve.io_inferenceservices.yaml",),
    ),
    # Karpenter has the kind that Cluster Autoscaler defines, with the same fields of `spec`, and
    # can be had by its version.
    Kinds(
        "sigs.k8s.io/karpenter@v1.14.1",
        "h1:GjqvOHLjl2+OXM0ti5VEZSQuvcitB0pETd8zdChXEtI=",
        ("pkg/apis/crds/autoscaling.x-k8s.io_capacitybuffers.yaml",),
    ),
)


def missing_kinds() -> list[Kinds]:
    """Those that are not here."""
    return [kinds for kinds in KINDS if not kinds.folder.exists()]


def fetch_kinds(go: str, kinds: Kinds) -> str:
    """Have them here; what went wrong, if so."""
    environment = {**os.environ, "GOFLAGS": "", "GONOSUMDB": "*"}  # the hash is looked at here
    done = subprocess.run(
        [go, "mod", "download", "-json", kinds.module],
        env=environment,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return f"go mod download failed: {done.stderr[-300:]!r}"
    told: dict[str, Any] = json.loads(done.stdout)
    if told["Sum"] != kinds.hash:
        return f"{kinds.module} has the hash {told['Sum']}"
    made = kinds.folder.with_name(f".{kinds.folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for pattern in kinds.files:
        for path in Path(told["Dir"]).glob(pattern):
            shutil.copyfile(path, made / path.name)
    made.rename(kinds.folder)  # whole, or not there
    return ""


def build_provisioner(go: str) -> str:
    """Have the sidecar here; what went wrong, if so."""
    PROVISIONER.parent.mkdir(parents=True, exist_ok=True)
    made = PROVISIONER.with_name(".csi-provisioner")
    done = subprocess.run(
        [go, "build", "-trimpath", "-ldflags=-s -w", "-o", str(made), PROVISIONER_PACKAGE],
        cwd=SIDECARS,
        env={**os.environ, "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return f"go build failed: {done.stderr[-300:]!r}"
    made.rename(PROVISIONER)
    return ""


def definitions() -> Iterator[dict[str, Any]]:
    """The CustomResourceDefinitions that are here."""
    for kinds in KINDS:
        for path in sorted(kinds.folder.glob("*.yaml")):
            for found in yaml.safe_load_all(path.read_text()):
                if found and found["kind"] == CRD_KIND:
                    found["metadata"] = {  # without what Helm was to fill in
                        "name": found["metadata"]["name"],
                        "annotations": found["metadata"].get("annotations") or {},
                    }
                    yield found
