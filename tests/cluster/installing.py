"""The chart and the manifests as objects, and kubectl and helm against a test's API server.

    python -m tests.cluster.installing

writes daemonset/manifests anew: the base from the chart's defaults, components from the values that
turn them on. Tests hold the two together.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.control_plane import VERSION, ControlPlane
from tests.servers.process import TOOLS

DAEMONSET = Path(__file__).resolve().parents[2] / "daemonset"
CHART = DAEMONSET / "chart"
BASE = DAEMONSET / "manifests" / "base"
COMPONENTS = DAEMONSET / "manifests" / "components"
COMPONENT_VALUES: dict[str, dict[str, Any]] = {"scaler": {"scaler.enabled": True}}
OVERLAY = DAEMONSET / "manifests" / "overlays" / "example"
NAMESPACE = "modelcache"
TOKEN_SECRET = "modelcache-peers"  # noqa: S105 - an object's name
"""Of the chart alone: manifests hold no secrets."""

Object = dict[str, Any]

_ONLY_HELMS = ("helm.sh/chart", "app.kubernetes.io/managed-by", "checksum/config")
_FILES = {"agent": "agent.yaml", "csi": "agent.yaml"}


def helm(*arguments: str, kubeconfig: Path | None = None) -> str:
    """What it says. Raises AssertionError with its complaint."""
    program = TOOLS / "bin" / "helm"
    if not program.exists():
        pytest.skip("helm is not there: run `make test`")
    flags = [f"--kubeconfig={kubeconfig}"] if kubeconfig else []
    return _run([str(program), *arguments, *flags])


def rendered(
    values: Mapping[str, Any] | None = None, *, namespace: str = NAMESPACE, version: str = VERSION
) -> list[Object]:
    """What the chart makes of values. version: of Kubernetes."""
    program = [f"--set-json={name}={json.dumps(value)}" for name, value in (values or {}).items()]
    text = helm(
        "template",
        "modelcache",
        str(CHART),
        f"--namespace={namespace}",
        f"--kube-version={version}",
        *program,
    )
    return documents(text)


def kustomized(folder: Path) -> list[Object]:
    """What a folder of kustomize makes."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not there")
    return documents(_run(["kubectl", "kustomize", str(folder)]))


def documents(text: str) -> list[Object]:
    """The objects of a stream of YAML."""
    return [found for found in yaml.safe_load_all(text) if found]


def key(found: Object) -> tuple[str, str]:
    """What tells objects of one installation apart."""
    return found["kind"], found["metadata"]["name"]


def by_key(objects: Iterable[Object]) -> dict[tuple[str, str], Object]:
    """Each of them, by kind and name; there are no two with the same."""
    found = list(objects)
    keyed = {key(each): each for each in found}
    assert len(keyed) == len(found)
    return keyed


class Kubectl:
    """The command, as the administrator of a test's cluster."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.kubeconfig = plane.kubeconfig()
        self._folder = folder

    def __call__(self, *arguments: str) -> str:
        """What it says. Raises AssertionError with its complaint."""
        if shutil.which("kubectl") is None:
            pytest.skip("kubectl is not there")
        return _run(["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments])

    def apply(self, objects: Iterable[Object], *, dry_run: bool = False) -> None:
        """By server-side apply, so that the server sees every field."""
        flags = ["--server-side", "--force-conflicts", "--validate=strict"]
        if dry_run:
            flags.append("--dry-run=server")
        self("apply", *flags, "-f", self._written(objects))

    def delete(self, objects: Iterable[Object]) -> None:
        """Those that are there."""
        self("delete", "--ignore-not-found", "--wait=false", "-f", self._written(objects))

    def token(self, account: str, pod: str = "", *, namespace: str = NAMESPACE) -> str:
        """A token of an account; with a pod, as kubelet gets it for that pod."""
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"] if pod else []
        return self("create", "token", account, f"--namespace={namespace}", *bound).strip()

    def _written(self, objects: Iterable[Object]) -> str:
        path = self._folder / "objects.yaml"
        path.write_text(yaml.safe_dump_all(list(objects)))
        return str(path)


def portable(found: Object) -> Object:
    """Without what only Helm's users have use for."""
    copy: Object = json.loads(json.dumps(found))
    template = ((copy.get("spec") or {}).get("template") or {}).get("metadata") or {}
    for metadata in (copy["metadata"], template):
        for part in ("labels", "annotations"):
            for name in _ONLY_HELMS:
                (metadata.get(part) or {}).pop(name, None)
    return copy


def write_base() -> None:
    """The manifests, from the chart's defaults."""
    files: dict[str, list[Object]] = {}
    for found in map(portable, rendered()):
        component = found["metadata"]["labels"]["app.kubernetes.io/component"]
        if key(found) == ("ConfigMap", "modelcache-agent"):
            (BASE / "config.toml").write_text(found["data"]["config.toml"])
        elif key(found) != ("Secret", TOKEN_SECRET):
            files.setdefault(_FILES.get(component, f"{component}.yaml"), []).append(found)
    for name, objects in files.items():
        _write(BASE / name, objects, "its defaults")
    crds = BASE / "crds"
    crds.mkdir(exist_ok=True)
    for path in sorted((CHART / "crds").glob("*.yaml")):
        (crds / path.name).write_text(path.read_text())


def component(name: str) -> list[Object]:
    """What the chart makes of a part that is not on by default."""
    label = "app.kubernetes.io/component"
    objects = map(portable, rendered(COMPONENT_VALUES[name]))
    return [each for each in objects if each["metadata"]["labels"][label] == name]


def write_components() -> None:
    """Each into its own folder, where a kustomization names it."""
    for name, values in COMPONENT_VALUES.items():
        _write(COMPONENTS / name / f"{name}.yaml", component(name), ", ".join(values))


def _write(path: Path, objects: list[Object], values: str) -> None:
    text = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=100)
    note = f"# As the chart has it with {values}; made by: python -m tests.cluster.installing"
    path.write_text(f"{note}\n{text}")


class _Dumper(yaml.SafeDumper):
    """Lists are indented below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, indentless=False)


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert not done.returncode, f"{' '.join(command[:4])}: {done.stderr[-3000:]}"
    return done.stdout


if __name__ == "__main__":
    write_base()
    write_components()
