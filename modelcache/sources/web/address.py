"""URLs as the wire wants them: ASCII host, percent-encoded path, no fragment, no credentials.

A URL comes from a user, an index or a redirect; here it becomes an `Address` once. Its query may be
a credential, so `str()` and `repr()` leave it out: those are what messages use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urljoin, urlsplit

_PORTS: Final = {"http": 80, "https": 443}
_UNSAFE: Final = re.compile(rb"[^\x21-\x7e]")  # everything else stays as the server spelled it


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request goes. host: ASCII, without brackets. path: percent-encoded, with query."""

    tls: bool
    host: str
    port: int
    path: str = field(repr=False)

    @property
    def server(self) -> str:
        """`https://host` or `http://host:8080`: the URL up to its path."""
        scheme = "https" if self.tls else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}" + ("" if self.port == _PORTS[scheme] else f":{self.port}")

    @property
    def url(self) -> str:
        """The whole URL, query included: a key, never a message."""
        return self.server + self.path

    @property
    def is_directory(self) -> bool:
        """Whether the path, without its query, ends in a slash."""
        return self.path.partition("?")[0].endswith("/")

    def join(self, reference: str) -> Address:
        """The address that `reference` means in a document found here. Raises ValueError."""
        return parse_address(urljoin(self.url, reference))

    def __str__(self) -> str:
        """The URL without its query."""
        return self.server + self.path.partition("?")[0]


def parse_address(url: str) -> Address:
    """Raises ValueError, whose text names the fault and never the URL."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError(f"scheme {parts.scheme[:20]!r} is not http or https")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it carries credentials; put them in ~/.netrc")
    host = parts.hostname
    if not host:
        raise ValueError("it has no host")
    try:
        host = host if ":" in host else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError("its host is not a valid name") from error
    if not host.isprintable() or " " in host:
        raise ValueError("its host is not a valid name")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    tls = parts.scheme == "https"
    return Address(tls, host, parts.port or _PORTS[parts.scheme], escape(path.encode()))


def escape(text: bytes) -> str:
    """Percent-encode what cannot stand in a request line; escapes already there are kept."""
    return _UNSAFE.sub(lambda byte: b"%%%02X" % byte[0][0], text).decode("ascii")
