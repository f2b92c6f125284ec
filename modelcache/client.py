"""The agent's API as a client sees it: for the command line, the CSI driver, and programs.

It knows how to ask and what the answers mean, and raises the errors of `modelcache.errors` as if
the work were done here. It must not know the engine, the store, or any setting.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx2

from modelcache import errors
from modelcache.domain.listening import default_socket
from modelcache.domain.refs import Ref
from modelcache.domain.wanted import LEASE_DEFAULT, Trouble, WantedStatus, wanted_id
from modelcache.errors import AgentUnavailable, CorruptData, ModelcacheError, UsageError

AGENT_VARIABLE: Final = "MODELCACHE_AGENT"
TOKEN_VARIABLE: Final = "MODELCACHE_AGENT_TOKEN_FILE"  # noqa: S105 - where a token is, not one
CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0  # listing a store of many thousands of blobs takes a while
HEARTBEAT_S: Final = 60.0  # the agent says something every 15 s, if only that it is there
WAIT_STEP_S: Final = 20.0  # of one request; the agent answers earlier when it has news
ANSWER_BYTES_MAX: Final = 64 << 20  # a thousand wanted models, each with its wants
EVENT_BYTES_MAX: Final = 1 << 20
MESSAGE_MAX: Final = 2000  # characters
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


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """One event. event_id: goes on behind it when given to `events` again."""

    event_id: str
    kind: str
    data: Mapping[str, Any]


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
        return _status(self._ask("POST", "/v1/models/wanted", json=body))

    def release(self, ref: Ref, lease: str | None = LEASE_DEFAULT) -> bool:
        """End one holder's want, or everybody's for None; False if there was none."""
        params = {} if lease is None else {"lease": lease}
        answer = self._ask("DELETE", f"/v1/models/wanted/{wanted_id(ref)}", params=params)
        return bool(_field(answer, "released"))

    def status(self, ref: Ref, *, wait_s: float = 0.0) -> WantedStatus:
        """How far a wanted model is. Raises NotInStore when it is not wanted.

        wait_s: have the agent answer when it is warm or failed, or after that time.
        """
        params = {"wait_s": wait_s} if wait_s else {}
        path = f"/v1/models/wanted/{wanted_id(ref)}"
        return _status(self._ask("GET", path, params=params, timeout_s=ANSWER_S + wait_s))

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
        return [_status(each) for each in _list(self._ask("GET", "/v1/models/wanted"))]

    def models(self) -> list[dict[str, Any]]:
        """Every model of the node's store, as JSON values."""
        return _list(self._ask("GET", "/v1/models"))

    # The node

    def node(self) -> AgentStatus:
        """The agent at one glance."""
        plain = self._ask("GET", "/v1/status")
        return AgentStatus(
            node=str(_field(plain, "node")),
            version=str(_field(plain, "version")),
            ready=bool(_field(plain, "ready")),
            reasons=tuple(map(str, _list(_field(plain, "reasons")))),
            draining=bool(_field(plain, "draining")),
            wanted=tuple(_status(each) for each in _list(_field(plain, "wanted"))),
            plain=plain,
        )

    def peers(self) -> list[dict[str, Any]]:
        """The other nodes of the cell, as the agent knows them."""
        return _list(_field(self._ask("GET", "/v1/peers"), "peers"))

    def drain(self, timeout_s: float | None = None) -> bool:
        """Have the agent take nothing new and finish; whether it was over in time."""
        params = {} if timeout_s is None else {"timeout_s": timeout_s}
        # How long that is without a number is the agent's to know.
        answer = self._ask("POST", "/v1/drain", params=params, timeout_s=None)
        return bool(_field(answer, "complete"))

    def events(self, *, after: str | None = None, history: bool = False) -> Iterator[AgentEvent]:
        """What happens, as it happens, until the agent ends.

        after: go on behind this event id. history: begin with what the agent remembers. Raises
        AgentUnavailable when the stream breaks: call it again with the last event's id.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        with (
            _translated(self.address),
            self._client.stream(
                "GET",
                "/v1/events",
                params={"history": "true"} if history else {},
                headers=headers,
                timeout=httpx2.Timeout(HEARTBEAT_S, connect=CONNECT_S),
            ) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise _refusal(response.status_code, _read(response))
            yield from _events(response.iter_lines())

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
            _translated(self.address),
            self._client.stream(
                method, path, params=params or {}, json=json, timeout=timeout
            ) as response,
        ):
            body = _read(response)
            if not response.is_success:
                raise _refusal(response.status_code, body)
        return _parsed(body)


def find_agent(
    explicit: str | None = None,
    *,
    socket: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> AgentClient:
    """The agent that is meant: what was given, `$MODELCACHE_AGENT`, or this node's socket.

    explicit: an address, as AgentClient takes it. socket: where this node's agent listens; default:
    the usual place. `$MODELCACHE_AGENT_TOKEN_FILE` names a file with the token for TCP. Raises
    AgentUnavailable when there is none, UsageError for an address or token file that is none.
    """
    environment = os.environ if environment is None else environment
    address = explicit or environment.get(AGENT_VARIABLE)
    if address:
        return AgentClient(address, token=_token(environment.get(TOKEN_VARIABLE)))
    usual = socket or Path(default_socket(os.geteuid(), environment.get("XDG_RUNTIME_DIR")))
    if not usual.exists():
        raise AgentUnavailable(
            f"no agent listens on {usual}; start one with `modelcache agent`, or name one with "
            f"--agent or {AGENT_VARIABLE}"
        )
    return AgentClient(str(usual))


def error_of(trouble: Trouble) -> ModelcacheError:
    """The error that an agent's attempt ended with, as its own class."""
    return _FAMILIES.get(trouble.code, ModelcacheError)(_printable(trouble.message))


