"""Which refs reach into the node itself: its files, and addresses that only it may ask.

A pod that could name those would read through the agent what its node hides from it: other pods'
secrets in files, credentials that a cloud gives to the node's address.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from modelcache.domain.places import Scheme
from modelcache.domain.refs import Ref

_NAMES: Final = ("localhost", "metadata", "metadata.google.internal")
_NUMBER: Final = re.compile(r"[0-9.]+|0x[0-9a-fx.]+")  # resolvers take 2130706433 and 127.1, too
_METADATA: Final = (ipaddress.ip_address("fd00:ec2::254"),)


def reaches_node(ref: Ref) -> bool:
    """Whether a ref names a file, or by its text an address that means the node it is asked on."""
    if ref.scheme is Scheme.FILE:
        return True
    endpoint = dict(ref.options).get("endpoint", "")
    return _is_local_name(_host(f"//{ref.authority}")) or _is_local_name(_host(endpoint))


def is_link_local(address: str) -> bool:
    """Whether an IP address is one of those at which clouds tell machines their secrets."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
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
