"""Credentials for `gs://`: where they are found, when they are renewed, and who never sees them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import google.auth.compute_engine._metadata as metadata
import pytest

from modelcache.agent import Engine
from modelcache.config import GcsSettings
from modelcache.errors import Forbidden, InvalidConfig, NoCredentials, SourceUnavailable
from modelcache.sources.gcs import tokens
from tests.agent.support import CHUNK_BYTES, random_bytes
from tests.sources.fetching import ask, read
from tests.sources.gcs_buckets import (
    gs,
    only_file,
    open_gcs,
    pull_tree,
    resolve,
    service_account,
    settings_with,
    workload_identity,
)
from tests.sources.scripted import Asked, Reply
from tests.sources.scripted_gcs import BUCKET, SECRET, ScriptedGcs, Stored

CONTENT = random_bytes(6 * CHUNK_BYTES + 1, 3)
FILES = {"weights": CONTENT, "config.json": b"{}"}
KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGcs]:
    """A private bucket with a model below m/; no credentials anywhere yet."""
    monkeypatch.setattr(metadata, "_NO_GCE_CHECK", True)  # read when it is imported
    with ScriptedGcs() as running:
        running.closed = True
        running.objects = {f"m/{name}": Stored(content) for name, content in FILES.items()}
        yield running


@pytest.fixture
def gcs(server: ScriptedGcs) -> GcsSettings:
    """Settings that name the server, so that it may see tokens."""
    return GcsSettings(endpoint=server.endpoint)


@pytest.fixture
def key(server: ScriptedGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service account's key, named by the usual variable."""
    path = service_account(tmp_path / "key.json", server.url("/token"))
    monkeypatch.setenv(KEY_FILE, str(path))
    return path


@pytest.mark.usefixtures("key")
def test_a_service_account_reads_with_its_token(server, gcs, tmp_path):
    assert pull_tree(gs(BUCKET, "m"), tmp_path / "store", gcs=gcs) == FILES
    assert server.issued == 1
    assert "jwt-bearer" in server.grants[0]
    sent = {asked.headers["authorization"] for asked in server.asked if "/b/" in asked.path}
    assert sent == {f"Bearer {SECRET}1"}


def test_gclouds_own_file_is_found(server, gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    service_account(tmp_path / "application_default_credentials.json", server.url("/token"))
    assert len(resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint).files) == 2


def test_workload_identity_exchanges_its_own_token(server, gcs, monkeypatch, tmp_path):
    subject = tmp_path / "subject"
    subject.write_text("kubernetes-token")
    path = workload_identity(tmp_path / "identity.json", server.url("/sts"), subject)
    monkeypatch.setenv(KEY_FILE, str(path))
    assert pull_tree(gs(BUCKET, "m"), tmp_path / "store", gcs=gcs) == FILES
    (grant,) = server.grants  # and no service was asked for a project's name
    assert grant.startswith("/sts")
    assert "subject_token=kubernetes-token" in grant


def test_a_machine_of_googles_has_a_token(server, gcs, monkeypatch):
    host = f"127.0.0.1:{server.port}"
    monkeypatch.setattr(metadata, "_NO_GCE_CHECK", False)
    monkeypatch.setattr(metadata, "_GCE_METADATA_HOST", host)
    monkeypatch.setenv("GCE_METADATA_IP", host)
    assert len(resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint).files) == 2
    assert server.grants


def test_a_public_bucket_needs_no_credentials(server, gcs, tmp_path):
    server.closed = False
    assert pull_tree(gs(BUCKET, "m"), tmp_path, gcs=gcs) == FILES
    assert not [asked for asked in server.asked if "authorization" in asked.headers]


def test_a_private_bucket_without_credentials_says_what_to_set(gcs):
    with pytest.raises(NoCredentials, match=f"no credentials were found: set {KEY_FILE}"):
        resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint)


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("by", ["ref", "settings"])
def test_no_credentials_are_sent_where_that_was_asked_for(server, gcs, by):
    ref = gs(BUCKET, "m", **({"anonymous": "1"} if by == "ref" else {}))
    with pytest.raises(NoCredentials, match="asked for anonymously"):
        resolve(ref, endpoint=gcs.endpoint, anonymous=by == "settings")
    assert not server.grants


