"""Becoming allowed: a registry's challenge turned into the value of an Authorization header.

The protocol is the distribution project's token authentication: a request without (or with an old)
token is answered 401 with a realm, a service and a scope; the realm gives a token for them, to the
holder of a credential or to anybody. Registries that ask for Basic get the credential itself. A
token is kept for as long as it lasts, apart for each repository and for reading and writing.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from modelcache.errors import (
    Forbidden,
    ModelcacheError,
    NoCredentials,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)
from modelcache.sources.oci.keyring import Credential, Keyring
from modelcache.sources.web.address import Address, parse_address
from modelcache.sources.web.answers import retry_after_s

TOKEN_GOOD_FOR_S: Final = 60.0  # where a server tells no lifetime, by the specification
TOKEN_GOOD_FOR_S_MAX: Final = 3600.0  # a longer promise is not worth relying on
MARGIN_S: Final = 10.0  # clocks differ, and a request takes its time
TOKEN_BYTES_MAX: Final = 64 << 10
BASIC_GOOD_FOR_S: Final = 3600.0  # a password does not expire by itself
CLIENT_ID: Final = "modelcache"
_CHALLENGE: Final = re.compile(r"(?:^|,)\s*(Bearer|Basic)(?=[\s,]|$)", re.IGNORECASE)
_PARAMETER: Final = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")  # what a header's value may hold


@dataclass(frozen=True, slots=True)
class Scope:
    """What a request is about to do. mount_from: another repository that it reads from."""

    repository: str
    push: bool = False
    mount_from: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """As the token server wants them."""
        actions = "pull,push" if self.push else "pull"
        own = f"repository:{self.repository}:{actions}"
        other = f"repository:{self.mount_from}:pull"
        return (own, other) if self.mount_from else (own,)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a 401 asks for."""

    bearer: bool
    realm: str = ""
    service: str = ""


