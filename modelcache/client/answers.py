"""What an agent's answers mean: values, or the errors of `modelcache.errors`.

Whatever answers may be no agent at all, or one of another version: it is told as such, and nothing
of it reaches a terminal unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from modelcache import errors
from modelcache.domain.volumes import Volume
from modelcache.domain.wanted import Trouble, WantedStatus
from modelcache.errors import (
    AgentUnavailable,
    CorruptData,
    ModelcacheError,
    UsageError,
    error_named,
)

ANSWER_BYTES_MAX: Final = 64 << 20  # a thousand wanted models, each with its wants
EVENT_BYTES_MAX: Final = 1 << 20
MESSAGE_MAX: Final = 2000  # characters


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """One event. event_id: goes on behind it when given to `events` again."""

    event_id: str
    kind: str
    data: Mapping[str, Any]


def error_of(trouble: Trouble) -> ModelcacheError:
    """The error that an agent's attempt ended with, as its own class."""
    return error_named(trouble.code, _printable(trouble.message), ModelcacheError)


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn what a connection does into AgentUnavailable. address: as the user wrote it."""
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


def body_of(response: httpx2.Response) -> bytes:
    """All of it. Raises CorruptData for more than an agent says."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise CorruptData(f"an agent's answer is longer than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def parsed(body: bytes) -> Any:  # noqa: ANN401 - JSON
    """JSON values. Raises CorruptData."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptData("what answers is no agent of modelcache; check --agent") from error


def refusal(status: int, body: bytes) -> ModelcacheError:
    """The error that the agent has answered with, as its own class."""
    try:
        told = json.loads(body)["error"]
        code, message = str(told["code"]), str(told["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        if status == httpx2.codes.SERVICE_UNAVAILABLE:  # what a full server says by itself
            return AgentUnavailable("the agent has too much to answer at once; try again")
        return CorruptData(f"what answers {status} is no agent of modelcache; check --agent")
    return error_named(code, _printable(message), _family_of(status))


def status_of(plain: Any) -> WantedStatus:  # noqa: ANN401 - JSON
    """A wanted model's status. Raises CorruptData."""
    try:
        return WantedStatus.from_json(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptData("an agent's status cannot be read; is it of another version?") from error


def volume_of(plain: Any) -> Volume:  # noqa: ANN401 - JSON
    """A published volume. Raises CorruptData."""
    try:
        return Volume.from_json(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptData("an agent's volume cannot be read; is it of another version?") from error


def field_of(plain: Any, name: str) -> Any:  # noqa: ANN401 - JSON
    """One field of an answer. Raises CorruptData when it has none."""
    try:
        return plain[name]
    except (KeyError, TypeError, IndexError) as error:
        raise CorruptData(
            f"an agent's answer has no {name!r}; is it of another version?"
        ) from error


def listed(plain: Any) -> list[Any]:  # noqa: ANN401 - JSON
    """An answer that is a list. Raises CorruptData."""
    if not isinstance(plain, list):
        raise CorruptData("an agent's answer is no list; is it of another version?")
    return plain


def events_of(lines: Iterator[str]) -> Iterator[AgentEvent]:
    """Take server-sent events apart."""
    name, kind, data = "", "", ""
    for line in lines:
        if not line:
            if data:
                yield AgentEvent(name, kind, parsed(data.encode()))
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


def _printable(message: str) -> str:
    """One line for a terminal, whatever came over the network."""
    return "".join(char if char.isprintable() else " " for char in message)[:MESSAGE_MAX]


def _family_of(status: int) -> type[ModelcacheError]:
    """For codes of the faces' own, and of newer agents."""
    if status in {401, 403}:
        return errors.Forbidden
    return UsageError if 400 <= status < 500 else ModelcacheError  # noqa: PLR2004 - client errors
