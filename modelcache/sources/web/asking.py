"""The small requests of resolving: HEAD, a short GET, an index; over kept connections.

Owns redirects, proxies, and repeating what failed in passing. It judges no final status and knows
nothing of pins. Weights do not pass here. Every failure is translated; messages never carry a
URL's query. Safe to use from several threads.
"""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from modelcache.config import TransferSettings
from modelcache.domain.reach import check_peer
from modelcache.errors import ModelcacheError, NotFound, SourceRefused, SourceUnavailable
from modelcache.sources.source import ProxyAddress
from modelcache.sources.web.address import Address, escape
from modelcache.sources.web.answers import REDIRECTS, retry_after_s
from modelcache.sources.web.proxies import proxy_for

REDIRECTS_MAX: Final = 10  # browsers follow 20; a real chain has two or three
INDEX_BYTES_MAX: Final = 64 << 20  # an index of half a million files
ATTEMPTS_MAX: Final = 4
BACKOFF_S: Final = 0.2  # doubled each time, with jitter
PATIENCE_S: Final = 10.0  # a longer Retry-After is left to the caller
_DRAIN_BYTES_MAX: Final = 64 << 10  # a longer unwanted body costs more than a new connection
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})


HeadersFor = Callable[[Address], tuple[tuple[str, str], ...]]
"""What to send to an address, besides what one request needs: credentials for their own host."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A final response, and where it came from after redirects. Header names are lower-case."""

    address: Address
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