@dataclass(frozen=True, slots=True)
class TokenReply:
    """What a token server answered: status, lower-case headers, body."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


AskRealm = Callable[[str, Address, list[tuple[str, str]], Mapping[str, str]], TokenReply]
"""Send a GET with a query, or a POST with a form, to a realm: method, where, fields, headers."""


@dataclass(frozen=True, slots=True)
class _Grant:
    header: str = field(repr=False)
    until_s: float


class Authority:
    """The grants for one registry. Safe to use from several threads."""

    def __init__(self, server: Address, name: str, keyring: Keyring, ask: AskRealm) -> None:
        """name: the registry as refs name it."""
        self._server = server
        self._name = name
        self._keyring = keyring
        self._ask = ask
        self._guard = threading.Lock()
        self._asking = threading.Lock()  # one thread asks for a token, the others wait for it
        self._grants: dict[Scope, _Grant] = {}
        self._challenge: Challenge | None = None
        self._given: dict[str, Credential | None] = {}

    def header(self, scope: Scope) -> str | None:
        """The Authorization to send now, if the registry is known to want one.

        Asks the realm for a token where the last one has grown old. Raises as `answer` does.
        """
        grant = self._kept(scope)
        if grant is not None or self._challenge is None:
            return grant.header if grant else None
        with self._asking:
            grant = self._kept(scope)
            return (grant or self._grant(scope, self._challenge, refused=None)).header

    def good_for_s(self, scope: Scope) -> float | None:
        """How long what `header` gives will be accepted; None where nothing is wanted."""
        grant = self._grants.get(scope)
        return None if grant is None else max(1.0, grant.until_s - monotonic())

    def has_credential(self, scope: Scope) -> bool:
        """Whether the user gave one for this repository."""
        return self._credential(scope.repository) is not None

    def answer(self, scope: Scope, challenges: str, *, refused: str | None) -> str:
        """The Authorization that a 401 with these challenges asks for.

        refused: what was sent with the request that was answered so. Raises NoCredentials and
        Forbidden where nothing better can be sent, SourceRefused for a challenge that cannot be
        met, and SourceUnavailable where the token server cannot be reached.
        """
        challenge = _chosen(challenges, self._name)
        with self._asking:
            self._challenge = challenge
            grant = self._kept(scope)
            if grant is not None and grant.header != refused:
                return grant.header  # another thread was here first
            return self._grant(scope, challenge, refused=refused).header

    def drop(self, scope: Scope, *, refused: str | None = None) -> None:
        """Forget a grant, if it still is the one that was refused; read credentials again."""
        with self._guard:
            grant = self._grants.get(scope)
            if grant is not None and refused in {None, grant.header}:
                del self._grants[scope]
                self._given.pop(scope.repository, None)

    def _kept(self, scope: Scope) -> _Grant | None:
        grant = self._grants.get(scope)
        return grant if grant is not None and monotonic() < grant.until_s else None

    def _credential(self, repository: str) -> Credential | None:
        with self._guard:
            if repository in self._given:
                return self._given[repository]
        found = self._keyring.find(self._name, repository)  # may run a program
        with self._guard:
            return self._given.setdefault(repository, found)

    def _grant(self, scope: Scope, challenge: Challenge, *, refused: str | None) -> _Grant:
        credential = self._credential(scope.repository)
        if challenge.bearer:
            grant = self._token(scope, challenge, credential)
        elif credential is None or credential.is_identity_token:
            raise no_credentials(self._name)
        elif credential.basic == refused:
            raise Forbidden(
                f"{self._name} does not accept the stored credentials (401); run docker login "
                f"{self._name} or check oci.auth_file"
            )
        else:
            grant = _Grant(credential.basic, monotonic() + BASIC_GOOD_FOR_S)
        with self._guard:
            self._grants[scope] = grant
        return grant

    def _token(self, scope: Scope, challenge: Challenge, credential: Credential | None) -> _Grant:
        realm = self._realm(challenge.realm)
        asked_s = monotonic()
        fields = [("scope", word) for word in scope.words]
        if challenge.service:
            fields.append(("service", challenge.service))
        if credential is not None and credential.is_identity_token:
            fields = [("scope", " ".join(scope.words)), ("service", challenge.service)]
            fields += [("grant_type", "refresh_token"), ("refresh_token", credential.secret)]
            reply = self._ask("POST", realm, [*fields, ("client_id", CLIENT_ID)], {})
        else:
            headers = {"Authorization": credential.basic} if credential else {}
            reply = self._ask("GET", realm, fields, headers)
        if reply.status != 200:  # noqa: PLR2004 - nothing else carries a token
            raise self._refused(realm, reply, given=credential is not None)
        return _read_token(reply.body, asked_s, realm)

    def _realm(self, text: str) -> Address:
        try:
            realm = parse_address(text)
        except ValueError as error:
            raise SourceRefused(
                f"{self._name} names a token server whose address cannot be used: {error}"
            ) from error
        if self._server.tls and not realm.tls:
            raise SourceRefused(
                f"{self._name} sends us for a token to {realm}, which is not https; credentials "
                "are not sent there"
            )
        return realm

    def _refused(self, realm: Address, reply: TokenReply, *, given: bool) -> ModelcacheError:
        status = reply.status
        after_s = retry_after_s(reply.headers)
        if status in {429, 503}:
            return Throttled(
                f"token server {realm} asks for fewer requests ({status})", retry_after_s=after_s
            )
        if status >= 500:  # noqa: PLR2004 - the server's own failure
            return SourceUnavailable(
                f"token server {realm} answered {status}", retry_after_s=after_s
            )
        if status in {400, 401, 403} and given:
            return Forbidden(
                f"token server {realm} does not accept the stored credentials for {self._name} "
                f"({status}); run docker login {self._name} or check oci.auth_file"
            )
        if status in {401, 403}:
            return no_credentials(self._name)
        return SourceRefused(f"token server {realm} answered {status}")


def no_credentials(registry: str) -> NoCredentials:
    """What to say where a credential is wanted and there is none."""
    return NoCredentials(
        f"{registry} wants credentials and none are stored for it; run docker login {registry} or "
        "set oci.auth_file"
    )


def challenges_of(header: str) -> list[Challenge]:
    """Every challenge of a WWW-Authenticate header that we can meet (RFC 9110, 11.6.1)."""
    found = []
    starts = list(_CHALLENGE.finditer(header))
    ends = [*(match.start() for match in starts), len(header)][1:]
    for start, end in zip(starts, ends, strict=True):
        values = {
            match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[3] is None else match[3]
            for match in _PARAMETER.finditer(header[start.end() : end])
        }
        bearer = start[1].lower() == "bearer"
        if not bearer or values.get("realm"):
            found.append(Challenge(bearer, values.get("realm", ""), values.get("service", "")))
    return found


def _chosen(header: str, registry: str) -> Challenge:
    """A token before a password, where a registry leaves the choice."""
    found = sorted(challenges_of(header), key=lambda challenge: not challenge.bearer)
    if not found:
        raise SourceRefused(
            f"{registry} answered 401 without saying how to log in; is it an OCI registry?"
        )
    return found[0]


def _read_token(body: bytes, asked_s: float, realm: Address) -> _Grant:
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    fields = answer if isinstance(answer, dict) else {}
    token = fields.get("token") or fields.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise SourceRefused(f"token server {realm} answered without a token")
    seconds = fields.get("expires_in")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        seconds = TOKEN_GOOD_FOR_S
    lasting_s = min(float(seconds), TOKEN_GOOD_FOR_S_MAX)
    # A token of a few seconds is used for half of them rather than never.
    return _Grant(f"Bearer {token}", asked_s + max(lasting_s - MARGIN_S, lasting_s / 2))
