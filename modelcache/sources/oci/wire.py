"""One HTTP exchange by requests: with our certificates, proxies, bounds and errors.

It follows nothing, repeats nothing and knows no credentials. What it raises never carries a URL's
query, which may be a signature.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final
from urllib.parse import urlsplit

import requests
from requests.cookies import RequestsCookieJar

from modelcache.config import TransferSettings
from modelcache.errors import ModelcacheError, NotFound, SourceRefused, SourceUnavailable
from modelcache.sources.source import ProxyAddress
from modelcache.sources.web.address import Address
from modelcache.sources.web.guarding import GuardedAdapter
from modelcache.sources.web.identity import user_agent
from modelcache.sources.web.proxies import proxy_for

SEND_BYTES: Final = 1 << 20  # one read of a pushed file, one write to the socket; 16 KiB otherwise
CONNECTIONS_MAX: Final = 64  # kept, to one host


Body = bytes | bytearray | memoryview | IO[bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, and where it came from. Header names are lower-case.

    body: its first bytes only where there are more than were asked for, which too_long tells.
    """

    address: Address
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    too_long: bool = False


class Content:
    """What a request carries, and whether it can be sent once more."""

    def __init__(self, data: Body | None) -> None:
        """data: a file is sent from where it stands."""
        self._data = data
        self._file = None if isinstance(data, bytes | bytearray | memoryview | None) else data
        self._start = self._file.tell() if self._file and self._file.seekable() else None

    @property
    def streams(self) -> bool:
        """Whether it is read while it is sent."""
        return self._file is not None

    @property
    def repeats(self) -> bool:
        """Whether `again` gives the same once more."""
        return self._file is None or self._start is not None

    def again(self) -> Body | None:
        """The content from its start."""
        if self._file is not None and self._start is not None:
            self._file.seek(self._start)
        return self._data


class Wire:
    """Connections to a registry and to whoever it sends us to. Safe to use from many threads."""

    def __init__(self, ca_file: str | None, transfer: TransferSettings) -> None:
        """Raises SourceRefused for a ca_file that cannot be read."""
        self._timeouts = (transfer.connect_timeout_s, transfer.stall_timeout_s)
        self._adapter = _Adapter(ca_file, transfer.refused_networks)
        self._session = requests.Session()
        self._session.trust_env = False  # ~/.netrc would replace our Authorization
        self._session.cookies = _NoCookies()
        self._session.mount("https://", self._adapter)
        self._session.mount("http://", self._adapter)
        self._proxies: dict[str, ProxyAddress | None] = {}

    def proxy(self, address: Address) -> ProxyAddress | None:
        """The proxy that the environment names for this address. Raises InvalidConfig."""
        server = address.server
        if server not in self._proxies:
            self._proxies[server] = proxy_for(urlsplit(server))
        return self._proxies[server]

    def send(
        self,
        method: str,
        address: Address,
        headers: Mapping[str, str],
        content: Content,
        body_bytes_max: int,
    ) -> Reply:
        """One exchange.

        Raises SourceUnavailable, NotFound for a host without an address, and SourceRefused for
        certificates and proxies that refuse.
        """
        proxy = self.proxy(address)
        sent = {"User-Agent": user_agent(), "Accept-Encoding": "identity", **headers}
        request = requests.Request(method, address.server, headers=sent, data=content.again())
        prepared = self._session.prepare_request(request)
        prepared.url = address.url  # requests would spell it anew, and it may be signed
        try:
            with self._session.send(
                prepared,
                proxies=self._adapter.by_way_of(proxy),
                allow_redirects=False,
                stream=True,
                timeout=self._timeouts,
            ) as response:
                return _read(response, address, body_bytes_max)
        except (requests.RequestException, OSError) as error:
            raise _translated(error, address, proxy) from None  # its text has the whole URL

    def close(self) -> None:
        """Close the connections that are kept. The next request opens new ones."""
        self._session.close()


def _read(response: requests.Response, address: Address, body_bytes_max: int) -> Reply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    status = response.status_code
    body = bytearray()
    for piece in response.iter_content(64 << 10):
        body += piece
        if len(body) > body_bytes_max:
            return Reply(address, status, headers, bytes(body[:body_bytes_max]), too_long=True)
    return Reply(address, status, headers, bytes(body))


def _translated(  # noqa: PLR0911 - a table
    error: Exception, address: Address, proxy: ProxyAddress | None
) -> ModelcacheError:
    """Our error for one of requests', urllib3's or the system's."""
    where = f"proxy {proxy.host}:{proxy.port}" if proxy else address.server
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return SourceRefused(
                    f"certificate of {address.host} is not trusted: {cause.verify_message}; set "
                    "oci.ca_file to the authority that signed it"
                )
            case socket.gaierror() if cause.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
                return NotFound(f"{where}: no such host")
            case OSError() if str(cause).startswith("Tunnel connection failed: 4"):
                code = str(cause).removeprefix("Tunnel connection failed: ")[:3]
                return SourceRefused(f"{where} refused a tunnel to {address.server} ({code})")
            case ssl.SSLError() if cause.reason == "WRONG_VERSION_NUMBER":
                return SourceRefused(
                    f"{where} does not speak TLS; for a registry without it write plain-http in "
                    "the ref or name it in oci.plain_http"
                )
            case TimeoutError() | requests.Timeout():
                return SourceUnavailable(f"{where}: no answer in time")
            case OSError() if cause.strerror and not isinstance(cause, requests.RequestException):
                return SourceUnavailable(f"{where}: {cause.strerror.lower()}")
            case _:
                continue
    return SourceUnavailable(f"{where}: the exchange failed ({type(error).__name__})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what lies under it: requests and urllib3 nest them in four ways."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args]


class _NoCookies(RequestsCookieJar):
    """Forgets what it is given: one registry's requests need none, another's must not see them."""

    def set_cookie(self, *_: object, **__: object) -> None:
        """Keep nothing."""


class _Adapter(GuardedAdapter):
    """Trusts what the rest of the program trusts, and goes through the proxies it goes through."""

    def __init__(self, ca_file: str | None, refused: Sequence[str]) -> None:
        """Raises SourceRefused for a ca_file that cannot be read."""
        try:
            self._tls = ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # SSLError among them
            raise SourceRefused(
                f"cannot read trusted certificates {ca_file}: {error.strerror or error}"
            ) from error
        self._authorizations: dict[str, str] = {}
        super().__init__(refused, pool_maxsize=CONNECTIONS_MAX)

    def by_way_of(self, proxy: ProxyAddress | None) -> dict[str, str]:
        """A proxy as requests wants it named."""
        if proxy is None:
            return {}
        host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
        url = f"http://{host}:{proxy.port}"
        self._authorizations[url] = proxy.authorization
        return {"http": url, "https": url}

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        """What to tell a proxy."""
        secret = self._authorizations.get(proxy)
        return {"Proxy-Authorization": secret} if secret else {}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        """With larger writes."""
        super().init_poolmanager(*args, blocksize=SEND_BYTES, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        """With larger writes."""
        return super().proxy_manager_for(proxy, **{"blocksize": SEND_BYTES, **kwargs})

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: bool | str,
        cert: str | tuple[str, str] | None = None,
    ) -> tuple[Any, Any]:
        """With our TLS context, which trusts the system's authorities or the ca_file's."""
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self._tls}

    def cert_verify(self, *_: object) -> None:
        """The context does it; requests would add a bundle of its own."""
