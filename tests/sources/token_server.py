"""A token server as the distribution project defines it, for registries that ask for tokens.

It signs with a key of its own (RS256 by openssl); Docker's registry checks every signature.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.servers.docker_registry import TokenAuth
from tests.sources.scripted import Asked, Reply, ScriptedServer

SERVICE = "test registry"
ISSUER = "test issuer"


class TokenServer:
    """Gives tokens to everybody, or to holders of a credential. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._key, self._certificate = folder / "token.key", folder / "token.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "10"]
        command += ["-subj", "/CN=test tokens", "-keyout", str(self._key)]
        subprocess.run([*command, "-out", str(self._certificate)], check=True, capture_output=True)
        self._server = ScriptedServer()
        self._server.answers["/token"] = self._answer
        self.accepted: set[str] = set()
        """Authorization headers, or `refresh:TOKEN`; empty for everybody."""
        self.anonymous = True
        self.lifetime_s = 300
        self.issued: list[str] = []

    @property
    def asked(self) -> list[Asked]:
        """Requests for tokens so far."""
        return self._server.asked

    def scopes(self) -> list[list[str]]:
        """What was asked for, request by request."""
        return [_fields(asked).get("scope", []) for asked in self.asked]

    def auth(self) -> TokenAuth:
        """What a registry that trusts this server is started with."""
        return TokenAuth(self._server.url("/token"), SERVICE, ISSUER, self._certificate)

    def token(self, scopes: Iterable[str], *, lifetime_s: int) -> str:
        """A signed token that allows `scopes`."""
        now_s = int(datetime.now(UTC).timestamp())
        der = subprocess.run(
            ["openssl", "x509", "-in", str(self._certificate), "-outform", "DER"],
            check=True,
            capture_output=True,
        ).stdout
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": "somebody",
            "aud": SERVICE,
            "exp": now_s + lifetime_s,
            "nbf": now_s - 60,
            "iat": now_s,
            "jti": f"{len(self.issued)}",
            "access": [_access(scope) for scope in scopes],
        }
        signed = f"{_packed(header)}.{_packed(claims)}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=signed.encode(),
            check=True,
            capture_output=True,
        ).stdout
        return f"{signed}.{_encoded(signature)}"

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def _answer(self, asked: Asked) -> Reply:
        fields = _fields(asked)
        given = asked.headers.get("authorization", "")
        if "refresh_token" in fields:
            given = f"refresh:{fields['refresh_token'][0]}"
        if given not in self.accepted and (given or not self.anonymous):
            return Reply(401, {"Content-Type": "application/json"}, b"{}")
        scopes = [word for text in fields.get("scope", []) for word in text.split()]
        token = self.token(scopes, lifetime_s=self.lifetime_s)
        self.issued.append(token)
        answer = {"token": token, "access_token": token, "expires_in": self.lifetime_s}
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())


def _fields(asked: Asked) -> dict[str, list[str]]:
    return parse_qs(asked.body.decode() if asked.body else urlsplit(asked.path).query)


def _access(scope: str) -> dict[str, Any]:
    kind, name, actions = scope.split(":")
    return {"type": kind, "name": name, "actions": actions.split(",")}


def _packed(value: dict[str, Any]) -> str:
    return _encoded(json.dumps(value).encode())


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