class Asker:
    """Sends small requests for one ref."""

    def __init__(
        self,
        headers_for: HeadersFor,
        transfer: TransferSettings,
        ca_file: str | None,
        *,
        ca_setting: str = "http.ca_file",
    ) -> None:
        """ca_setting: what a user sets to trust another authority, for messages."""
        self._headers_for = headers_for
        self._ca_setting = ca_setting
        self._connect_timeout_s = transfer.connect_timeout_s
        self._stall_timeout_s = transfer.stall_timeout_s
        self._refused = transfer.refused_networks
        self._ca_file = ca_file
        self._guard = threading.Lock()
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._proxies: dict[str, ProxyAddress | None] = {}
        self._tls: ssl.SSLContext | None = None

    def ask(
        self,
        method: str,
        address: Address,
        headers: Mapping[str, str] | None = None,
        *,
        wants_body: bool = False,
        follow: bool = True,
    ) -> Answer:
        """Send a request and follow its redirects. Idempotent; repeats what failed in passing.

        Without `follow` a redirect is an answer as any other; see `redirected`.
        Raises SourceUnavailable, NotFound for a host without an address, and SourceRefused for
        certificates, redirects that loop or lead out of TLS, and an index beyond its bound.
        """
        start = address
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._patiently(method, address, headers or {}, wants_body=wants_body)
            location = answer.headers.get("location")
            if not follow or answer.status not in REDIRECTS or not location:
                return answer
            address = redirected(address, location)
        raise SourceRefused(f"{start} redirects more than {REDIRECTS_MAX} times")

    def proxy(self, address: Address) -> ProxyAddress | None:
        """The proxy that the environment names for this address."""
        server = address.server
        if server not in self._proxies:
            self._proxies[server] = proxy_for(urlsplit(server))
        return self._proxies[server]

    def close(self) -> None:
        """Close the connections that are kept. The next request opens new ones."""
        with self._guard:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def __del__(self) -> None:
        """Sources have no end that anybody announces."""
        if hasattr(self, "_idle"):
            self.close()

    def _patiently(
        self, method: str, address: Address, headers: Mapping[str, str], *, wants_body: bool
    ) -> Answer:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            wait_s = BACKOFF_S * 2**attempt * random.uniform(0.5, 1)
            try:
                answer = self._once(method, address, headers, wants_body=wants_body)
            except SourceUnavailable:
                if attempt == ATTEMPTS_MAX:
                    raise
            else:
                asked_s = retry_after_s(answer.headers) or 0.0
                passing = answer.status in _PASSING and asked_s <= PATIENCE_S
                if not passing or attempt == ATTEMPTS_MAX:
                    return answer
                wait_s = max(wait_s, asked_s)
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, method: str, address: Address, headers: Mapping[str, str], *, wants_body: bool
    ) -> Answer:
        proxy = self.proxy(address)
        sent = {**dict(self._headers_for(address)), **headers}
        path = address.path
        if proxy and not address.tls:
            path = address.url
            if proxy.authorization:
                sent["Proxy-Authorization"] = proxy.authorization
        try:
            connection, response = self._exchange(method, address, path, sent)
        except (OSError, http.client.HTTPException) as error:
            raise self._translated(error, address, proxy) from error
        try:
            return self._read(connection, response, address, wants_body=wants_body)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._translated(error, address, proxy) from error
        except BaseException:
            connection.close()
            raise

    def _exchange(
        self, method: str, address: Address, path: str, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A response's head. A kept connection may be stale: that is nobody's failure."""
        while True:
            connection = self._take(address)
            kept = connection is not None
            if connection is None:
                connection = self._connect(address)
            try:
                connection.request(method, path, headers=dict(headers))
                return connection, connection.getresponse()
            except (ConnectionError, http.client.BadStatusLine):
                connection.close()
                if not kept:
                    raise
            except BaseException:
                connection.close()
                raise

    def _read(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        address: Address,
        *,
        wants_body: bool,
    ) -> Answer:
        headers: dict[str, str] = {}
        for name, value in response.getheaders():
            name = name.lower()  # noqa: PLW2901 - the same name
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        wanted = wants_body and response.status == http.client.OK
        limit = INDEX_BYTES_MAX if wanted else _DRAIN_BYTES_MAX
        announced = response.length
        too_long = announced is not None and announced > limit
        body = b"" if too_long else response.read(limit + 1)
        if announced is not None and not too_long and len(body) < announced:
            raise http.client.IncompleteRead(b"", announced - len(body))  # read() does not say so
        too_long = too_long or len(body) > limit
        if response.will_close or too_long or not response.isclosed():
            connection.close()
        else:
            with self._guard:
                self._idle.setdefault(address.server, []).append(connection)
        if wanted and too_long:
            raise SourceRefused(f"index {address} is larger than {limit >> 20} MiB")
        return Answer(address, response.status, headers, body if wanted else b"")

    def _take(self, address: Address) -> http.client.HTTPConnection | None:
        with self._guard:
            idle = self._idle.get(address.server)
            return idle.pop() if idle else None

    def _connect(self, address: Address) -> http.client.HTTPConnection:
        proxy = self.proxy(address)
        host, port = (proxy.host, proxy.port) if proxy else (address.host, address.port)
        connection = (
            http.client.HTTPSConnection(
                host, port, timeout=self._connect_timeout_s, context=self._tls_context()
            )
            if address.tls
            else http.client.HTTPConnection(host, port, timeout=self._connect_timeout_s)
        )
        if proxy and address.tls:
            secret = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            connection.set_tunnel(address.host, address.port, headers=secret)
        try:
            connection.connect()
            if proxy is None:
                peer, own = connection.sock.getpeername()[0], connection.sock.getsockname()[0]
                check_peer(peer, own, host, self._refused)
        except BaseException:
            connection.close()
            raise
        sock: socket.socket = connection.sock
        sock.settimeout(self._stall_timeout_s)
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        with self._guard:
            if self._tls is None:
                try:
                    self._tls = ssl.create_default_context(cafile=self._ca_file)
                except OSError as error:  # SSLError among them
                    raise SourceRefused(
                        f"cannot read trusted certificates {self._ca_file}: "
                        f"{error.strerror or error}"
                    ) from error
            return self._tls

    def _translated(
        self, error: Exception, address: Address, proxy: ProxyAddress | None
    ) -> ModelcacheError:
        where = f"proxy {proxy.host}:{proxy.port}" if proxy else address.server
        match error:
            case ssl.SSLCertVerificationError():
                return SourceRefused(
                    f"certificate of {address.host} is not trusted: {error.verify_message}; set "
                    f"{self._ca_setting} to the authority that signed it"
                )
            case socket.gaierror() if error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
                return NotFound(f"{where}: no such host")
            case OSError() if str(error).startswith("Tunnel connection failed: 4"):
                code = str(error).removeprefix("Tunnel connection failed: ")[:3]
                return SourceRefused(f"{where} refused a tunnel to {address.server} ({code})")
            case TimeoutError():
                return SourceUnavailable(f"{where}: no answer in time")
            case OSError():
                reason = (error.strerror or type(error).__name__).lower()
                return SourceUnavailable(f"{where}: {reason}")
            case _:
                return SourceUnavailable(f"{where} does not speak HTTP ({type(error).__name__})")


def redirected(address: Address, location: str) -> Address:
    """Where `location` leads. http.client decodes headers as Latin-1; raw UTF-8 is common.

    Raises SourceRefused for what cannot be used, and for a way out of TLS.
    """
    try:
        target = address.join(escape(location.encode("latin-1")))
    except ValueError as error:
        raise SourceRefused(f"{address} redirects to an address that cannot be used") from error
    if address.tls and not target.tls:
        raise SourceRefused(f"{address} redirects from https to http, which is not followed")
    return target
