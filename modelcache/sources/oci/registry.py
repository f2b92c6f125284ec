"""One registry: authenticated requests to its distribution API, over kept connections.

Owns its address, the connections, credentials sent to it and to nobody else, redirects, proxies,
and repeating what failed in passing. It knows neither manifests nor files, and judges no final
status. Layers' bytes do not come this way; what is pushed does. Every failure is translated, and
messages never carry a URL's query. Safe to use from several threads.

requests does the HTTP. oras-py is not used: it keeps one token for all scopes, knows no identity
tokens, waits 3^n seconds between attempts, logs what servers say, and raises ValueError with URLs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from modelcache.config import OciSettings, TransferSettings
from modelcache.domain.addresses import is_loopback
from modelcache.errors import InvalidRef, SourceRefused, SourceUnavailable
from modelcache.sources.oci.auth import Authority, Scope, TokenReply
from modelcache.sources.oci.keyring import Keyring
from modelcache.sources.oci.wire import Body, Content, Reply, Wire
from modelcache.sources.source import ProxyAddress
from modelcache.sources.web.address import Address, escape, parse_address
from modelcache.sources.web.answers import REDIRECTS, retry_after_s
from modelcache.sources.web.identity import user_agent

BODY_BYTES_MAX: Final = 4 << 20  # what registries themselves bound manifests by
REDIRECTS_MAX: Final = 5
ATTEMPTS_MAX: Final = 4
BACKOFF_S: Final = 0.2  # doubled each time, with jitter
PATIENCE_S: Final = 10.0  # a longer Retry-After is left to the caller
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_NO: Final = frozenset({"0", "false", "no"})

Headers = tuple[tuple[str, str], ...]


class Registry:
    """See the module."""

    def __init__(
        self,
        name: str,
        settings: OciSettings,
        transfer: TransferSettings,
        *,
        plain_http: str | None = None,
    ) -> None:
        """name: host[:port] as refs have it. plain_http: the ref's option, where it was given.

        Raises InvalidRef, InvalidConfig.
        """
        self.name = name
        plain = _is_plain(name, settings, plain_http)
        host = "registry-1.docker.io" if name in _HUB else name
        try:
            self.server = parse_address(f"{'http' if plain else 'https'}://{host}/")
        except ValueError as error:
            raise InvalidRef(f"registry {name[:80]!r} cannot be used: {error}") from error
        self.ca_file = settings.ca_file or None
        self._wire = Wire(self.ca_file, transfer)
        self._authority = Authority(self.server, name, Keyring(settings.auth_file), self._ask_realm)

    def repository(self, name: str) -> str:
        """The name that the API knows: Docker Hub's own images are below `library/`."""
        return f"library/{name}" if self.name in _HUB and "/" not in name else name

    def address(self, path_or_url: str) -> Address:
        """The address of `/v2/…` here, or of a Location that the registry gave.

        Raises SourceRefused for one that cannot be used, or leads from https to http.
        """
        return self._join(self.server, path_or_url)

    def owns(self, address: Address) -> bool:
        """Whether an address is this registry's own: only there its credentials are sent."""
        return address.server == self.server.server

    def request(
        self,
        method: str,
        path_or_url: str,
        *,
        repository: str,
        push: bool = False,
        mount_from: str = "",
        headers: Mapping[str, str] | None = None,
        data: Body | None = None,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> Reply:
        """Send a request, with a token for `repository` where one is wanted, and read the answer.

        repository, mount_from: as `repository()` gives them; the latter is read from as well, to
        mount a blob. push: ask for the right to write. data: content that can be sent again (bytes,
        or a file, from where it stands) is sent again after failures in passing. Redirects of GET
        and HEAD are followed; others are given back. Raises SourceUnavailable, NotFound for a host
        without an address, NoCredentials, Forbidden, SourceRefused.
        """
        scope = Scope(repository, push, mount_from)
        content = Content(data)
        address = start = self.address(path_or_url)
        for _ in range(REDIRECTS_MAX + 1):
            reply = self._allowed(method, address, scope, headers or {}, content, body_bytes_max)
            location = reply.headers.get("location")
            follows = method in {"GET", "HEAD"} and reply.status in REDIRECTS and location
            if not follows or location is None:
                return reply
            address = self._join(address, location)
        raise SourceRefused(f"{start} redirects more than {REDIRECTS_MAX} times")

    def headers_for(self, address: Address, repository: str) -> Headers:
        """What a GET of an address needs to be sent with: to others, nothing that is secret."""
        common = (("User-Agent", user_agent()), ("Accept-Encoding", "identity"))
        if not self.owns(address):
            return common
        header = self._authority.header(Scope(repository))
        return (*common, ("Authorization", header)) if header else common

    def good_for_s(self, repository: str) -> float | None:
        """How long `headers_for` this registry will be accepted; None for as long as one likes."""
        return self._authority.good_for_s(Scope(repository))

    def has_credential(self, repository: str) -> bool:
        """Whether the user gave a credential for this repository."""
        return self._authority.has_credential(Scope(repository))

    def proxy(self, address: Address) -> ProxyAddress | None:
        """The proxy that the environment names for an address."""
        return self._wire.proxy(address)

    def close(self) -> None:
        """Close the connections that are kept. The next request opens new ones."""
        self._wire.close()

    def __del__(self) -> None:
        """Sources have no end that anybody announces."""
        if hasattr(self, "_wire"):
            self.close()

    def _allowed(  # noqa: PLR0917 - one request, taken apart
        self,
        method: str,
        address: Address,
        scope: Scope,
        headers: Mapping[str, str],
        content: Content,
        body_bytes_max: int,
    ) -> Reply:
        """Send with what the registry wants to see, which its first refusal tells."""
        if not self.owns(address):
            return self._patiently(method, address, headers, content, body_bytes_max)
        header = self._authority.header(scope)
        if header is None and content.streams:
            header = self._challenged(scope)  # rather than have all of it refused
        sent = {**headers, "Authorization": header} if header else headers
        reply = self._patiently(method, address, sent, content, body_bytes_max)
        wanted = reply.headers.get("www-authenticate", "")
        if reply.status != 401 or (header and not wanted):  # noqa: PLR2004
            return reply
        self._authority.drop(scope, refused=header)
        header = self._authority.answer(scope, wanted, refused=header)
        if not content.repeats:
            return reply  # some of it is gone; whoever sends it comes back, and finds the token
        sent = {**headers, "Authorization": header}
        return self._patiently(method, address, sent, content, body_bytes_max)

    def _challenged(self, scope: Scope) -> str | None:
        """Learn what the registry wants, from the one request that changes nothing."""
        reply = self._patiently("GET", self.address("/v2/"), {}, Content(None), BODY_BYTES_MAX)
        if reply.status != 401:  # noqa: PLR2004
            return None
        wanted = reply.headers.get("www-authenticate", "")
        return self._authority.answer(scope, wanted, refused=None)

    def _ask_realm(
        self, method: str, realm: Address, fields: list[tuple[str, str]], headers: Mapping[str, str]
    ) -> TokenReply:
        form = urlencode(fields)
        if method == "GET":
            mark = "&" if "?" in realm.path else "?"
            realm = parse_address(f"{realm.url}{mark}{form}")
            content = Content(None)
        else:
            content = Content(form.encode())
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        reply = self._patiently(method, realm, headers, content, BODY_BYTES_MAX)
        return TokenReply(reply.status, reply.headers, reply.body)

    def _patiently(
        self,
        method: str,
        address: Address,
        headers: Mapping[str, str],
        content: Content,
        body_bytes_max: int,
    ) -> Reply:
        attempts = ATTEMPTS_MAX if content.repeats else 1
        for attempt in range(1, attempts + 1):
            wait_s = BACKOFF_S * 2**attempt * random.uniform(0.5, 1)
            try:
                reply = self._wire.send(method, address, headers, content, body_bytes_max)
            except SourceUnavailable:
                if attempt == attempts:
                    raise
            else:
                asked_s = retry_after_s(reply.headers) or 0.0
                passing = reply.status in _PASSING and asked_s <= PATIENCE_S
                if not passing or attempt == attempts:
                    return reply
                wait_s = max(wait_s, asked_s)
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    @staticmethod
    def _join(base: Address, reference: str) -> Address:
        try:
            target = base.join(escape(reference.encode("latin-1")))
        except (ValueError, UnicodeEncodeError) as error:
            raise SourceRefused(f"{base} leads to an address that cannot be used") from error
        if base.tls and not target.tls:
            raise SourceRefused(f"{base} leads from https to http, which is not followed")
        return target


def _is_plain(name: str, settings: OciSettings, option: str | None) -> bool:
    """Whether to speak without TLS: as the ref says, the settings say, or on loopback."""
    if option is not None:
        return option.lower() not in _NO
    return name in settings.plain_http or _is_local(name)


def _is_local(name: str) -> bool:
    host = name.rpartition(":")[0] if not name.endswith("]") and ":" in name else name
    host = host.strip("[]").lower()
    return is_loopback(host) or host.endswith(".localhost")