@pytest.mark.usefixtures("key")
def test_an_endpoint_that_only_a_ref_names_sees_no_token(server):
    with pytest.raises(NoCredentials, match=r"only the ref names; set gcs\.endpoint"):
        resolve(gs(BUCKET, "m", endpoint=server.endpoint))
    assert not server.grants
    assert not [asked for asked in server.asked if "authorization" in asked.headers]


@pytest.mark.usefixtures("key")
def test_a_ref_may_name_the_endpoint_that_is_configured(server):
    ref = gs(BUCKET, "m", endpoint=server.endpoint)
    assert len(resolve(ref, endpoint=server.endpoint).files) == 2


@pytest.mark.usefixtures("key")
def test_a_token_does_not_follow_a_redirect(server, gcs):
    with ScriptedGcs() as other:
        server.answer = lambda _: Reply(307, {"Location": other.url("/storage/v1/b/bkt/o")})
        with pytest.raises(Exception, match="redirects"):
            resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint)
        assert not other.asked


@pytest.mark.usefixtures("key")
def test_a_password_of_netrc_does_not_take_the_tokens_place(gcs, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert len(resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint).files) == 2


def test_a_password_of_netrc_is_not_sent_where_there_is_no_token(server, monkeypatch, tmp_path):
    server.closed = False
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert len(resolve(gs(BUCKET, "m", endpoint=server.endpoint)).files) == 2
    assert not [asked for asked in server.asked if "authorization" in asked.headers]


# Renewal


def ended_after(server: ScriptedGcs, reads: int) -> Callable[[Asked], Reply | None]:
    """End all tokens once so many pieces of content were read."""
    done = []

    def answer(_: Asked) -> Reply | None:
        if len(server.reads()) > reads and not done:
            done.append(server.end_tokens())
        return None

    return answer


@pytest.mark.usefixtures("key")
def test_a_token_that_ends_in_mid_pull_is_renewed_once(server, gcs, tmp_path):
    server.answer = ended_after(server, 2)
    assert pull_tree(gs(BUCKET, "m"), tmp_path / "store", gcs=gcs) == FILES
    assert server.issued == 2


@pytest.mark.usefixtures("key")
def test_a_token_that_ends_while_resolving_is_renewed(server, gcs):
    source = open_gcs(gs(BUCKET, "m"), endpoint=gcs.endpoint)
    source.resolve(gs(BUCKET, "m"))
    server.end_tokens()
    assert len(source.resolve(gs(BUCKET, "m")).files) == 2


@pytest.mark.usefixtures("key")
def test_a_token_that_nobody_accepts_ends_the_pull(server, gcs, tmp_path):
    server.ended = {f"{SECRET}{number}" for number in range(100)}
    with pytest.raises(Forbidden, match="does not accept the access token"):
        pull_tree(gs(BUCKET, "m"), tmp_path, gcs=gcs)


@pytest.mark.usefixtures("key")
def test_a_target_is_good_for_no_longer_than_its_token(server, gcs):
    server.lifetime_s = 900
    source, file = only_file(gs(BUCKET, "m/config.json"), endpoint=gcs.endpoint)
    target = source.locate(file)
    assert 0 < target.good_for_s <= 900
    assert ask(target).body == b"{}"


@pytest.mark.usefixtures("key")
def test_a_token_near_its_end_is_renewed_before_it(server, gcs, monkeypatch):
    monkeypatch.setattr(tokens, "PAUSE_S", 0.0)
    server.lifetime_s = int(tokens.RENEW_BEFORE_S) - 1
    source, file = only_file(gs(BUCKET, "m/config.json"), endpoint=gcs.endpoint)
    before = server.issued
    source.locate(file)
    assert server.issued == before + 1


@pytest.mark.usefixtures("key")
def test_a_token_that_is_always_near_its_end_is_not_renewed_for_each_file(server, gcs):
    server.lifetime_s = int(tokens.RENEW_BEFORE_S) - 1
    source, file = only_file(gs(BUCKET, "m/config.json"), endpoint=gcs.endpoint)
    for _ in range(20):
        source.locate(file)
    assert server.issued == 1


