"""One agent, asked over a Unix socket or TCP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx2

from modelcache.client.answers import (
    AgentEvent,
    body_of,
    events_of,
    field_of,
    listed,
    parsed,
    refusal,
    status_of,
    translated,
    volume_of,
)
from modelcache.domain.identities import PodIdentity
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.volumes import MountMode, Volume, VolumeRequest
from modelcache.domain.wanted import LEASE_DEFAULT, WantedStatus, wanted_id
from modelcache.errors import CorruptData, NotInStore, UsageError

CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0  # listing a store of many thousands of blobs takes a while
PUBLISH_S: Final = 90.0  # an origin may have to be asked who may read it
HEARTBEAT_S: Final = 60.0  # the agent says something every 15 s, if only that it is there
WAIT_STEP_S: Final = 20.0  # of one request; the agent answers earlier when it has news
_MODEL_NAME: Final = re.compile(r"[0-9a-f]{4,64}")
_HOST: Final = "http://agent"  # what a Unix socket's requests are addressed to


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """An agent at one glance. plain: all it said, as JSON values."""

    node: str
    version: str
    ready: bool
    reasons: tuple[str, ...]
    draining: bool
    wanted: tuple[WantedStatus, ...]
    plain: Mapping[str, Any]


class AgentClient:
    """One agent, on a Unix socket or behind a URL. Thread-safe; close it, or use `with`.

    Every method raises AgentUnavailable when nobody answers, and what the agent answered with.
    """

    def __init__(self, address: str, *, token: str | None = None) -> None:
        """address: a path, `unix:PATH`, or `http(s)://host:port`. token: for changes over TCP.

        Nothing is opened before the first call. Raises UsageError for what is no address.
        """
        self.address = address
        path = _socket_path(address)
        if path is None:
            _check_url(address)
        transport = httpx2.HTTPTransport(uds=path) if path else None
        self._client = httpx2.Client(
            base_url=_HOST if path else address,
            transport=transport,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
            follow_redirects=False,
            trust_env=False,  # a proxy would get the token, and leads nowhere for a socket
        )

    def __enter__(self) -> Self:
        """Close it at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `__enter__`."""
        self.close()

    def close(self) -> None:
        """Close its connections. Idempotent."""
        self._client.close()

    # Models

    def want(
        self,
        ref: Ref,
        *,
        priority: int | None = None,
        lease: str = LEASE_DEFAULT,
        ttl_s: float | None = None,
        note: str = "",
        refresh: bool = False,
    ) -> WantedStatus:
        """Have a model brought to the agent's node, and kept until it is released. Idempotent."""
        body: dict[str, Any] = {"ref": str(ref), "lease": lease, "note": note, "refresh": refresh}
        if priority is not None:
            body["priority"] = int(priority)
        if ttl_s is not None:
            body["ttl_s"] = ttl_s
        return status_of(self._ask("POST", "/v1/models/wanted", json=body))

    def release(self, ref: Ref, lease: str | None = LEASE_DEFAULT) -> bool:
        """End one holder's want, or everybody's for None; False if there was none."""
        params = {} if lease is None else {"lease": lease}
        answer = self._ask("DELETE", f"/v1/models/wanted/{wanted_id(ref)}", params=params)
        return bool(field_of(answer, "released"))

    def status(self, ref: Ref, *, wait_s: float = 0.0) -> WantedStatus:
        """How far a wanted model is. Raises NotInStore when it is not wanted.

        wait_s: have the agent answer when it is warm or failed, or after that time.
        """
        params = {"wait_s": wait_s} if wait_s else {}
        path = f"/v1/models/wanted/{wanted_id(ref)}"
        return status_of(self._ask("GET", path, params=params, timeout_s=ANSWER_S + wait_s))

    def wait(self, ref: Ref, timeout_s: float) -> WantedStatus:
        """Wait until a wanted model is warm or has failed, or the time is over."""
        until_s = monotonic() + timeout_s
        while True:
            left_s = max(0.0, until_s - monotonic())
            status = self.status(ref, wait_s=min(left_s, WAIT_STEP_S))
            if status.phase.settled or monotonic() >= until_s:
                return status

    def wanted(self) -> list[WantedStatus]:
        """Every wanted model, the most urgent first."""
        return [status_of(each) for each in listed(self._ask("GET", "/v1/models/wanted"))]

    def models(self) -> list[dict[str, Any]]:
        """Every model of the node's store, as JSON values."""
        return listed(self._ask("GET", "/v1/models"))

    def estimate(
        self,
        ref: Ref,
        *,
        node: str | None = None,
        priority: int | None = None,
        mode: MountMode = MountMode.FULL,
    ) -> dict[str, Any]:
        """When a model would be ready, as JSON values.

        node: `this`, `best`, `new` or a name; without, the first three. mode: how it would be
        mounted. Raises NotInStore for a model the agent has never resolved, NotFound for a node
        that does not answer in its cell.
        """
        params: dict[str, Any] = {"ref": str(ref), "mode": mode.value}
        if node is not None:
            params["node"] = node
        if priority is not None:
            params["priority"] = int(priority)
        plain: dict[str, Any] = self._ask("GET", "/v1/estimate", params=params)
        return plain

    def find_model(self, what: str) -> str:
        """The id of the node's model that is meant by an id, the start of one, or a ref.

        Raises NotInStore, UsageError where several are meant.
        """
        if "://" not in what:
            return str(field_of(self._ask("GET", f"/v1/models/{_model_name(what)}"), "model_id"))
        ref = parse_ref(what).redacted()
        found = [each for each in self.models() if ref in listed(field_of(each, "refs"))]
        if not found:
            raise NotInStore(f"{ref} is not on the agent's node")
        newest = max(found, key=lambda each: float(field_of(each, "last_used_s")))
        return str(field_of(newest, "model_id"))

    def model(self, model_id: str) -> dict[str, Any]:
        """One model of the node's store with its files, as JSON values. Raises NotInStore."""
        plain: dict[str, Any] = self._ask("GET", f"/v1/models/{_model_name(model_id)}")
        return plain

    def read_bytes(
        self, model_id: str, path: str, start: int, end: int, *, wait_s: float
    ) -> tuple[bytes, str]:
        """Bytes of a model's file, of which some may still be coming, and their stamp.

        At most 8 MiB, and `wait_s` at most 5. Bytes with another stamp than others of the file mean
        that those were wrong. Raises NotYet, Throttled, NotInStore, UsageError, CorruptData.
        """
        body = {"path": path, "start": start, "end": end, "wait_s": wait_s}
        with (
            translated(self.address),
            self._client.stream(
                "POST", f"/v1/models/{_model_name(model_id)}/bytes", json=body
            ) as response,
        ):
            data = body_of(response)
            if not response.is_success:
                raise refusal(response.status_code, data)
            stamp = response.headers.get("Modelcache-Stamp", "")
        if len(data) != end - start:
            raise CorruptData(f"an agent gave {len(data)} bytes instead of {end - start}")
        return data, stamp

    def warm_memory(self, model_id: str, *, locked: bool = False) -> dict[str, Any]:
        """Have a warm model brought into memory; `memory` tells how far it is. Idempotent."""
        path = f"/v1/models/{_model_name(model_id)}/memory"
        plain: dict[str, Any] = self._ask("POST", path, json={"locked": locked})
        return plain

    def memory(self, model_id: str) -> dict[str, Any]:
        """What of a model is in memory, and the last attempt to bring it there, as JSON values."""
        plain: dict[str, Any] = self._ask("GET", f"/v1/models/{_model_name(model_id)}/memory")
        return plain

    def drop_memory(self, model_id: str) -> int:
        """Have a model dropped from memory; returns the bytes. The disk keeps it."""
        path = f"/v1/models/{_model_name(model_id)}/memory"
        return int(field_of(self._ask("DELETE", path), "freed_bytes"))

    # Volumes

    def publish(
        self,
        request: VolumeRequest,
        *,
        refresh: bool = False,
        credentials: Mapping[str, str] | None = None,
        identity: PodIdentity | None = None,
    ) -> Volume:
        """Show a model at a path of the agent's node; idempotent.

        credentials: the volume's own, which must be good for the model at its origin. identity: of
        its pod. Raises NotWarmYet, telling how far it is: wait for its status, and ask again.
        """
        body = {
            "target": request.target,
            "ref": str(request.ref),
            "sub_path": request.sub_path,
            "priority": int(request.priority),
            "note": request.note,
            "tenant": request.tenant,
            "refresh": refresh,
            "credentials": dict(credentials or {}),
            "mode": request.mode.value,
        }
        if identity is not None:  # an older agent knows of none
            body["identity"] = identity.to_json()
        path = f"/v1/volumes/{request.volume_id}"
        return volume_of(self._ask("PUT", path, json=body, timeout_s=PUBLISH_S))

    def unpublish(self, volume_id: str, target: str) -> bool:
        """Take a volume away; False if there was none. Idempotent."""
        path = f"/v1/volumes/{volume_id}"
        answer = self._ask("DELETE", path, params={"target": target})
        return bool(field_of(answer, "unpublished"))

    def volumes(self) -> list[Volume]:
        """Every published volume."""
        return [volume_of(each) for each in listed(self._ask("GET", "/v1/volumes"))]

    def volume(self, volume_id: str) -> dict[str, Any]:
        """One volume and what is in it, as JSON values. Raises NotInStore."""
        plain: dict[str, Any] = self._ask("GET", f"/v1/volumes/{volume_id}")
        return plain

    # The node

    def node(self) -> AgentStatus:
        """The agent at one glance."""
        plain = self._ask("GET", "/v1/status")
        return AgentStatus(
            node=str(field_of(plain, "node")),
            version=str(field_of(plain, "version")),
            ready=bool(field_of(plain, "ready")),
            reasons=tuple(map(str, listed(field_of(plain, "reasons")))),
            draining=bool(field_of(plain, "draining")),
            wanted=tuple(status_of(each) for each in listed(field_of(plain, "wanted"))),
            plain=plain,
        )

    def peers(self) -> list[dict[str, Any]]:
        """The other nodes of the cell, as the agent knows them."""
        return listed(field_of(self._ask("GET", "/v1/peers"), "peers"))

    def drain(self, timeout_s: float | None = None) -> bool:
        """Have the agent take nothing new and finish; whether it was over in time."""
        params = {} if timeout_s is None else {"timeout_s": timeout_s}
        # How long that is without a number is the agent's to know.
        answer = self._ask("POST", "/v1/drain", params=params, timeout_s=None)
        return bool(field_of(answer, "complete"))

    def resume(self) -> bool:
        """Take back a drain, over or under way; False if there was none. Raises Draining."""
        return bool(field_of(self._ask("POST", "/v1/resume"), "resumed"))

    def events(self, *, after: str | None = None, history: bool = False) -> Iterator[AgentEvent]:
        """What happens, as it happens, until the agent ends.

        after: go on behind this event id. history: begin with what the agent remembers. Raises
        AgentUnavailable when the stream breaks: call it again with the last event's id.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        with (
            translated(self.address),
            self._client.stream(
                "GET",
                "/v1/events",
                params={"history": "true"} if history else {},
                headers=headers,
                timeout=httpx2.Timeout(HEARTBEAT_S, connect=CONNECT_S),
            ) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise refusal(response.status_code, body_of(response))
            yield from events_of(response.iter_lines())

    def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
        timeout_s: float | None = ANSWER_S,
    ) -> Any:  # noqa: ANN401 - JSON
        timeout = httpx2.Timeout(timeout_s, connect=CONNECT_S)
        with (
            translated(self.address),
            self._client.stream(
                method, path, params=params or {}, json=json, timeout=timeout
            ) as response,
        ):
            body = body_of(response)
            if not response.is_success:
                raise refusal(response.status_code, body)
        return parsed(body)


def _model_name(what: str) -> str:
    """As it may stand in a path. Raises UsageError."""
    if not _MODEL_NAME.fullmatch(what.lower()):
        raise UsageError(f"{what!r} is neither a ref nor a model id (4 or more hex digits)")
    return what.lower()


def _socket_path(address: str) -> str | None:
    if "://" in address:
        return None
    path = Path(address.removeprefix("unix:")).expanduser()
    return str(path.absolute())


def _check_url(address: str) -> None:
    try:
        parts = urlsplit(address)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            "that is no agent's address; write the path of its socket, or http://host:9870"
        )
