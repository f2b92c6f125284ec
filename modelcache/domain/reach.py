"""Which refs reach into the node itself: its files, and addresses that only it may ask.

A pod that could name those would read through the agent what its node hides from it: other pods'
secrets in files, credentials that a cloud gives to the node's address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from modelcache.domain.places import Scheme
from modelcache.domain.refs import Ref
from modelcache.errors import Forbidden, UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NODE_NETWORKS: Final = ("127.0.0.0/8", "0.0.0.0/8", "::1/128", "::/128")
"""Addresses that mean whoever asks."""

_NAMES: Final = ("localhost", "metadata", "metadata.google.internal")
_SERVICES: Final = (".svc", ".cluster.local")
_WEB: Final = frozenset({Scheme.HTTP, Scheme.HTTPS, Scheme.OCI})
_NUMBER: Final = re.compile(r"[0-9.]+|0x[0-9a-fx.]+")  # resolvers take 2130706433 and 127.1, too
_METADATA: Final = (ipaddress.ip_address("fd00:ec2::254"),)


def reaches_node(ref: Ref) -> bool:
    """Whether a ref names a file, or by its text an address that means the node it is asked on."""
    if ref.scheme is Scheme.FILE:
        return True
    return _is_local_name(_host(f"//{ref.authority}")) or _is_local_name(_host(_endpoint(ref)))


def named_host(ref: Ref) -> str:
    """`host` or `host:port` that a ref itself names; empty where settings or an SDK choose it."""
    if ref.scheme in _WEB:
        return ref.authority.lower()
    try:
        return urlsplit(_endpoint(ref)).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def names_service(ref: Ref) -> bool:
    """Whether a ref by its text names a Service of the cluster."""
    return _host(f"//{named_host(ref)}").endswith(_SERVICES)


def is_allowed(ref: Ref, hosts: Iterable[str]) -> bool:
    """Whether the host that a ref names is one of these globs, with its port or without."""
    named = named_host(ref)
    host = _host(f"//{named}")
    return bool(named) and any(
        fnmatchcase(each, pattern.lower()) for each in (named, host) for pattern in hosts
    )


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks as CIDR has them. Raises UsageError."""
    try:
        return tuple(ipaddress.ip_network(text.strip(), strict=False) for text in texts)
    except ValueError as error:
        raise UsageError(f"{error}; write a network such as 10.96.0.0/12") from error


def check_peer(peer: str, own: str, host: str, refused: Sequence[str] = ()) -> None:
    """Refuse what a name has led to: asked of a connection that is there, so that no name lies.

    peer, own: addresses of both its ends. refused: networks; where there are any, the machine
    itself is refused too, whatever its address. Raises Forbidden.
    """
    if is_link_local(peer):
        raise Forbidden(f"{host} is a link-local address, which no origin has")
    if refused and (peer == own or _is_in(peer, tuple(refused))):
        raise Forbidden(
            f"{host} leads to the node itself or to a service of the cluster, which pods may not "
            "name; list the host in access.hosts to let them"
        )


def _is_in(address: str, networks: tuple[str, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True  # no address of the internet's
    mapped = getattr(found, "ipv4_mapped", None) or found
    return any(mapped in network for network in _parsed(networks))


@lru_cache(maxsize=32)
def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return parse_networks(networks)


def _endpoint(ref: Ref) -> str:
    return dict(ref.options).get("endpoint", "")


def is_link_local(address: str) -> bool:
    """Whether an IP address is one of those at which clouds tell machines their secrets."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_link_local or found in _METADATA


def _is_local_name(host: str) -> bool:
    if host in _NAMES or host.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return _NUMBER.fullmatch(host) is not None
    mapped = getattr(found, "ipv4_mapped", None) or found
    return (
        mapped.is_loopback or mapped.is_unspecified or mapped.is_link_local or mapped in _METADATA
    )


def _host(address: str) -> str:
    """Of a URL, or of `host:port` behind two slashes; lower case, empty where there is none."""
    try:
        return (urlsplit(address if "//" in address else f"//{address}").hostname or "").rstrip(".")
    except ValueError:
        return ""
