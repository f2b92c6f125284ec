"""Who may have a volume: asked of real origins, with the secret of whoever wants it."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from modelcache.agent import access
from modelcache.agent.access import Access
from modelcache.config import AccessMode, AccessSettings, OciSettings, S3Settings, Settings
from modelcache.domain.refs import Ref, parse_ref
from modelcache.errors import Forbidden, SourceUnavailable, UsageError
from tests.agent.nodes import node_settings
from tests.agent.support import settings
from tests.csi.driver import mount_capability, running_driver
from tests.kernel.roots import needs_root, targets
from tests.servers.docker_registry import DockerRegistry
from tests.servers.faults import Fault, FaultProxy, Request, never
from tests.servers.minio import Minio
from tests.servers.nginx import Nginx
from tests.servers.process import find_program
from tests.servers.uploads import upload_tree

REF = parse_ref("s3://private/llama/")


@pytest.fixture
def private(minio: Minio, tmp_path: Path) -> Settings:
    """A private bucket, and an agent that reaches it."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_bytes(b"{}")
    upload_tree(minio, "private", "llama", tmp_path / "llama")
    base = settings(tmp_path / "store")
    s3 = S3Settings(endpoint=minio.url, region=minio.region, style="path")
    return replace(base, s3=s3, access=AccessSettings(mode=AccessMode.POD))


def secret(minio: Minio, **other: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": minio.access_key,
        "AWS_SECRET_ACCESS_KEY": minio.secret_key,
        **other,
    }


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Refs that an origin was asked about."""
    found: list[str] = []
    run = access._run

    def noting(ref: Ref, *rest: object) -> object:
        found.append(str(ref))
        return run(ref, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(access, "_run", noting)
    return found


def test_a_good_secret_opens_and_is_believed_for_a_while(
    private: Settings, minio: Minio, asked: list[str]
):
    checking = Access(private)
    for _ in range(3):
        checking.check(REF, secret(minio))
    assert asked == [str(REF)]
    checking = Access(replace(private, access=replace(private.access, keep_s=0.0)))
    for _ in range(2):
        checking.check(REF, secret(minio))
    assert len(asked) == 3


def test_a_bad_secret_does_not_although_the_node_may_read(
    private: Settings, minio: Minio, asked: list[str]
):
    """The credentials of the test's own environment are good ones, as a node's are."""
    checking = Access(private)
    for _ in range(2):
        with pytest.raises(Forbidden, match=r"secret may not read s3://private/llama") as caught:
            checking.check(REF, secret(minio, AWS_SECRET_ACCESS_KEY="wrong" * 8))
        assert "wrong" not in str(caught.value)
    assert len(asked) == 1
    with pytest.raises(Forbidden):
        checking.check(REF, {"HF_TOKEN": "hf_xyz"})  # says nothing to this origin
    checking.check(REF, secret(minio))


def test_without_a_secret_the_policy_decides(private: Settings, asked: list[str]):
    with pytest.raises(Forbidden, match=r"nodePublishSecretRef"):
        Access(private).check(REF, {})
    Access(replace(private, access=AccessSettings())).check(REF, {})
    shared = replace(private.access, shared=("s3://private/*",))
    Access(replace(private, access=shared)).check(REF, {})
    assert asked == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"password": "x"}, "'password' that means nothing"),
        ({"LD_PRELOAD": "/x.so"}, "means nothing"),
        ({"HF_TOKEN": "a\0b"}, "no usable value"),
        ({"HF_TOKEN": "a" * 100_000}, "no usable value"),
    ],
)
def test_keys_that_mean_nothing_are_told(private: Settings, given: dict[str, str], words: str):
    with pytest.raises(UsageError, match=words):
        Access(private).check(REF, given)


def test_an_origin_that_is_away_has_not_said_no(private: Settings, minio: Minio):
    away = replace(private, s3=replace(private.s3, endpoint="http://127.0.0.1:1"))
    with pytest.raises(SourceUnavailable):
        Access(away).check(REF, secret(minio))


def test_a_pull_secret_of_a_registry_is_used_as_it_is(tmp_path: Path):
    with DockerRegistry(passwords=True) as registry:
        config = tmp_path / "docker"
        config.mkdir()
        token = b64encode(f"{registry.username}:{registry.password}".encode()).decode()
        good = json.dumps({"auths": {registry.name: {"auth": token}}})
        (config / "config.json").write_text(good)
        (tmp_path / "weights.bin").write_bytes(b"w" * 100)
        subprocess.run(
            [
                find_program("oras", "run `python -m tests.tools`"),
                "push",
                "--plain-http",
                f"--registry-config={config}/config.json",
                f"{registry.name}/m:1",
                "weights.bin",
            ],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        base = settings(tmp_path / "store")
        chosen = replace(base, oci=OciSettings(plain_http=(registry.name,)))
        ref = parse_ref(f"oci://{registry.name}/m:1")
        Access(chosen).check(ref, {".dockerconfigjson": good})
        wrong = b64encode(b"puller:no").decode()
        bad = json.dumps({"auths": {registry.name: {"auth": wrong}}})
        with pytest.raises(Forbidden, match="may not read"):
            Access(chosen).check(ref, {".dockerconfigjson": bad})


def test_listing_is_not_reading(web: tuple[Nginx, Path], tmp_path: Path):
    """A folder that can be listed, and whose file is told of, but not given."""
    server, root = web
    (root / "m").mkdir()
    (root / "m/config.json").write_bytes(b"{}")

    def refuse(request: Request) -> Fault | None:
        reads = request.method == "GET" and request.path.endswith(".json")
        return Fault(status=403) if reads else None

    chosen = settings(tmp_path / "store")
    with FaultProxy(server.url, refuse) as proxy:
        ref = parse_ref(f"{proxy.url}/m/")
        with pytest.raises(Forbidden):
            Access(chosen).check(ref, {"http-headers": "X-Who: me"})
        proxy.plan = never
        Access(chosen).check(ref, {"http-headers": "X-Who: me"})


@pytest.mark.kernel
@needs_root
def test_what_the_node_may_not_read_comes_with_the_volumes_secret(
    private: Settings, minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with targets(tmp_path / "pods") as pods:
        base = node_settings(
            tmp_path / "store",
            node="n",
            socket=tmp_path / "a.sock",
            listen="",
            volume_roots=(str(pods),),
        )
        chosen = replace(private, agent=base.agent)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        with running_driver(chosen, tmp_path / "csi.sock") as driver:
            good, bad = secret(minio), secret(minio, AWS_SECRET_ACCESS_KEY="wrong" * 8)

            def publish(target: str, secrets: dict[str, str]) -> None:
                driver.ask(
                    "NodePublishVolume",
                    volume_id=target,
                    target_path=str(pods / target),
                    volume_capability=mount_capability(),
                    volume_context={"model": str(REF)},
                    secrets=secrets,
                )

            publish("a", good)
            assert (pods / "a/config.json").read_bytes() == b"{}"
            publish("b", good)
            assert (pods / "b/config.json").read_bytes() == b"{}"
            for secrets in (bad, {}):
                with pytest.raises(grpc.RpcError) as caught:
                    publish("c", secrets)
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert not (pods / "c").exists()
            for target in ("a", "b"):
                driver.ask.unpublish(pods / target, volume_id=target)
            assert driver.agent.daemon.node.statuses() == []
