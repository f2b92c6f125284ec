"""How the API server is reached, with watches that can be ended from another thread."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import httpx2
import msgspec
import yaml
from lightkube import Client, KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.apiregistration_v1 import APIService
from lightkube.resources.authorization_v1 import SubjectAccessReview
from lightkube.resources.coordination_v1 import Lease
from lightkube.resources.core_v1 import ConfigMap, Event, Node, Pod, Secret
from lightkube.resources.discovery_v1 import EndpointSlice

from modelcache.errors import InvalidConfig
from modelcache.faces.kubernetes.names import FIELD_MANAGER

ANSWER_S: Final = 15.0
_KINDS: Final = (
    APIService,
    ConfigMap,
    EndpointSlice,
    Event,
    Lease,
    MutatingWebhookConfiguration,
    Node,
    Pod,
    Secret,
    SubjectAccessReview,
)
_preparing = threading.Lock()
_prepared: list[msgspec.json.Decoder[Any]] = []


class ClusterClient(Client):
    """A client whose watches can be woken up. Thread-safe."""

    def __init__(self, config: SingleConfig, **more: Any) -> None:  # noqa: ANN401
        """more: as lightkube's client takes it."""
        prepare_kinds()
        user = config.user or User()
        verify = verify_cluster(config.cluster, user, config.abs_file, trust_env=False)
        self._transport = _Transport(verify=verify)
        super().__init__(
            config,
            timeout=httpx2.Timeout(ANSWER_S),
            field_manager=FIELD_MANAGER,
            trust_env=False,
            transport=self._transport,
            **more,
        )

    def wake(self) -> None:
        """Break every watch under way; whoever reads one gets an error, and may ask anew.

        Closing a connection that another thread reads would let that thread read whatever gets
        the descriptor next.
        """
        self._transport.wake()


def connect(kubeconfig: str = "") -> ClusterClient:
    """A client; nothing is asked yet.

    kubeconfig: a file; empty for the pod's own account, else `$KUBECONFIG` or the usual place.
    Raises InvalidConfig when there is no way to a cluster.
    """
    where = f"kubernetes.kubeconfig {kubeconfig}" if kubeconfig else "no cluster is configured"
    try:
        config = (
            KubeConfig.from_file(Path(kubeconfig).expanduser())
            if kubeconfig
            else KubeConfig.from_env()
        )
        return ClusterClient(_chosen(config))
    except (ConfigError, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InvalidConfig(f"{where}: {why[:200]}") from error
    except (AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InvalidConfig(f"{where}: it is no kubeconfig") from error


def _chosen(config: KubeConfig) -> SingleConfig:
    found = config.get()
    if found is None:
        raise ConfigError("it names no current context")
    return found


def prepare_kinds() -> None:
    """Have the decoders of all kinds made, once and by one thread.

    They are made when a kind is decoded first; two threads that did so at the same time, as
    watches do when they begin, crashed the interpreter (msgspec 0.22, CPython 3.11).
    """
    with _preparing:
        if not _prepared:
            _prepared.extend(msgspec.json.Decoder(kind) for kind in _KINDS)


class _Transport(httpx2.HTTPTransport):
    """Remembers the sockets of watches."""

    def __init__(self, *, verify: Any) -> None:  # noqa: ANN401 - a TLS context, or whether
        super().__init__(verify=verify)
        self._watched: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """See the base class."""
        response = super().handle_request(request)
        if request.url.params.get("watch") == "true":
            found = response.extensions["network_stream"].get_extra_info("socket")
            if found is not None:
                with self._lock:
                    self._watched.add(found)
        return response

    def wake(self) -> None:
        """See ClusterClient."""
        with self._lock:
            found = list(self._watched)
        for each in found:
            try:
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # without TLS's own good-bye
            except OSError:
                continue  # it has ended meanwhile
