"""A Kubernetes control plane: etcd and a real API server, with the controllers where wanted.

The API server can be killed and started again on the same data, as happens to real ones.
"""

from __future__ import annotations

import csv
import os
import signal
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from lightkube import KubeConfig

from modelcache.faces.kubernetes.connect import ClusterClient
from tests.servers.certificates import Authority, make_certificates
from tests.servers.process import Server, ServerUnavailable, free_port

VERSION = "v1.36.3"
ASSETS = Path.home() / ".cache" / "modelcache-tests" / f"kubernetes-{VERSION}"
ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
PROGRAMS = {
    "etcd": "./etcd",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
}
ADMIN = "admin-token"
FRONT_PROXY = "front-proxy-client"
START_S = 60.0


def assets() -> Path | None:
    """The folder of the programs, if all that is always needed is there."""
    folder = Path(os.environ.get(ASSETS_VARIABLE) or ASSETS)
    needed = ("etcd", "kube-apiserver")
    return folder if all((folder / name).exists() for name in needed) else None


def program(name: str) -> str:
    """Path of one of them. Raises ServerUnavailable."""
    folder = assets()
    if folder is None or not (folder / name).exists():
        raise ServerUnavailable(f"{name} is not there: run `make test`, or set {ASSETS_VARIABLE}")
    return str(folder / name)


class Etcd(Server):
    """Where the API server keeps its objects; durability is nothing to tests."""

    def command(self) -> Sequence[str]:
        peer = free_port()
        return (
            program("etcd"),
            f"--data-dir={self.folder}/data",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )


class ApiServer(Server):
    """The API server itself. users: name and groups of each token."""

    scheme = "https"

    def __init__(self, etcd: str) -> None:
        super().__init__()
        self.etcd = etcd
        self.certificates = make_certificates(self.folder / "certificates")
        # How it shows extension servers who it is, behind its aggregation.
        self.front_proxies = Authority(self.folder / "front-proxy")
        self.front_proxy = self.front_proxies.issue(
            "client", FRONT_PROXY, (f"DNS:{FRONT_PROXY}",), usage="clientAuth"
        )
        self.users: dict[str, tuple[str, tuple[str, ...]]] = {
            ADMIN: ("admin", ("system:masters",)),
        }
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.service_account_key = self.folder / "accounts.key"
        self.service_account_key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )

    def command(self) -> Sequence[str]:
        tokens = self.folder / "tokens.csv"
        with tokens.open("w", newline="") as file:
            writer = csv.writer(file)
            for token, (user, groups) in self.users.items():
                writer.writerow((token, user, user, ",".join(groups)))
        return (
            program("kube-apiserver"),
            f"--etcd-servers={self.etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self.certificates.cert_file}",
            f"--tls-private-key-file={self.certificates.key_file}",
            f"--cert-dir={self.folder}/apiserver",
            f"--token-auth-file={tokens}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self.service_account_key}",
            f"--service-account-key-file={self.service_account_key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--requestheader-client-ca-file={self.front_proxies.ca_file}",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={self.front_proxy.cert_file}",
            f"--proxy-client-key-file={self.front_proxy.key_file}",
            "--feature-gates=HPAScaleToZero=true",
            "--enable-aggregator-routing=false",  # a Service may then be a name outside
            "--allow-privileged=true",
            # Without its controller there is no default account to be added to pods.
            "--disable-admission-plugins=ServiceAccount",
            "--v=1",
        )

    def answers(self) -> bool:
        try:
            return bool(self.ask("/readyz"))
        except OSError:
            return False

    def ask(self, path: str) -> str:
        """What is there, for the administrator. Raises OSError."""
        context = ssl.create_default_context(cafile=str(self.certificates.ca_file))
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.url}{path}", headers={"Authorization": f"Bearer {ADMIN}"}
        )
        with urllib.request.urlopen(request, timeout=2, context=context) as answer:  # noqa: S310
            return str(answer.read().decode())

    def kill(self) -> None:
        """End it at once, keeping its folder and port."""
        process, self._process = self._process, None
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class ControlPlane:
    """Start with `with`."""

    def __init__(self) -> None:
        self.etcd = Etcd()
        self.api = ApiServer(self.etcd.url)
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self.etcd.start()
            self.api.start()
            self._wait_namespace()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._others:
            process.kill()
            process.wait()
        self.api.stop()
        self.etcd.stop()

    def restart_api(self, down_s: float = 0.0) -> None:
        """Kill the API server, and start it again on the same port."""
        self.api.kill()
        sleep(down_s)
        self.api.start()

    def run(self, name: str, *flags: str) -> subprocess.Popen[bytes]:
        """Run kube-scheduler or kube-controller-manager beside it, as the administrator."""
        log = (self.api.folder / f"{name}.log").open("wb")
        with log:
            made = subprocess.Popen(
                [program(name), f"--kubeconfig={self.kubeconfig()}", *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self._others.append(made)
        return made

    @contextmanager
    def running(self, name: str, *flags: str) -> Iterator[None]:
        """The same for a while; it has to run to the end."""
        made = self.run(name, *flags)
        try:
            yield
            assert made.poll() is None, (self.api.folder / f"{name}.log").read_text()[-3000:]
        finally:
            self._others.remove(made)
            made.kill()
            made.wait()

    def config(self, token: str = ADMIN, namespace: str = "default") -> KubeConfig:
        """How a client with this token connects."""
        return KubeConfig.from_dict(self._plain(token, namespace))

    def kubeconfig(self, token: str = ADMIN, namespace: str = "default") -> Path:
        """The same as a file."""
        path = self.api.folder / f"kubeconfig-{sha256(token.encode()).hexdigest()[:12]}"
        path.write_text(yaml.safe_dump(self._plain(token, namespace)))
        return path

    def client(self, token: str = ADMIN, **more: Any) -> ClusterClient:
        """A client with this token."""
        return ClusterClient(self.config(token).get(), **more)

    def _plain(self, token: str, namespace: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": "test", "namespace": namespace},
                }
            ],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": self.api.url,
                        "certificate-authority": str(self.api.certificates.ca_file),
                    },
                }
            ],
            "users": [{"name": "test", "user": {"token": token}}],
        }

    def _wait_namespace(self) -> None:
        """`default` is made by the API server a moment after it is ready."""
        from lightkube import ApiError  # noqa: PLC0415
        from lightkube.resources.core_v1 import Namespace  # noqa: PLC0415

        until_s = monotonic() + START_S
        with self.client() as client:
            while True:
                try:
                    client.get(Namespace, "default")
                except ApiError:
                    assert monotonic() < until_s, self.api.log[-2000:]
                    sleep(0.05)
                else:
                    return
