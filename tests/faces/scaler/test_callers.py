"""Who asks is believed only from the front proxy."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from modelcache.errors import InvalidConfig
from modelcache.faces.scaler.callers import (
    GROUPS_MAX,
    Caller,
    Unauthenticated,
    caller,
    front_proxy,
)
from tests.servers.certificates import Authority

CONFIG = {
    "client-ca-file": "somebody else's",
    "requestheader-allowed-names": '["front-proxy-client","other"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-uid-headers": '["X-Remote-Uid"]',
    "requestheader-username-headers": '["X-Remote-User"]',
}
HEADERS = [
    (b"x-remote-user", b"system:serviceaccount:kube-system:horizontal-pod-autoscaler"),
    (b"X-Remote-Group", b"system:serviceaccounts"),
    (b"x-remote-group", b"system:authenticated"),
    (b"x-remote-uid", b"7"),
    (b"x-remote-extra-scopes.example.com%2fa", b"one"),
    (b"accept", b"*/*"),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("front-proxy"))


def shown(authority: Authority, name: str) -> bytes:
    made = authority.issue(name, name, (f"DNS:{name}",), usage="clientAuth")
    return x509.load_pem_x509_certificate(made.cert_file.read_bytes()).public_bytes(Encoding.DER)


def config(authority: Authority, **more: str) -> dict[str, str]:
    return {**CONFIG, "requestheader-client-ca-file": authority.ca_file.read_text(), **more}


def test_the_front_proxy_says_who_asks(authority: Authority):
    proxy = front_proxy(config(authority))
    assert caller(proxy, shown(authority, "front-proxy-client"), HEADERS) == Caller(
        "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
        ("system:serviceaccounts", "system:authenticated"),
        "7",
        (("scopes.example.com/a", ("one",)),),
    )


def test_others_are_nobody_whatever_their_headers_say(authority: Authority):
    proxy = front_proxy(config(authority))
    with pytest.raises(Unauthenticated, match="no client certificate"):
        caller(proxy, None, HEADERS)
    with pytest.raises(Unauthenticated, match="not the front proxy's"):
        caller(proxy, shown(authority, "kubelet"), HEADERS)
    with pytest.raises(Unauthenticated, match="not the front proxy's"):
        caller(proxy, b"no certificate", HEADERS)
    with pytest.raises(Unauthenticated, match="does not say"):
        caller(proxy, shown(authority, "other"), HEADERS[1:])
    with pytest.raises(Unauthenticated, match="does not say"):
        caller(proxy, shown(authority, "other"), [(b"x-remote-user", b""), *HEADERS[1:]])
    many = [*HEADERS, *[(b"x-remote-group", b"g")] * GROUPS_MAX]
    with pytest.raises(Unauthenticated, match="groups"):
        caller(proxy, shown(authority, "other"), many)


def test_without_names_any_certificate_of_the_authority_will_do(authority: Authority):
    proxy = front_proxy(config(authority, **{"requestheader-allowed-names": "[]"}))
    assert caller(proxy, shown(authority, "kubelet"), HEADERS).user


@pytest.mark.parametrize(
    "change",
    [
        {"requestheader-client-ca-file": ""},
        {"requestheader-client-ca-file": "-----BEGIN CERTIFICATE-----"},
        {"requestheader-username-headers": "[]"},
        {"requestheader-allowed-names": "front-proxy-client"},
        {"requestheader-allowed-names": '{"a":1}'},
        {"requestheader-group-headers": "[1]"},
    ],
)
def test_a_cluster_without_aggregation_is_told_so(authority: Authority, change: dict[str, str]):
    with pytest.raises(InvalidConfig, match="aggregation"):
        front_proxy(config(authority, **change))


def test_an_empty_config_map_is_no_front_proxy():
    with pytest.raises(InvalidConfig):
        front_proxy({})
