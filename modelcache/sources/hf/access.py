"""The hub's address, the user's token, and to whom that is shown: the endpoint's own host alone.

A redirect to a CDN, a page of a listing elsewhere: nobody but the hub itself sees the token. A hub
that only a ref names sees none either: refs come from whoever may write one, and a token opens all
that its owner may read. Nothing here is ever logged.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OIDCError

from modelcache.config import HfSettings
from modelcache.domain.hub import HubKey
from modelcache.domain.refs import Ref
from modelcache.errors import InvalidConfig, InvalidRef, NoCredentials, UsageError
from modelcache.sources.web.address import Address, parse_address
from modelcache.sources.web.identity import user_agent

ENDPOINT_DEFAULT: Final = "https://huggingface.co"
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}")  # else it would end or garble our header


class Access:
    """How one repository's hub is reached. endpoint: URL without a slash at its end."""

    def __init__(self, origin: Ref, settings: HfSettings, repository: str) -> None:
        """Raises InvalidRef, InvalidConfig, NoCredentials."""
        configured, setting = _configured(settings)
        named = origin.option("endpoint")
        self.own = _parse(configured, setting)
        self.trusted = True
        if named is not None:
            trusted = self.own
            self.own = _parse(named, "endpoint", InvalidRef)
            self.trusted = self.owns(trusted)
        self.endpoint = self.own.server + self.own.path.partition("?")[0].rstrip("/")
        self.repository = repository
        self.ca_file = settings.ca_file or None
        self._token = _token(settings) if self.trusted else ""

    @property
    def token_given(self) -> bool:
        """Whether the user has one."""
        return bool(self._token)

    @property
    def advice(self) -> str:
        """What to do where the hub wants a token."""
        if self.trusted:
            return "set HF_TOKEN or hf.token_file, or run `hf auth login`"
        return (
            "name this hub by hf.endpoint or HF_ENDPOINT and set HF_TOKEN; a hub that only the ref "
            "names is sent no token"
        )

    @property
    def is_public_hub(self) -> bool:
        """Whether this is huggingface.co itself, whose ways are known."""
        return self.endpoint == ENDPOINT_DEFAULT

    @property
    def page(self) -> str:
        """Where a person looks at the repository."""
        return f"{self.endpoint}/{self.repository}"

    def owns(self, address: Address) -> bool:
        """Whether an address is the hub's own, and may see the token."""
        own = self.own
        same = (own.tls, own.port) == (address.tls, address.port)
        return same and own.host.lower() == address.host.lower()

    def headers(self, address: Address) -> tuple[tuple[str, str], ...]:
        """What to send to `address`, besides what one request needs."""
        common = (("User-Agent", user_agent()), ("Accept-Encoding", "identity"))
        if self._token and self.owns(address):
            return (*common, ("Authorization", f"Bearer {self._token}"))
        return common

    def file(self, key: HubKey) -> Address:
        """Where the hub has a file, pinned by its commit."""
        return parse_address(f"{self.page}/resolve/{key.commit}/{quote(key.path)}")


def _configured(settings: HfSettings) -> tuple[str, str]:
    """The hub's URL where a ref names none, and what has set it."""
    if settings.endpoint:
        return settings.endpoint, "hf.endpoint"
    return os.environ.get("HF_ENDPOINT") or ENDPOINT_DEFAULT, "HF_ENDPOINT"


def _parse(url: str, where: str, kind: type[UsageError] = InvalidConfig) -> Address:
    try:
        return parse_address(url)
    except ValueError as error:
        raise kind(f"{where} is not the URL of a hub: {error}") from error


def _token(settings: HfSettings) -> str:
    if settings.token_file:
        path = Path(settings.token_file)
        try:
            token = path.read_text(encoding="ascii").strip()
        except OSError as error:
            raise NoCredentials(f"cannot read hf.token_file {path}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise InvalidConfig(f"hf.token_file {path} does not hold a token") from None
        return _checked(token, f"hf.token_file {path}")
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return ""
    try:
        token = get_token() or ""
    except (OIDCError, HfHubHTTPError, OSError, ValueError) as error:
        # Its text may quote what was exchanged for the token.
        raise NoCredentials(
            f"no token could be got for the hub ({type(error).__name__}); run `hf auth login` again"
        ) from None
    return _checked(token, "HF_TOKEN or what `hf auth login` stored") if token else ""


def _checked(token: str, where: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise InvalidConfig(f"{where} does not hold a token")
    return token
