"""What proves to a peer that it speaks with a peer: mutual TLS, the cluster's token, or both.

Without either the peer plane is open to whoever reaches it, which is allowed on loopback, or where
somebody has said `insecure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from modelcache.config import PeerSettings
from modelcache.config.tokens import TokenFile
from modelcache.domain.addresses import is_loopback, parse_address
from modelcache.errors import Forbidden, InvalidConfig
from modelcache.peers import signing
from modelcache.peers.signing import Scope, Signed
from modelcache.peers.tls import PeerTls

SIGNATURE: Final = "x-modelcache-signature"
ANSWER: Final = "x-modelcache-answer"
LOOK_EVERY_S: Final = 1.0  # a request costs 20 microseconds; a look at the file is 5 of them
UNSIGNED_GOOD_FOR_S: Final = 86_400.0  # requests without signatures do not age


class PeerAuth:
    """Signs and checks what goes between peers. Thread-safe."""

    def __init__(
        self, tls: PeerTls | None, tokens: TokenFile | None, good_for_s: float = UNSIGNED_GOOD_FOR_S
    ) -> None:
        """good_for_s: how long a request may be repeated without being signed anew."""
        self.tls = tls
        self.good_for_s = good_for_s
        self._tokens = tokens

    @classmethod
    def of(cls, settings: PeerSettings) -> PeerAuth:
        """What the settings ask for.

        Raises InvalidConfig for files that cannot be used, and where a peer plane that others
        reach would be open.
        """
        files = (settings.cert_file, settings.key_file, settings.ca_file)
        if any(files) and not all(files):  # what was meant to be TLS must not end up without
            raise InvalidConfig("peers: cert_file, key_file and ca_file belong together")
        tls = tokens = None
        if all(files):
            tls = PeerTls(
                *files, server_name=settings.server_name, allowed_names=settings.allowed_names
            )
        if settings.token_file:
            tokens = TokenFile(
                settings.token_file,
                "peers.token_file",
                grace_s=settings.token_grace_s,
                look_every_s=LOOK_EVERY_S,
            )
        if tls is None and settings.allowed_names:
            raise InvalidConfig("peers.allowed_names are names in certificates; set cert_file too")
        host, _ = parse_address(settings.listen)
        if tls is None and tokens is None and not settings.insecure and not is_loopback(host):
            raise InvalidConfig(
                f"peers.listen is {settings.listen}, where anybody could read the store: set "
                "peers.token_file or peers.cert_file, key_file and ca_file; or peers.insecure if "
                "the network itself keeps strangers out"
            )
        if tokens is None:
            return cls(tls, None)
        # Not longer than a token is good that is changed the moment after.
        return cls(tls, tokens, min(signing.GOOD_FOR_S, settings.token_grace_s))

    # Who asks

    def sign(self, scope: Scope) -> tuple[tuple[str, str], ...]:
        """Headers that a request needs; none without a token."""
        if self._tokens is None:
            return ()
        signature = signing.sign(scope, self._tokens.current(), _now_s())
        to = (("X-Modelcache-To", scope.to),) if scope.to else ()
        return (*to, ("X-Modelcache-Signature", signature))

    def answered(self, scope: Scope, headers: Mapping[str, str], said: str) -> bool:
        """Whether a peer has given this answer to a request of ours; always, without a token.

        headers: of the answer, by lower-case names. said: see `signing.answer_to`.
        """
        if self._tokens is None:
            return True
        return signing.verify_answer(
            headers.get(ANSWER), scope, said, self._tokens.current(), _now_s()
        )

    # Who is asked

    def admit(self, scope: Scope, headers: Mapping[str, str]) -> Signed | None:
        """Check a request; what its answer must be signed for, if it must be.

        Raises NoCredentials, Forbidden.
        """
        if self._tokens is None:
            return None
        return signing.verify(headers.get(SIGNATURE), scope, self._tokens.current(), _now_s())

    def sign_answer(self, signed: Signed | None, said: str) -> tuple[tuple[str, str], ...]:
        """Headers that an answer needs."""
        if signed is None:
            return ()
        return (("X-Modelcache-Answer", signing.sign_answer(signed, said)),)


def not_a_peer(where: str) -> Forbidden:
    """The error for an answer that no holder of the token has given."""
    return Forbidden(
        f"what answers at {where} does not have the cluster's token; give all nodes the same "
        "peers.token_file"
    )


def _now_s() -> float:
    return datetime.now(UTC).timestamp()
