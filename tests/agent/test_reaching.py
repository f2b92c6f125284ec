"""Where pods may lead their node's agent: real servers, and names that turn out to be theirs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent.node import Node
from modelcache.agent.pulling import resolve_from_any
from modelcache.agent.reaching import Reach
from modelcache.config import AccessSettings, HttpSettings, MirrorSettings, Settings
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.wanted import ModelPhase
from modelcache.errors import Forbidden
from modelcache.sources.source import HttpTarget
from modelcache.transfer.http1 import HttpConnection
from tests.agent.nodes import Models, node_settings, running, wait_phase
from tests.agent.support import settings
from tests.servers.docker_registry import DockerRegistry
from tests.servers.fake_gcs import FakeGcs, gcs_client
from tests.servers.hub import Hub
from tests.servers.minio import Minio
from tests.servers.nginx import Nginx
from tests.servers.uploads import upload_tree

HOST = "rebound.test"


@pytest.fixture(autouse=True)
def rebound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name like any other, whose owner has it lead to whoever asks."""
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
        return original("127.0.0.1" if host == HOST else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def base(tmp_path: Path) -> Settings:
    return settings(tmp_path / "store")


def both_ways(base: Settings, text: str) -> None:
    """The origin answers the platform, and is not asked for pods."""
    ref = parse_ref(text)
    reach = Reach(base)
    reach.check(ref, "team-a")  # its text says nothing
    resolve_from_any(reach.settings_for(ref, tenants_only=False), ref)
    with pytest.raises(Forbidden, match=r"access\.hosts"):
        resolve_from_any(reach.settings_for(ref, tenants_only=True), ref)
    allowed = Reach(replace(base, access=AccessSettings(hosts=(HOST,))))
    resolve_from_any(allowed.settings_for(ref, tenants_only=True), ref)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "m"
    made.mkdir()
    (made / "config.json").write_bytes(b"{}")
    return made


def test_a_web_server(base: Settings, web: tuple[Nginx, Path]):
    server, root = web
    (root / "m").mkdir()
    (root / "m/config.json").write_bytes(b"{}")
    both_ways(base, f"http://{HOST}:{server.port}/m/")


def test_a_bucket(base: Settings, minio: Minio, folder: Path):
    upload_tree(minio, "reach", "m", folder)
    both_ways(base, f"s3://reach/m/?endpoint=http://{HOST}:{minio.port}&style=path")


def test_a_bucket_of_googles_kind(base: Settings, fake_gcs: FakeGcs):
    bucket = gcs_client(fake_gcs.url).create_bucket("reach")
    bucket.blob("m/config.json").upload_from_string(b"{}")
    both_ways(base, f"gs://reach/m/?endpoint=http://{HOST}:{fake_gcs.port}&anonymous=true")


def test_a_hub(base: Settings):
    with Hub() as hub:
        hub.repository("org/name").commit({"config.json": b"{}"})
        port = hub.url.rpartition(":")[2].rstrip("/")
        both_ways(base, f"hf://org/name?endpoint=http://{HOST}:{port}")


def test_a_registry(base: Settings, docker_registry: DockerRegistry):
    """Where nothing is, so that being asked is all that can be told."""
    ref = parse_ref(f"oci://{HOST}:{docker_registry.port}/m:1?plain-http=true")
    reach = Reach(base)
    with pytest.raises(Forbidden, match=r"access\.hosts"):
        resolve_from_any(reach.settings_for(ref, tenants_only=True), ref)
    with pytest.raises(Exception, match="no such"):
        resolve_from_any(reach.settings_for(ref, tenants_only=False), ref)


def test_bytes_are_not_read_from_there_either(web: tuple[Nginx, Path]):
    server, root = web
    (root / "x").write_bytes(b"x")
    target = HttpTarget(HOST, server.port, False, "/x", (), 60.0, None, None)
    HttpConnection(target, connect_timeout_s=5, stall_timeout_s=5).close()
    elsewhere = "198.51.100.0/24"  # refused for being this machine, whatever its address
    for refused in ("127.0.0.0/8", elsewhere):
        with pytest.raises(Forbidden):
            HttpConnection(target, connect_timeout_s=5, stall_timeout_s=5, refused=[refused])


def test_networks_of_services_are_the_settings_and_the_clusters(base: Settings):
    ref = parse_ref("http://minio.models:9000/m/")
    reach = Reach(replace(base, access=AccessSettings(services=("10.96.0.0/12",))))
    assert "10.96.0.0/12" in reach.settings_for(ref, tenants_only=True).transfer.refused_networks
    reach.learn(["fd00:96::/108"])
    refused = reach.settings_for(ref, tenants_only=True).transfer.refused_networks
    assert {"10.96.0.0/12", "fd00:96::/108"} < set(refused)


@pytest.mark.parametrize(
    "text",
    [
        "http://minio.models.svc:9000/m/",
        "https://registry.kube-system.svc.cluster.local/m/",
        "oci://registry.default.svc:5000/m:1",
        "s3://bucket/m?endpoint=http://minio.models.svc:9000",
        "http://127.0.0.1/m/",
    ],
)
def test_names_that_say_it_are_refused_at_once(base: Settings, text: str):
    ref = parse_ref(text)
    with pytest.raises(Forbidden):
        Reach(base).check(ref, "team-a")
    Reach(base).check(ref, "")
    host = ref.authority if ref.scheme.value in {"http", "https", "oci"} else "minio.models.svc*"
    Reach(replace(base, access=AccessSettings(hosts=(host,)))).check(ref, "team-a")


def test_what_settings_name_is_the_platforms_choice(base: Settings):
    chosen = Reach(base).settings_for(parse_ref("s3://bucket/m"), tenants_only=True)
    assert chosen.transfer.refused_networks == ()


def test_a_mirror_may_be_where_the_ref_may_not(base: Settings, web: tuple[Nginx, Path]):
    server, root = web
    (root / "m").mkdir()
    (root / "m/config.json").write_bytes(b"{}")
    rewrite = (f"https://far.test/ => http://{HOST}:{server.port}/",)
    mirrored = replace(base, mirrors=MirrorSettings(rewrite=rewrite))
    ref = parse_ref("https://far.test/m/")
    resolve_from_any(Reach(mirrored).settings_for(ref, tenants_only=True), ref)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running(node_settings(tmp_path / "store", socket=tmp_path / "a.sock")) as found:
        yield found


@pytest.fixture
def model(web: tuple[Nginx, Path]) -> Iterator[Ref]:
    server, root = web
    models = Models(server.url, root)
    proxy = models.add("m")
    yield parse_ref(f"http://{HOST}:{proxy.url.rpartition(':')[2]}/m/")
    models.close()


def test_a_pods_want_fails_with_a_word_and_the_platforms_does_not(node: Node, model: Ref):
    node.want(model, lease="pod/1", tenant="team-a")
    status = wait_phase(node, model, ModelPhase.FAILED)
    assert status.trouble is not None
    assert status.trouble.code == Forbidden.code
    assert "access.hosts" in status.trouble.message
    node.want(model, lease="prefetch/all")
    wait_phase(node, model, ModelPhase.WARM)


def test_headers_of_the_settings_are_not_for_hosts_that_pods_name(base: Settings) -> None:
    """Not even for those that pods may reach; but for those that the settings name."""
    header = ("Authorization: Bearer of-the-platform",)
    ref = parse_ref(f"https://{HOST}/m/")
    for http, sent in (
        (HttpSettings(headers=header), ()),
        (HttpSettings(headers=header, hosts=("weights.example",)), header),
    ):
        for access in (AccessSettings(), AccessSettings(hosts=(HOST,))):
            reach = Reach(replace(base, http=http, access=access))
            assert reach.settings_for(ref, tenants_only=True).http.headers == sent
            assert reach.settings_for(ref, tenants_only=False).http.headers == header
