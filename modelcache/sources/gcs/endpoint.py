"""Where a bucket's server is, whether it is Google's, and whether it may see credentials.

A ref may come from anybody who may annotate a pod, and an access token opens every bucket that its
owner may read. So an endpoint that only a ref names gets no token: the operator's configuration has
to name it, too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from modelcache.config import GcsSettings
from modelcache.domain.refs import Ref
from modelcache.errors import InvalidConfig, InvalidRef
from modelcache.sources.web.address import Address, parse_address

GOOGLE: Final = "https://storage.googleapis.com"
EMULATOR: Final = "STORAGE_EMULATOR_HOST"  # the variable that Google's own clients read
_GOOGLE_HOSTS: Final = (".googleapis.com",)  # private endpoints among them


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server. base: the path before `/storage/v1`, mostly empty. trusted: may see tokens."""

    address: Address
    base: str
    trusted: bool

    @property
    def url(self) -> str:
        """The URL to put `/storage/v1` behind."""
        return self.address.server + self.base

    @property
    def is_google(self) -> bool:
        """Whether this is Google itself, over TLS."""
        return _is_google(self.address)

    def identity(self, bucket: str) -> str:
        """What tells this bucket from one of the same name elsewhere."""
        if self.is_google:
            return f"gs://{bucket}"
        return f"gs://{bucket}@{self.url.partition('://')[2].lower()}"


def choose_endpoint(origin: Ref, settings: GcsSettings) -> Endpoint:
    """The ref's endpoint, else the configuration's, else the emulator's, else Google.

    Raises InvalidRef, InvalidConfig for a URL that cannot be used.
    """
    configured = _parsed(settings.endpoint) if settings.endpoint else None
    if named := origin.option("endpoint"):
        address = _parsed(named, InvalidRef)
        known = configured is not None and configured.server == address.server
        return _endpoint(address, trusted=known or _is_google(address))
    if configured is not None:
        return _endpoint(configured, trusted=True)
    if emulator := os.environ.get(EMULATOR):
        address = _parsed(emulator if "://" in emulator else f"http://{emulator}")
        return _endpoint(address, trusted=_is_google(address))
    return _endpoint(parse_address(GOOGLE), trusted=True)


def _endpoint(address: Address, *, trusted: bool) -> Endpoint:
    return Endpoint(address, address.path.rstrip("/"), trusted)


def _parsed(url: str, error: type[InvalidRef | InvalidConfig] = InvalidConfig) -> Address:
    try:
        address = parse_address(url)
    except ValueError as cause:
        raise error(f"GCS endpoint must be a URL such as {GOOGLE}: {cause}") from cause
    if "?" in address.path:
        raise error("GCS endpoint must be a URL without a query")
    return address


def _is_google(address: Address) -> bool:
    return address.tls and address.host.endswith(_GOOGLE_HOSTS)
