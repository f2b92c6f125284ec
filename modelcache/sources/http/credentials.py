"""What is sent with every request: who we are, and the user's credentials for the ref's own host.

Credentials are extra headers from the settings and `~/.netrc` (or `$NETRC`). A redirect to another
host, or an index that names files elsewhere, must not see them. Nothing here is ever logged.
"""

from __future__ import annotations

import base64
import netrc
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from modelcache.config import HttpSettings
from modelcache.errors import InvalidConfig
from modelcache.sources.web.address import Address
from modelcache.sources.web.identity import user_agent

Headers = tuple[tuple[str, str], ...]

_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
# Set by whoever sends the request; a second value would break ranges, pinning or framing.
_RESERVED: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "if-match", "if-none-match"}
    | {"if-modified-since", "if-range", "if-unmodified-since", "range", "transfer-encoding"}
)


class Credentials:
    """Chooses the headers for an address."""

    def __init__(self, own: Address, settings: HttpSettings) -> None:
        """own: what the ref names. Raises InvalidConfig for an unusable header or netrc file."""
        extra = tuple(_parse_header(line) for line in settings.headers)
        if settings.hosts and not _is_one_of(own, settings.hosts):
            extra = ()
        signed = any(name.lower() == "authorization" for name, _ in extra)
        self._own = own
        self._secret = extra if signed else (*_netrc(own.host), *extra)

    @property
    def given(self) -> bool:
        """Whether the user gave any for the ref's own host."""
        return bool(self._secret)

    def owns(self, address: Address) -> bool:
        """Whether `address` is the ref's own server, or the same on standard ports behind TLS."""
        own = self._own
        upgraded = (own.tls, own.port, address.tls, address.port) == (False, 80, True, 443)
        same = (own.tls, own.port) == (address.tls, address.port)
        return own.host.lower() == address.host.lower() and (same or upgraded)

    def headers(self, address: Address) -> Headers:
        """What to send to `address`, besides what one request needs."""
        common = (("User-Agent", user_agent()), ("Accept-Encoding", "identity"))
        return (*common, *self._secret) if self.owns(address) else common


def _is_one_of(address: Address, hosts: Iterable[str]) -> bool:
    host = address.host.lower()
    names = (host, f"{host}:{address.port}")
    return any(fnmatchcase(name, pattern.lower()) for name in names for pattern in hosts)


def _parse_header(line: str) -> tuple[str, str]:
    match = _HEADER.fullmatch(line.strip())
    if match is None or not match[2].isascii():
        raise InvalidConfig("http.headers: an entry is not of the form 'Name: value' in ASCII")
    if match[1].lower() in _RESERVED:
        raise InvalidConfig(f"http.headers: {match[1]} is set by modelcache itself; leave it out")
    return match[1], match[2].rstrip()


def _netrc(host: str) -> Headers:
    path = Path(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))  # noqa: PTH111 - no raise
    try:
        found = netrc.netrc(str(path)).authenticators(host)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}") from error
    except netrc.NetrcParseError as error:
        # Its message may quote a password.
        raise InvalidConfig(f"{path}, line {error.lineno}: not a valid netrc entry") from None
    if found is None:
        return ()
    pair = f"{found[0]}:{found[2]}".encode()
    return (("Authorization", "Basic " + base64.b64encode(pair).decode()),)
