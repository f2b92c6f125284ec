"""Small requests of the resolve step: HEAD, a one-byte GET, an index; with redirects and proxies.

Credentials (extra headers from the settings, `~/.netrc`) go to the ref's own host only: a redirect
to another host, such as an object store, must not see them. Errors never repeat a URL's query.
"""

from __future__ import annotations

import base64
import http.client
import netrc
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from modelcache.config import HttpSettings
from modelcache.errors import (
    Forbidden,
    InvalidConfig,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)
from modelcache.sources.proxies import proxy_for

REDIRECTS_MAX: Final = 10
INDEX_BYTES_MAX: Final = 64 << 20  # an index of half a million files
USER_AGENT: Final = "modelcache/0.1"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Answer:
    """A final response: where it came from after redirects, and what it said."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes = b""


def shown(url: str) -> str:
    """The URL without its query, which may be a credential."""
    return url.split("?", 1)[0]


class Asker:
    """Sends small requests for one ref; keeps no connection, so it is thread-safe."""

    def __init__(self, host: str, settings: HttpSettings, timeout_s: float) -> None:
        """host: the ref's own, as `host:port` of its URL. Raises InvalidConfig."""
        self.ca_file = settings.ca_file or None
        self._own_host = host
        self._timeout_s = timeout_s
        self._extra = tuple(_parse_header(line) for line in settings.headers)
        self._netrc = _read_netrc(host)
        self._context: ssl.SSLContext | None = None

    def headers(self, url: str) -> tuple[tuple[str, str], ...]:
        """What is sent with every request to this URL."""
        common = (("User-Agent", USER_AGENT), ("Accept-Encoding", "identity"))
        if urlsplit(url).netloc != self._own_host:
            return common
        return (*common, *self._netrc, *self._extra)

    def ask(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bool = False
    ) -> Answer:
        """Send a request and follow its redirects. Success is left to the caller to judge.

        Raises SourceUnavailable, SourceRefused (certificates, redirect loops and downgrades).
        """
        for _ in range(REDIRECTS_MAX):
            answer = self._once(method, url, headers or {}, body=body)
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTS or not location:
                return answer
            target = urljoin(url, location)
            if url.startswith("https:") and not target.startswith("https:"):
                raise SourceRefused(f"{shown(url)} redirects to an unencrypted address; refused")
            if urlsplit(target).scheme not in {"http", "https"}:
                raise SourceRefused(f"{shown(url)} redirects to something that is not http")
            url = target
        raise SourceRefused(f"{shown(url)} redirects more than {REDIRECTS_MAX} times")

    def _once(self, method: str, url: str, headers: Mapping[str, str], *, body: bool) -> Answer:
        parts = urlsplit(url)
        where = shown(url)
        try:
            connection = self._connect(parts)
            try:
                proxied = proxy_for(parts) if parts.scheme == "http" else None
                path = url.split("#", 1)[0] if proxied else request_path(parts)
                sent = {**dict(self.headers(url)), **headers}
                if proxied and proxied.authorization:
                    sent["Proxy-Authorization"] = proxied.authorization
                connection.request(method, path, headers=sent)
                response = connection.getresponse()
                found = {name.lower(): value for name, value in response.getheaders()}
                data = response.read(INDEX_BYTES_MAX + 1) if body else b""
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            raise SourceRefused(
                f"certificate of {parts.hostname} is not trusted: {error.verify_message}; set "
                "http.ca_file to the authority that signed it"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if type(error).__name__ == "gaierror":
                raise NotFound(f"host {parts.hostname} cannot be found: {reason}") from error
            raise SourceUnavailable(f"{where} cannot be reached: {reason}") from error
        if len(data) > INDEX_BYTES_MAX:
            raise SourceRefused(f"index {where} is larger than {INDEX_BYTES_MAX >> 20} MiB")
        return Answer(url, response.status, found, data)

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        host, port = parts.hostname or "", parts.port
        proxy = proxy_for(parts)
        if parts.scheme == "http":
            address = (proxy.host, proxy.port) if proxy else (host, port or 80)
            return http.client.HTTPConnection(*address, timeout=self._timeout_s)
        if self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=self.ca_file)
            except OSError as error:
                raise SourceRefused(
                    f"cannot read trusted certificates {self.ca_file}: {error.strerror}"
                ) from error
        address = (proxy.host, proxy.port) if proxy else (host, port or 443)
        connection = http.client.HTTPSConnection(
            *address, timeout=self._timeout_s, context=self._context
        )
        if proxy:
            extra = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            connection.set_tunnel(host, port or 443, headers=extra)
        return connection


def request_path(parts: SplitResult) -> str:
    """Path and query as they go into the request line."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def refusal(  # noqa: C901, PLR0911 - a table
    url: str, status: int, headers: Mapping[str, str]
) -> ModelcacheError:
    """What an unsuccessful status means."""
    where = shown(url)
    match status:
        case 401:
            return Forbidden(f"{where} wants credentials (401); put them in ~/.netrc")
        case 403:
            return Forbidden(f"{where} is forbidden (403); a signed URL may have expired")
        case 404 | 410:
            return NotFound(f"{where} does not exist ({status})")
        case 412:
            return OriginChanged(f"{where} was changed since it was listed; pull again")
        case 429 | 503:
            after_s = _retry_after_s(headers)
            return Throttled(f"{where} asks for fewer requests ({status})", retry_after_s=after_s)
        case 407:
            return SourceRefused(f"the proxy wants credentials to reach {where} (407)")
        case 408 | 425 | 416:
            return SourceUnavailable(f"{where} answered {status}")
        case _ if 400 <= status < 500:  # noqa: PLR2004 - the client's fault: no use repeating
            return SourceRefused(f"{where} answered {status}")
        case _:
            after_s = _retry_after_s(headers)
            return SourceUnavailable(f"{where} answered {status}", retry_after_s=after_s)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After as seconds; dates are taken relative to the server's own Date header."""
    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        moment, now = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        return None
    return max(0.0, (moment - now).total_seconds())


def _parse_header(line: str) -> tuple[str, str]:
    name, separator, value = line.partition(":")
    if not separator or not name.strip() or "\n" in line or "\r" in line:
        raise InvalidConfig("http.headers entries must look like 'Name: value'")
    return name.strip(), value.strip()


def _read_netrc(host: str) -> tuple[tuple[str, str], ...]:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        found = netrc.netrc(str(path)).authenticators(host.rpartition(":")[0] or host)
    except FileNotFoundError:
        return ()
    except (OSError, netrc.NetrcParseError) as error:
        raise InvalidConfig(f"{path} cannot be used: {error}") from error
    if found is None:
        return ()
    pair = f"{found[0]}:{found[2]}"
    return (("Authorization", "Basic " + base64.b64encode(pair.encode()).decode()),)
