"""Pods' own identities: tokens of a real API server, exchanged by a real STS for real S3 rights."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightkube import Client
from lightkube.resources.core_v1 import ServiceAccount

from modelcache.agent import access
from modelcache.config import AccessMode, AccessSettings, S3Settings, Settings
from modelcache.faces.kubernetes.accounts import Accounts
from tests.agent.nodes import node_settings
from tests.cluster.identities import Cluster, make_accounts
from tests.csi.driver import running_driver
from tests.kernel.roots import needs_root, targets
from tests.servers.control_plane import ControlPlane
from tests.servers.minio import Minio
from tests.servers.nginx import Nginx
from tests.servers.process import ServerUnavailable
from tests.servers.uploads import upload_tree

pytestmark = [pytest.mark.cluster, pytest.mark.kernel, needs_root]
AUDIENCE = "sts.example.test"
REF = "s3://private/llama/"


@pytest.fixture(scope="module")
def sts(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """MinIO, which trusts the cluster's tokens, and gives each account the policy of its name."""
    root = tmp_path_factory.mktemp("issuer")
    (root / "jwks").write_text(plane.api.ask("/openid/v1/jwks"))
    try:
        with Nginx(root) as issuer:
            known = {"issuer": "https://kubernetes.default.svc", "jwks_uri": f"{issuer.url}/jwks"}
            (root / "configuration").write_text(json.dumps(known))
            more = {
                "MINIO_IDENTITY_OPENID_CONFIG_URL": f"{issuer.url}/configuration",
                "MINIO_IDENTITY_OPENID_CLIENT_ID": AUDIENCE,
                "MINIO_IDENTITY_OPENID_CLAIM_NAME": "sub",
            }
            with Minio(more=more) as server:
                (root / "llama").mkdir()
                (root / "llama/config.json").write_bytes(b"{}")
                upload_tree(server, "private", "llama", root / "llama")
                server.add_policy("system:serviceaccount:team-a:reader", READS)
                yield server
    except ServerUnavailable as error:
        pytest.skip(str(error))


READS = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:ListBucket", "s3:GetBucketLocation"],
            "Resource": ["arn:aws:s3:::private", "arn:aws:s3:::private/*"],
        }
    ],
}


@pytest.fixture
def chosen(sts: Minio, tmp_path: Path) -> Settings:
    base = node_settings(tmp_path / "store", node="n", socket=tmp_path / "a.sock", listen="")
    policy = AccessSettings(mode=AccessMode.POD, aws_audience=AUDIENCE, sts_endpoint=sts.url)
    s3 = S3Settings(endpoint=sts.url, region=sts.region, style="path")
    return replace(base, s3=s3, access=policy)


@pytest.fixture
def cluster(
    chosen: Settings, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sts: Minio
) -> Iterator[Cluster]:
    """The node may read everything, as its own credentials are MinIO's root's."""
    for name, value in sts.environment().items():
        monkeypatch.setenv(name, value)
    with targets(tmp_path / "pods") as pods:
        own = replace(chosen, agent=replace(chosen.agent, volume_roots=(str(pods),)))
        with running_driver(own, tmp_path / "csi.sock") as driver:
            driver.agent.daemon.identities.annotations = Accounts(client).annotations
            yield Cluster(client, driver, pods, REF, AUDIENCE)


@pytest.fixture(scope="module", autouse=True)
def accounts(plane: ControlPlane) -> None:
    with plane.client() as client:
        make_accounts(client, "team-a")


def test_an_account_that_may_read_has_the_model(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []
    run = subprocess.run

    def noting(command: list[str], **how: Any) -> Any:
        asked.append(command)
        return run(command, **how)

    monkeypatch.setattr(access.subprocess, "run", noting)
    cluster.publish("a", "team-a/reader")
    assert (cluster.pods / "a/config.json").read_bytes() == b"{}"
    cluster.publish("b", "team-a/reader", in_secrets=True)
    assert (cluster.pods / "b/config.json").exists()
    assert len(asked) == 1, "another pod of the account has another token, and the same right"
    for target in ("a", "b"):
        cluster.driver.ask.unpublish(cluster.pods / target, volume_id=target)


def test_one_that_may_not_has_none_though_the_model_is_there(cluster: Cluster):
    cluster.publish("a", "team-a/reader")
    said = cluster.refused("b", "team-a/other")
    assert "system:serviceaccount:team-a:other may not read s3://private/llama/" in said
    said = cluster.refused("c", "team-a/nobody")
    assert "has no role at a cloud" in said
    cluster.driver.ask.unpublish(cluster.pods / "a", volume_id="a")


def test_what_only_the_account_may_read_is_fetched_as_the_account(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    cluster.publish("a", "team-a/reader")
    assert (cluster.pods / "a/config.json").read_bytes() == b"{}"
    cluster.refused("b", "team-a/other")
    cluster.driver.ask.unpublish(cluster.pods / "a", volume_id="a")


def test_a_token_for_somebody_else_opens_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    """A token that a pod got for another audience, as if it were the one for the STS."""
    asked = ServiceAccount.Token.from_dict({"metadata": {}, "spec": {"audiences": ["vault"]}})
    found: Any = cluster.client.create(asked, "reader", namespace="team-a")
    create = cluster.client.create
    monkeypatch.setattr(
        cluster.client,
        "create",
        lambda made, *rest, **more: (
            found if isinstance(made, ServiceAccount.Token) else create(made, *rest, **more)
        ),
    )
    assert "may not read" in cluster.refused("a", "team-a/reader")
