"""A real node: containerd and kubelet over folders of their own, and an image made of busybox.

Nothing of the machine's own is used or changed but its cgroups, below one that bears our name.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from modelcache.mounts import mounts_below, unmount
from tests.kernel.roots import needs_root
from tests.servers.control_plane import ControlPlane, program
from tests.servers.process import Server, ServerUnavailable, find_program, free_port

MARKS = (pytest.mark.cluster, pytest.mark.kernel, pytest.mark.slow, needs_root)
"""Of tests that run pods on such a node."""
IMAGE = "modelcache.test/busybox:1"
DRIVER = "csi.modelcache.io"


class Containerd(Server):
    """containerd with runc. Images come from files: no registry is asked."""

    def __init__(self) -> None:
        super().__init__()
        self._program = find_program("containerd", "apt-get install containerd runc")
        find_program("runc", "apt-get install runc")
        self.socket = self.folder / "containerd.sock"
        kind = subprocess.run(
            ["stat", "--file-system", "--format=%T", str(self.folder)],
            capture_output=True,
            check=True,
        ).stdout.strip()
        # One overlay cannot lie on another, as in a container; copies of all layers take long.
        self._snapshotter = "native" if kind == b"overlayfs" else "overlayfs"

    def command(self) -> Sequence[str]:
        config = self.folder / "config.toml"
        config.write_text(
            f"""
version = 2
root = "{self.folder}/root"
state = "{self.folder}/state"
[grpc]
address = "{self.socket}"
[ttrpc]
address = "{self.socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{self._snapshotter}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""
        )
        return (self._program, "--config", str(config))

    def answers(self) -> bool:
        return self.socket.exists() and not self._ctr("version").returncode

    def load(self, archive: Path) -> None:
        """Have an image, as `docker save` writes it."""
        done = self._ctr(
            "--namespace=k8s.io",
            "images",
            "import",
            f"--snapshotter={self._snapshotter}",
            str(archive),
        )
        assert not done.returncode, done.stderr.decode()

    def _ctr(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [
                find_program("ctr", "apt-get install containerd"),
                f"--address={self.socket}",
                *arguments,
            ],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def stop(self) -> None:
        for name in self._containers():
            self._ctr("--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", name)
            self._ctr("--namespace=k8s.io", "tasks", "delete", "--force", name)
        process, self._process = self._process, None
        if process is not None:
            self._end(process)
        _unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _containers(self) -> list[str]:
        if not self.socket.exists():
            return []
        return self._ctr("--namespace=k8s.io", "tasks", "list", "--quiet").stdout.decode().split()


class Kubelet(Server):
    """A kubelet that registers its node with the API server."""

    scheme = "http"

    def __init__(self, plane: ControlPlane, containerd: Containerd, name: str) -> None:
        super().__init__()
        self._plane = plane
        self._containerd = containerd
        self.name = name
        self._program = program("kubelet")
        self.root = self.folder / "kubelet"
        self.api_port = free_port()
        self.cgroup = f"modelcache-test-{self.api_port}"

    def command(self) -> Sequence[str]:
        config = self.folder / "config.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "address": "127.0.0.1",
                    "port": self.api_port,
                    "readOnlyPort": 0,
                    "healthzPort": self.port,
                    "authentication": {"anonymous": {"enabled": True}},
                    "authorization": {"mode": "AlwaysAllow"},
                    "cgroupDriver": "cgroupfs",
                    "cgroupRoot": f"/{self.cgroup}",
                    "failCgroupV1": False,
                    "failSwapOn": False,
                    "containerRuntimeEndpoint": f"unix://{self._containerd.socket}",
                    "imageGCHighThresholdPercent": 100,
                    "evictionHard": {"memory.available": "10Mi"},
                    "localStorageCapacityIsolation": False,
                    "syncFrequency": "1s",
                    "podLogsDir": f"{self.folder}/logs",
                    "makeIPTablesUtilChains": False,
                    "protectKernelDefaults": False,
                }
            )
        )
        return (
            self._program,
            f"--config={config}",
            f"--kubeconfig={self._plane.kubeconfig()}",
            f"--hostname-override={self.name}",
            f"--root-dir={self.root}",
            f"--cert-dir={self.folder}/pki",
            "--node-ip=127.0.0.1",
            "--v=2",
        )

    def start(self) -> None:
        for folder in _cgroups(self.cgroup):
            folder.mkdir(exist_ok=True)
        super().start()

    def restart(self) -> None:
        """Kill it, and start it again over what it left."""
        process, self._process = self._process, None
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        super().start()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._end(process)
        for folder in _cgroups(self.cgroup):
            for inner, _, _ in os.walk(folder, topdown=False):
                with suppress(OSError):  # of a process that is about to end
                    Path(inner).rmdir()
        _unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def _unmount_below(folder: Path) -> None:
    for mounted in reversed(mounts_below(folder)):
        unmount(Path(mounted.target))


