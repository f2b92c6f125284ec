"""The same with Google's exchange: a token service that checks the cluster's signatures."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256
from lightkube import Client

from modelcache.config import AccessMode, AccessSettings, GcsSettings
from modelcache.faces.kubernetes.accounts import Accounts
from tests.agent.nodes import node_settings
from tests.cluster.identities import Cluster, make_accounts
from tests.csi.driver import running_driver
from tests.kernel.roots import needs_root, targets
from tests.servers.control_plane import ControlPlane
from tests.sources.scripted import Asked, Reply
from tests.sources.scripted_gcs import BUCKET, SECRET, ScriptedGcs, Stored

pytestmark = [pytest.mark.cluster, pytest.mark.kernel, needs_root]
PROVIDER = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/c"
AUDIENCE = f"https:{PROVIDER}"
READER = "system:serviceaccount:team-g:reader"
ACT_AS = "/v1/projects/-/serviceAccounts/models@project.iam.gserviceaccount.com:generateAccessToken"


class Exchange(ScriptedGcs):
    """Gives access to whom it trusts, and to nobody whose token the cluster has not signed."""

    def __init__(self, keys: list[dict[str, str]]) -> None:
        super().__init__()
        self._keys = {key["kid"]: key for key in keys}
        self.closed = True
        self.objects = {"m/config.json": Stored(b"{}")}
        self.acted: list[str] = []

    def respond(self, asked: Asked, body: bytes) -> Reply:
        path = urlsplit(asked.path).path
        if path == ACT_AS:
            self.acted.append(asked.headers.get("authorization", ""))
            answer = {"accessToken": f"{SECRET}9999", "expireTime": "2100-01-01T00:00:00Z"}
            federated = self.acted[-1].startswith(f"Bearer {SECRET}")
            return Reply(200 if federated else 401, {}, json.dumps(answer).encode())
        if path == "/sts":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            try:
                claims = self._claims(form["subject_token"])
            except (InvalidSignature, KeyError, ValueError):
                claims = {}
            trusted = claims.get("sub") == READER and claims.get("aud") == [AUDIENCE]
            if not trusted or form.get("audience") != PROVIDER:
                return Reply(400, {}, b'{"error": "invalid_grant"}')
        return super().respond(asked, body)

    def _claims(self, token: str) -> dict[str, Any]:
        head, claims, signature = token.split(".")
        key = self._keys[json.loads(_decoded(head))["kid"]]
        numbers = RSAPublicNumbers(_number(key["e"]), _number(key["n"]))
        signed = f"{head}.{claims}".encode()
        numbers.public_key().verify(_decoded(signature), signed, PKCS1v15(), SHA256())
        found: dict[str, Any] = json.loads(_decoded(claims))
        return found


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(text: str) -> int:
    return int.from_bytes(_decoded(text), "big")


@pytest.fixture
def google(plane: ControlPlane) -> Iterator[Exchange]:
    with Exchange(json.loads(plane.api.ask("/openid/v1/jwks"))["keys"]) as running:
        yield running


@pytest.fixture
def cluster(client: Client, google: Exchange, tmp_path: Path) -> Iterator[Cluster]:
    make_accounts(client, "team-g")
    policy = AccessSettings(
        mode=AccessMode.POD,
        google_provider=PROVIDER,
        google_sts=google.url("/sts"),
        google_iam=google.endpoint,
    )
    with targets(tmp_path / "pods") as pods:
        base = node_settings(
            tmp_path / "store",
            node="n",
            socket=tmp_path / "a.sock",
            listen="",
            volume_roots=(str(pods),),
        )
        chosen = replace(base, gcs=GcsSettings(endpoint=google.endpoint), access=policy)
        with running_driver(chosen, tmp_path / "csi.sock") as driver:
            driver.agent.daemon.identities.annotations = Accounts(client).annotations
            yield Cluster(client, driver, pods, f"gs://{BUCKET}/m", AUDIENCE)


def test_an_account_that_google_trusts_reads_as_the_one_it_stands_for(
    cluster: Cluster, google: Exchange
):
    """The node has no credentials at all: what comes has come with the account's."""
    cluster.publish("a", "team-g/reader")
    assert (cluster.pods / "a/config.json").read_bytes() == b"{}"
    assert google.acted
    reads = {asked.headers["authorization"] for asked in google.reads()}
    assert reads == {f"Bearer {SECRET}9999"}
    cluster.driver.ask.unpublish(cluster.pods / "a", volume_id="a")


def test_one_that_google_does_not_trust_sees_nothing(cluster: Cluster):
    cluster.publish("a", "team-g/reader")
    said = cluster.refused("b", "team-g/other")
    assert "system:serviceaccount:team-g:other may not read" in said
    assert "invalid_grant" in said
    cluster.driver.ask.unpublish(cluster.pods / "a", volume_id="a")
