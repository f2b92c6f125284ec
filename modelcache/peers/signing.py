"""Signatures of a cluster that shares one token. Pure: time and tokens are arguments.

    X-Modelcache-To:        <name of the node that is asked>
    X-Modelcache-Signature: v2 <unix seconds> <hex HMAC-SHA256>[,<hex HMAC-SHA256>]
    X-Modelcache-Answer:    v2 <unix seconds> <hex HMAC-SHA256>

A request's signature covers method, path, both nodes' names, time and the SHA-256 of its body, but
not Range: so one serves all requests of one node for a blob for five minutes, as SigV4 does, and is
of no use at any other. Who does not know yet whom it asks leaves that name empty, and is told it
instead of an answer. There is one signature for each token that holds now, two while a token is
being changed. The answer's covers the request's signature,
its status, its range and the hashes of its chunks, or the SHA-256 of its body. The time in it is
the request's, so that whoever has the token can tell what was signed without having kept it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from modelcache.errors import Forbidden, NoCredentials

GOOD_FOR_S: Final = 300  # a connection's whole work; short enough that one overheard is soon void
SKEW_S: Final = 60  # how far clocks may differ; NTP keeps them within milliseconds
NO_BODY: Final = "-"
_REQUEST: Final = re.compile(r"v2 ([0-9]{1,12}) ([0-9a-f]{64}(?:,[0-9a-f]{64}){0,3})")
_ANSWER: Final = re.compile(r"v2 ([0-9]{1,12}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Scope:
    """What a request's signature covers.

    node, to: who asks, and whom; `to` is empty where that is not known yet. digest: hex SHA-256 of
    the body, NO_BODY without one.
    """

    method: str
    path: str
    node: str
    to: str
    digest: str = NO_BODY


@dataclass(frozen=True, slots=True)
class Signed:
    """A request whose signature held: with which token, and what the answer must refer to."""

    token: bytes
    at_s: int
    signature: str


def sign(scope: Scope, tokens: Sequence[bytes], now_s: float) -> str:
    """The value of a request's signature header. Whole seconds of `now_s` count."""
    at_s = int(now_s)
    return f"v2 {at_s} {','.join(_signature(token, scope, at_s) for token in tokens)}"


def verify(header: str | None, scope: Scope, tokens: Sequence[bytes], now_s: float) -> Signed:
    """Check a request. Raises NoCredentials without a signature, Forbidden for a wrong one."""
    if header is None:
        raise NoCredentials(
            "the request is not signed; give that node the cluster's token as peers.token_file"
        )
    match = _REQUEST.fullmatch(header)
    if match is None:
        raise Forbidden("the request's signature is malformed; do both nodes run the same version?")
    at_s = int(match[1])
    for token in tokens:
        expected = _signature(token, scope, at_s)
        for given in match[2].split(","):
            if hmac.compare_digest(expected, given):
                _check_time(at_s, now_s)
                return Signed(token, at_s, expected)
    raise Forbidden(
        "the request was signed with another token; give all nodes the same peers.token_file"
    )


def sign_answer(signed: Signed, said: str) -> str:
    """The value of an answer's signature header; `said` is made by `answer_to`."""
    return f"v2 {signed.at_s} {_answer(signed, said)}"


def verify_answer(
    header: str | None, scope: Scope, said: str, tokens: Sequence[bytes], now_s: float
) -> bool:
    """Whether who answered to `scope` has one of the tokens, and has said just this now."""
    match = _ANSWER.fullmatch(header or "")
    if match is None or not -SKEW_S <= now_s - int(match[1]) <= GOOD_FOR_S + SKEW_S:
        return False
    at_s = int(match[1])
    return any(
        hmac.compare_digest(
            _answer(Signed(token, at_s, _signature(token, scope, at_s)), said), match[2]
        )
        for token in tokens
    )


def answer_to(status: int, *, content_range: str = "", hashes: str = "", body: bytes = b"") -> str:
    """What an answer's signature covers: of a range its place and its chunks, else the body."""
    digest = NO_BODY if content_range else sha256(body).hexdigest()
    return f"{status}\n{content_range}\n{hashes}\n{digest}"


def digest_of(body: bytes) -> str:
    """What a scope says of a body."""
    return sha256(body).hexdigest() if body else NO_BODY


def _check_time(at_s: int, now_s: float) -> None:
    age_s = now_s - at_s
    if age_s < -SKEW_S:
        raise Forbidden(
            f"the request was signed {-age_s:.0f} s in the future; set the clocks of both nodes "
            "(NTP)"
        )
    if age_s > GOOD_FOR_S + SKEW_S:
        raise Forbidden(
            f"the request was signed {age_s:.0f} s ago, {GOOD_FOR_S} are allowed; set the clocks "
            "of both nodes (NTP)"
        )


def _signature(token: bytes, scope: Scope, at_s: int) -> str:
    said = (scope.method, scope.path, scope.node, scope.to, str(at_s), scope.digest)
    fields = ("modelcache-ask-v2", *said)
    return hmac.digest(token, "\n".join(fields).encode(), "sha256").hex()


def _answer(signed: Signed, said: str) -> str:
    fields = ("modelcache-answer-v2", signed.signature, said)
    return hmac.digest(signed.token, "\n".join(fields).encode(), "sha256").hex()