# Credentials that do not work


@pytest.mark.parametrize("content", [None, "", "not json", "{}", '{"type": "service_account"}'])
def test_a_file_that_holds_no_credentials_is_named(gcs, monkeypatch, tmp_path, content):
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(KEY_FILE, str(path))
    with pytest.raises(InvalidConfig, match=r"GOOGLE_APPLICATION_CREDENTIALS names .*key\.json"):
        open_gcs(gs(BUCKET, "m"), endpoint=gcs.endpoint)


def test_a_broken_file_of_gclouds_is_named(gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    (tmp_path / "application_default_credentials.json").write_text("{}")
    with pytest.raises(InvalidConfig, match="gcloud auth application-default login"):
        open_gcs(gs(BUCKET, "m"), endpoint=gcs.endpoint)


@pytest.mark.usefixtures("key")
def test_a_token_service_that_says_no_is_told_by_its_code_alone(server, gcs):
    document = {"error": "invalid_grant", "error_description": "hunter2 was deleted"}
    server.token_reply = Reply(400, {}, json.dumps(document).encode())
    with pytest.raises(NoCredentials, match="invalid_grant") as caught:
        resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint)
    assert "hunter2" not in caught.value.message
    assert caught.value.__cause__ is None


def test_an_exchange_of_tokens_that_is_refused_is_told_by_its_code(
    server, gcs, monkeypatch, tmp_path
):
    subject = tmp_path / "subject"
    subject.write_text("kubernetes-token")
    path = workload_identity(tmp_path / "identity.json", server.url("/sts"), subject)
    monkeypatch.setenv(KEY_FILE, str(path))
    document = {"error": "invalid_target", "error_description": "kubernetes-token is of hunter2"}
    server.token_reply = Reply(400, {}, json.dumps(document).encode())
    with pytest.raises(NoCredentials, match="invalid_target") as caught:
        resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint)
    assert "kubernetes-token" not in caught.value.message


def test_a_projected_token_that_is_not_there_is_no_traceback(server, gcs, monkeypatch, tmp_path):
    path = workload_identity(tmp_path / "identity.json", server.url("/sts"), tmp_path / "none")
    monkeypatch.setenv(KEY_FILE, str(path))
    with pytest.raises(NoCredentials):
        resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint)


def test_a_token_service_that_is_away_may_come_back(server, gcs, monkeypatch, tmp_path):
    path = service_account(tmp_path / "key.json", "http://127.0.0.1:9/token")
    monkeypatch.setenv(KEY_FILE, str(path))
    with pytest.raises(SourceUnavailable, match="service that gives access tokens"):
        resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint)
    assert not server.asked


@pytest.mark.usefixtures("key")
def test_a_token_cannot_smuggle_a_header(server, gcs):
    document = {"access_token": "a\r\nX-Evil: 1", "expires_in": 3600, "token_type": "Bearer"}
    server.token_reply = Reply(200, {}, json.dumps(document).encode())
    with pytest.raises(NoCredentials, match="what cannot be a token"):
        resolve(gs(BUCKET, "m"), endpoint=gcs.endpoint)


@pytest.mark.usefixtures("key")
def test_no_secret_is_in_any_message_repr_or_report(server, gcs, tmp_path):
    server.answer = ended_after(server, 1)
    with Engine(settings_with(tmp_path / "store", gcs)) as engine:
        report = engine.pull(gs(BUCKET, "m")).report
    assert report.events
    source, file = only_file(gs(BUCKET, "m/config.json"), endpoint=gcs.endpoint)
    assert read(source, file).body == b"{}"
    told = [repr(report), repr(source.locate(file)), repr(source._tokens.current())]
    told.append(str(source.refusal(file, 401, {}, f"Invalid {SECRET}1".encode())))
    small = (tmp_path / "store").rglob("*.json")
    told += [path.read_text() for path in small if path.is_file()]
    assert not [text for text in told if SECRET in text]
