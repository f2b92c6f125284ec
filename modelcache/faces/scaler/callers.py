"""Who asks through the API server's aggregation, and whether that can be believed.

The API server authenticates the caller and tells us in headers. Anybody can write headers: they
count only on a connection whose certificate was signed by the front proxy's authority (which TLS
has checked) and bears one of its names. All of this stands in a ConfigMap that every API server
publishes, `kube-system/extension-apiserver-authentication`. See "Configure the aggregation layer".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import NameOID

from modelcache.errors import InvalidConfig, ModelcacheError

CONFIG_NAMESPACE: Final = "kube-system"
CONFIG_NAME: Final = "extension-apiserver-authentication"
GROUPS_MAX: Final = 1000


class Unauthenticated(ModelcacheError):
    """It cannot be told who asks: come through the API server."""

    code = "unauthenticated"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the API server has it."""

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class FrontProxy:
    """How API servers show who they are. names: of certificates; none of them for any.

    Headers are in lower case. authority: PEM.
    """

    authority: str
    names: frozenset[str] = frozenset()
    user_headers: tuple[str, ...] = ()
    uid_headers: tuple[str, ...] = ()
    group_headers: tuple[str, ...] = ()
    extra_prefixes: tuple[str, ...] = field(default=())


def front_proxy(data: Mapping[str, str]) -> FrontProxy:
    """Read the ConfigMap. Raises InvalidConfig where aggregation is not set up."""
    authority = data.get("requestheader-client-ca-file", "")
    try:
        found = x509.load_pem_x509_certificates(authority.encode())
        names = _list(data, "requestheader-allowed-names")
        proxy = FrontProxy(
            authority=authority,
            names=frozenset(names),
            user_headers=_headers(data, "requestheader-username-headers"),
            uid_headers=_headers(data, "requestheader-uid-headers"),
            group_headers=_headers(data, "requestheader-group-headers"),
            extra_prefixes=_headers(data, "requestheader-extra-headers-prefix"),
        )
    except ValueError as error:
        raise InvalidConfig(f"{CONFIG_NAME}: the API server's aggregation is not set up") from error
    if not found or not proxy.user_headers:
        raise InvalidConfig(f"{CONFIG_NAME}: the API server's aggregation is not set up")
    return proxy


def caller(
    proxy: FrontProxy, certificate: bytes | None, headers: Iterable[tuple[bytes, bytes]]
) -> Caller:
    """Who asks. certificate: DER, already checked against `proxy.authority`; headers: as received.

    Raises Unauthenticated, which says no more than the caller knows.
    """
    if certificate is None:
        raise Unauthenticated("no client certificate was shown")
    if proxy.names and not proxy.names.intersection(_common_names(certificate)):
        raise Unauthenticated("the client certificate is not the front proxy's")
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    user = _first(found, proxy.user_headers)
    if not user:
        raise Unauthenticated("the front proxy does not say who asks")
    groups = tuple(group for name in proxy.group_headers for group in found.get(name, ()))
    if len(groups) > GROUPS_MAX:
        raise Unauthenticated(f"a caller has at most {GROUPS_MAX} groups")
    return Caller(user, groups, _first(found, proxy.uid_headers), tuple(_extra(found, proxy)))


def _extra(
    found: Mapping[str, list[str]], proxy: FrontProxy
) -> Iterable[tuple[str, tuple[str, ...]]]:
    for name in sorted(found):
        for prefix in proxy.extra_prefixes:
            if name.startswith(prefix) and len(name) > len(prefix):
                yield unquote(name[len(prefix) :]), tuple(found[name])
                break


def _first(found: Mapping[str, list[str]], names: Iterable[str]) -> str:
    return next((found[name][0] for name in names if found.get(name) and found[name][0]), "")


def _common_names(certificate: bytes) -> set[str]:
    try:
        subject = x509.load_der_x509_certificate(certificate).subject
    except ValueError:
        return set()
    return {str(each.value) for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)}


def _headers(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(name.lower() for name in _list(data, key))


def _list(data: Mapping[str, str], key: str) -> list[str]:
    found = json.loads(data.get(key) or "[]")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(key)
    return found
