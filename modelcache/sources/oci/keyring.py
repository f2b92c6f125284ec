"""Credentials for registries, from where Docker, Podman and Kubernetes keep them.

Read in this order, the first that knows the registry decides: `oci.auth_file`, Docker's
`config.json`, `$REGISTRY_AUTH_FILE`, and the `auth.json` of Podman, Buildah and Skopeo. All have
one form: `auths` by registry (or registry/namespace), and credential helpers, which are programs
that print a secret. Nothing here is ever logged or shown.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modelcache.errors import InvalidConfig

CONFIG_BYTES_MAX: Final = 1 << 20  # a Kubernetes secret's own bound
HELPER_WAIT_S: Final = 30.0  # some ask a cloud for a token
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN_USERS: Final = frozenset({"<token>", "00000000-0000-0000-0000-000000000000"})
_HUB: Final = "docker.io"
_HUB_NAMES: Final = frozenset({_HUB, "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class Credential:
    """A user's name and password, or an identity token that is exchanged for others."""

    username: str
    secret: str = field(repr=False)
    is_identity_token: bool = False

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        pair = f"{self.username}:{self.secret}".encode()
        return "Basic " + base64.b64encode(pair).decode()


class Keyring:
    """Finds the credential for a repository. Files are read again for each question."""

    def __init__(self, auth_file: str) -> None:
        """auth_file: where to look first; empty for none."""
        self._auth_file = auth_file

    def find(self, registry: str, repository: str) -> Credential | None:
        """The credential for a repository, if any is stored. registry: as refs name it.

        Raises InvalidConfig for a file that cannot be read, and for a helper that fails.
        """
        names = _names(registry, repository)
        for path, required in self._files():
            config = _read(path, required=required)
            found = _stored(config, names, path) or _helped(config, registry, path)
            if found is not None:
                return found
        return None

    def _files(self) -> Iterator[tuple[Path, bool]]:
        """Where credentials may be, and whether the file must exist."""
        environment = os.environ
        home = Path(environment.get("HOME") or "/")
        if self._auth_file:
            yield Path(self._auth_file).expanduser(), True
        yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json", False
        if named := environment.get("REGISTRY_AUTH_FILE"):
            yield Path(named), False
        if runtime := environment.get("XDG_RUNTIME_DIR"):
            yield Path(runtime) / "containers/auth.json", False
        config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
        yield config / "containers/auth.json", False


def _names(registry: str, repository: str) -> list[str]:
    """Under which names a file may hold the credential, the most specific first."""
    parts = repository.split("/")
    paths = ["/".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    hosts = sorted(_HUB_NAMES) if registry in _HUB_NAMES else [registry]
    return [*(f"{host}/{path}" for path in paths for host in hosts), *hosts]


def _bare(name: str) -> str:
    """`https://index.docker.io/v1/` is how Docker spells a host."""
    _, separator, rest = name.partition("://")
    name = (rest if separator else name).rstrip("/")
    return re.sub(r"/v[12]$", "", name)


def _read(path: Path, *, required: bool) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if required:
            raise InvalidConfig(f"oci.auth_file {path} does not exist") from error
        return {}
    except OSError as error:
        raise InvalidConfig(f"credentials {path} cannot be read: {error.strerror}") from error
    try:
        config = json.loads(data[:CONFIG_BYTES_MAX])
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):  # the parser's own message may quote a secret
        raise InvalidConfig(f"credentials {path} are not a JSON object as docker login writes it")
    return config


def _stored(config: Mapping[str, Any], names: list[str], path: Path) -> Credential | None:
    """A credential that stands in the file itself."""
    auths = _object(config.get("auths"))
    known = {_bare(name): value for name, value in auths.items()}
    for name in names:
        entry = _object(known.get(name))
        found = _of_entry(entry, name, path) if entry else None
        if found is not None:
            return found
    return None


def _of_entry(entry: Mapping[str, Any], name: str, path: Path) -> Credential | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credential("<token>", token, is_identity_token=True)
    username, secret = entry.get("username"), entry.get("password")
    if isinstance(username, str) and isinstance(secret, str) and username:
        return Credential(username, secret)
    packed = entry.get("auth")
    if not isinstance(packed, str) or not packed:
        return None  # a helper has it
    try:
        user, separator, password = base64.b64decode(packed).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        separator = user = password = ""
    if not separator or not user:
        raise InvalidConfig(
            f"credentials {path}: the 'auth' of {name} is not base64 of user:secret"
        )
    return Credential(user, password.rstrip("\x00"))


def _helped(config: Mapping[str, Any], registry: str, path: Path) -> Credential | None:
    """A credential that a helper program keeps."""
    helpers = {_bare(name): value for name, value in _object(config.get("credHelpers")).items()}
    host = _HUB if registry in _HUB_NAMES else registry
    server = "https://index.docker.io/v1/" if host == _HUB else registry
    helper = helpers.get(host) or helpers.get(registry)
    if helper is not None:
        return _ask_helper(helper, server, path, required=True)
    store = config.get("credsStore")
    return _ask_helper(store, server, path, required=False) if store else None


def _ask_helper(helper: object, server: str, path: Path, *, required: bool) -> Credential | None:
    """required: the registry is named with this helper. A general one may belong elsewhere.

    The protocol is Docker's: the server's name to standard input, a JSON object from standard
    output. What it prints on failure is not shown, for it may hold anything.
    """
    if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
        raise InvalidConfig(f"credentials {path} name a credential helper that cannot be a program")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(  # noqa: S603 - what the user has configured
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidConfig(f"{program} did not answer within {HELPER_WAIT_S:.0f} s") from None
    except OSError as error:
        if not required:
            return None  # a config.json copied from a desktop names one that exists only there
        raise InvalidConfig(
            f"credentials {path} name {program}, which cannot be run: {error.strerror}"
        ) from error
    if done.returncode:
        if not required or b"credentials not found" in done.stdout + done.stderr:
            return None
        raise InvalidConfig(f"{program} failed ({done.returncode}); run it by hand to see why")
    return _of_helper(done.stdout, program)


def _of_helper(printed: bytes, program: str) -> Credential | None:
    try:
        answer = _object(json.loads(printed[:CONFIG_BYTES_MAX]))
    except (ValueError, RecursionError):
        answer = {}
    username, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise InvalidConfig(f"{program} printed no credential of the form that Docker defines")
    if not secret:
        return None
    return Credential(username, secret, is_identity_token=username in {"", *_TOKEN_USERS})


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