def _token(file: str | None) -> str | None:
    if not file:
        return None
    try:
        token = Path(file).expanduser().read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{TOKEN_VARIABLE}: cannot read a token from {file}") from error
    if len(token.split()) != 1:
        raise UsageError(f"{TOKEN_VARIABLE}: {file} must hold one word")
    return token


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


@contextmanager
def _translated(address: str) -> Iterator[None]:
    try:
        yield
    except httpx2.ConnectError as error:
        raise AgentUnavailable(
            f"no agent answers on {address}; start one with `modelcache agent`, or name another"
        ) from error
    except httpx2.TimeoutException as error:
        raise AgentUnavailable(f"the agent on {address} does not answer in time") from error
    except (httpx2.TransportError, httpx2.InvalidURL, httpx2.DecodingError) as error:
        why = str(error) or type(error).__name__
        raise AgentUnavailable(f"the agent on {address} broke off: {why[:200]}") from error


def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise CorruptData(f"an agent's answer is longer than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _parsed(body: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptData("what answers is no agent of modelcache; check --agent") from error


def _refusal(status: int, body: bytes) -> ModelcacheError:
    """The error that the agent has answered with, as its own class."""
    try:
        told = json.loads(body)["error"]
        code, message = str(told["code"]), str(told["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return CorruptData(f"what answers {status} is no agent of modelcache; check --agent")
    return _FAMILIES.get(code, _family_of(status))(_printable(message))


def _printable(message: str) -> str:
    """One line for a terminal, whatever came over the network."""
    return "".join(char if char.isprintable() else " " for char in message)[:MESSAGE_MAX]


def _families() -> dict[str, type[ModelcacheError]]:
    found: dict[str, type[ModelcacheError]] = {}
    waiting: list[type[ModelcacheError]] = [ModelcacheError]
    while waiting:
        family = waiting.pop()
        found.setdefault(family.code, family)
        waiting += family.__subclasses__()
    return found


def _family_of(status: int) -> type[ModelcacheError]:
    """For codes of the faces' own, and of newer agents."""
    if status in {401, 403}:
        return errors.Forbidden
    return UsageError if 400 <= status < 500 else ModelcacheError  # noqa: PLR2004 - client errors


_FAMILIES: Final = _families()


def _field(plain: Any, name: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return plain[name]
    except (KeyError, TypeError, IndexError) as error:
        raise CorruptData(
            f"an agent's answer has no {name!r}; is it of another version?"
        ) from error


def _list(plain: Any) -> list[Any]:  # noqa: ANN401 - JSON
    if not isinstance(plain, list):
        raise CorruptData("an agent's answer is no list; is it of another version?")
    return plain


def _status(plain: Any) -> WantedStatus:  # noqa: ANN401 - JSON
    try:
        return WantedStatus.from_json(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptData("an agent's status cannot be read; is it of another version?") from error


def _events(lines: Iterator[str]) -> Iterator[AgentEvent]:
    """Take server-sent events apart."""
    name, kind, data = "", "", ""
    for line in lines:
        if not line:
            if data:
                yield AgentEvent(name, kind, _parsed(data.encode()))
            kind, data = "", ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "id":
                name = value
            case "event":
                kind = value
            case "data":
                data += value
            case _:
                pass  # a comment, or what a newer agent says
        if len(data) > EVENT_BYTES_MAX:
            raise CorruptData(f"an agent's event is longer than {EVENT_BYTES_MAX} bytes")
