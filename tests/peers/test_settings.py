"""The [peers] group: defaults, what is refused, and how a node tells others where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache.config import PeerSettings, load_settings
from modelcache.errors import InvalidConfig


def load(tmp_path: Path, text: str) -> PeerSettings:
    path = tmp_path / "config.toml"
    path.write_text(f"[peers]\n{text}\n")
    return load_settings(path, {}).peers


def test_a_file_sets_every_kind_of_value(tmp_path: Path):
    found = load(
        tmp_path,
        """
        listen = "[::]:9871"
        advertise = "10.0.0.1"
        zone = "eu-1a"
        members = ["10.0.0.1:9871", "10.0.0.2:9871@eu-1b"]
        token_file = "/etc/modelcache/token"
        token_grace_s = "5m"
        insecure = true
        connections_max = 9
        bandwidth_limit_bytes_s = "100MB"
        wait_s = 2
        """,
    )
    assert found.members == ("10.0.0.1:9871", "10.0.0.2:9871@eu-1b")
    assert found.token_grace_s == 300.0
    assert found.bandwidth_limit_bytes_s == 100_000_000
    assert found.secured
    assert found.insecure


def test_the_environment_names_members_line_by_line():
    settings = load_settings(None, {"HOME": "/nonexistent", "MODELCACHE_PEERS_MEMBERS": "a:1\nb:2"})
    assert settings.peers.members == ("a:1", "b:2")
    assert not settings.peers.secured


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('listen = ""', "peers.listen"),
        ('listen = "9871"', "no port"),
        ('listen = "a:b"', "host:port"),
        ('advertise = "http://a"', "peers.advertise"),
        ('members = ["a"]', "peers.members"),
        ('dns = "peers"', "peers.dns"),
        ('dns = "peers:1"\nmembers = ["a:1"]', "either members or dns"),
        ('zone = "a b"', "peers.zone"),
        ('cert_file = "x"', "belong together"),
        ("connections_max = 0", "connections_max"),
        ("connections_per_peer_max = 0", "connections_per_peer_max"),
        ("wait_s = -1", "wait_s"),
        ("bandwidth_limit_bytes_s = -1", "bandwidth_limit_bytes_s"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str):
    with pytest.raises(InvalidConfig, match=said):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("listen", "advertise", "expected"),
    [
        ("127.0.0.1:9871", "", ("127.0.0.1", 5)),
        ("[::1]:0", "", ("::1", 5)),
        ("0.0.0.0:9871", "10.0.0.1", ("10.0.0.1", 5)),
        ("[::]:9871", "[fd00::1]:80", ("fd00::1", 80)),
        ("10.0.0.1:9871", "node-1:7", ("node-1", 7)),
    ],
)
def test_a_node_is_reached_where_it_says_or_listens(
    listen: str, advertise: str, expected: tuple[str, int]
):
    assert PeerSettings(listen=listen, advertise=advertise).advertised(5) == expected


@pytest.mark.parametrize("listen", ["0.0.0.0:9871", "[::]:9871"])
def test_a_node_that_listens_everywhere_must_say_where_it_is(listen: str):
    with pytest.raises(InvalidConfig, match=r"peers\.advertise"):
        PeerSettings(listen=listen).advertised(5)