def _cgroups(name: str) -> list[Path]:
    """Ours, in each hierarchy of the machine; with cgroup v2 there is one."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root / name]
    return [each / name for each in root.iterdir() if each.is_dir() and not each.is_symlink()]


def image_archive(path: Path) -> Path:
    """An image with a static busybox in it, as `docker save` writes it; it sleeps."""
    busybox = shutil.which("busybox")
    if busybox is None or b"/ld-linux" in Path(busybox).read_bytes():
        raise ServerUnavailable("no static busybox is installed: apt-get install busybox-static")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "tmp", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        tar.add(busybox, "bin/busybox")
        for name in ("sh", "sleep", "sha256sum", "cat", "touch"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            # Arguments of whoever it stands for are no matter to it.
            "config": {
                "Entrypoint": ["/bin/sh", "-c", "trap exit TERM; sleep 1000000 & wait", "sleeping"],
                "Env": ["PATH=/bin"],
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{sha256(layer.getvalue()).hexdigest()}"],
            },
        }
    ).encode()
    manifest = json.dumps(
        [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    ).encode()
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("layer.tar", layer.getvalue()),
            ("config.json", config),
            ("manifest.json", manifest),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


# What node-driver-registrar does: kubelet's plugin registration, version 1.


def _registration() -> Any:
    """`pluginregistration.v1` of k8s.io/kubelet, as far as it is used."""
    text = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    flag = descriptor_pb2.FieldDescriptorProto.TYPE_BOOL
    file = descriptor_pb2.FileDescriptorProto(
        name="modelcache/test/registration.proto", package="pluginregistration", syntax="proto3"
    )
    for name, fields in (
        ("InfoRequest", ()),
        (
            "PluginInfo",
            (
                ("type", text, 1),
                ("name", text, 2),
                ("endpoint", text, 3),
                ("supported_versions", text, 4),
            ),
        ),
        ("RegistrationStatus", (("plugin_registered", flag, 1), ("error", text, 2))),
        ("RegistrationStatusResponse", ()),
    ):
        message = file.message_type.add(name=name)
        for field, kind, number in fields:
            one = descriptor_pb2.FieldDescriptorProto
            label = one.LABEL_REPEATED if field.endswith("versions") else one.LABEL_OPTIONAL
            message.field.add(name=field, type=kind, number=number, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return lambda name: GetMessageClass(pool.FindMessageTypeByName(f"pluginregistration.{name}"))


@contextmanager
def registered(driver: Path, kubelet: Kubelet) -> Iterator[list[Any]]:
    """Tell a kubelet of a driver's socket; what it answers."""
    message = _registration()
    told: list[Any] = []

    def info(_: Any, __: Any) -> Any:
        return message("PluginInfo")(
            type="CSIPlugin", name=DRIVER, endpoint=str(driver), supported_versions=["1.0.0"]
        )

    def status(request: Any, _: Any) -> Any:
        told.append(request)
        return message("RegistrationStatusResponse")()

    def handler(method: Any, request: str) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=message(request).FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "pluginregistration.Registration",
                {
                    "GetInfo": handler(info, "InfoRequest"),
                    "NotifyRegistrationStatus": handler(status, "RegistrationStatus"),
                },
            ),
        )
    )
    folder = kubelet.root / "plugins_registry"
    folder.mkdir(parents=True, exist_ok=True)
    server.add_insecure_port(f"unix://{folder}/{DRIVER}-reg.sock")
    server.start()
    try:
        yield told
    finally:
        server.stop(1).wait()
