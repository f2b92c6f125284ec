"""GCS's refusals: which are waited out, which end a pull, and what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from modelcache.errors import (
    CredentialsExpired,
    Forbidden,
    InvalidConfig,
    InvalidRef,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
    UnsafePath,
)
from modelcache.sources.gcs import bucket as requests_of
from tests.servers.certificates import Certificates
from tests.sources.fetching import read
from tests.sources.gcs_buckets import gs, only_file, open_gcs, pull_tree, resolve
from tests.sources.scripted import Asked, Reply, ScriptedServer
from tests.sources.scripted_gcs import BUCKET, OBJECTS, ScriptedGcs, Stored, refused

PAYS = "Bucket is a requester pays bucket but no user project provided."


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_of, "PATIENCE_S", 1.0)


@pytest.fixture
def server() -> Iterator[ScriptedGcs]:
    with ScriptedGcs() as running:
        running.objects = {"m/a": Stored(b"content"), "m/b": Stored(b"more")}
        yield running


def ref_to(server: ScriptedServer, path: str = "m", **options: str):
    return gs(BUCKET, path, endpoint=server.url("").rstrip("/"), **options)


# While resolving


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (refused(403, "forbidden"), Forbidden, "access denied"),
        (refused(403, "insufficientPermissions"), Forbidden, "scope"),
        (refused(403, "vpc", "Request is prohibited by VPC Service Controls"), Forbidden, "VPC"),
        (refused(400, "required", PAYS), Forbidden, r"readers to pay.*\?user-project=NAME"),
        (refused(403, "userProjectMissing", PAYS), Forbidden, r"\?user-project=NAME"),
        (
            refused(404, "notFound", "The specified bucket does not exist."),
            NotFound,
            "no such buck",
        ),
        (refused(400, "invalid"), SourceRefused, r"\(invalid\).*400"),
        (refused(429, "rateLimitExceeded"), Throttled, "rateLimitExceeded"),
        (refused(403, "userRateLimitExceeded"), Throttled, "userRateLimitExceeded"),
        (refused(503, "backendError"), Throttled, "backendError|503"),
        (refused(500, "backendError"), SourceUnavailable, "500"),
        (Reply(302, {"Location": "https://example.com"}), SourceRefused, "redirects"),
        (Reply(200, {}, b"<html>a console</html>"), SourceRefused, "does not speak GCS"),
        (Reply(200, {}, b"[1, 2]"), SourceRefused, "does not speak GCS"),
        (Reply(200, {}, b'{"items": [{"name": "m/x"}]}'), SourceRefused, "does not speak GCS"),
        (Reply(200, {}, b'{"items": [{"name": 1, "size": "x"}]}'), SourceRefused, "not speak GCS"),
    ],
    ids=lambda value: (
        f"{value.status} {value.body.decode(errors='replace')[-60:]!a}"
        if isinstance(value, Reply)
        else ""
    ),
)
def test_a_refused_listing_is_one_clear_line(server, reply, error, message):
    server.answer = lambda asked: reply if asked.path.split("?")[0] == OBJECTS else None
    with pytest.raises(error, match=message) as caught:
        resolve(ref_to(server))
    assert f"gs://{BUCKET}/m" in caught.value.message
    assert "\n" not in caught.value.message
    assert "projection" not in caught.value.message


def test_what_passes_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(requests_of, "PATIENCE_S", 30.0)
    replies = [refused(503, "backendError"), refused(429, "rateLimitExceeded"), Reply(502)]
    server.answer = lambda asked: (
        replies.pop() if replies and asked.path.split("?")[0] == OBJECTS else None
    )
    assert len(resolve(ref_to(server)).files) == 2
    assert not replies


def test_a_bucket_that_is_not_there_is_named(server):
    ref = gs("another-bucket", "m/a", endpoint=server.endpoint)
    with pytest.raises(NotFound, match=r"gs://another-bucket/m/a.*no such bucket"):
        resolve(ref)


@pytest.mark.parametrize("path", ["absent", "absent/"])
def test_an_object_that_is_not_there_is_named(server, path):
    with pytest.raises(NotFound, match=f"gs://{BUCKET}/absent"):
        resolve(ref_to(server, path))


def test_an_object_may_be_read_by_who_may_not_list(server):
    server.answer = lambda asked: (
        refused(403, "forbidden") if asked.path.split("?")[0] == OBJECTS else None
    )
    assert [file.path for file in resolve(ref_to(server, "m/a")).files] == ["a"]


def test_a_listing_that_runs_in_circles_is_left(server):
    listing = {"items": [Stored(b"x").metadata("m/x")], "nextPageToken": "again"}
    server.answer = lambda asked: (
        Reply(200, {}, json.dumps(listing).encode()) if "prefix" in asked.path else None
    )
    with pytest.raises(SourceUnavailable, match="does not get on"):
        resolve(ref_to(server))


def test_empty_pages_are_read_over(server):
    page = {"nextPageToken": "0"}
    server.answer = lambda asked: (
        Reply(200, {}, json.dumps(page).encode())
        if "prefix" in asked.path and "pageToken" not in asked.path
        else None
    )
    assert len(resolve(ref_to(server)).files) == 2


def test_a_listing_without_end_is_not_read(server, monkeypatch):
    monkeypatch.setattr(requests_of, "DOCUMENT_BYTES_MAX", 100)
    with pytest.raises(SourceRefused, match="cannot be used"):
        resolve(ref_to(server))


@pytest.mark.parametrize("name", ["m/../../etc/passwd", "m//a", "m/a\nb", "m/./a", "m/\ud800"])
def test_a_name_that_would_leave_the_model_is_refused(server, name):
    server.objects[name] = Stored(b"x")
    with pytest.raises(UnsafePath):
        resolve(ref_to(server))


def test_a_host_that_is_not_there_is_said_at_once(monkeypatch):
    monkeypatch.setattr(requests_of, "PATIENCE_S", 600.0)  # longer than a test may take
    with pytest.raises(NotFound, match=f"gs://{BUCKET}/m/: there is no such host"):
        resolve(gs(BUCKET, "m/", endpoint="http://gcs.invalid"))


def test_a_server_that_is_down_is_unavailable():
    with pytest.raises(SourceUnavailable, match="cannot connect to the endpoint"):
        resolve(gs(BUCKET, "m/", endpoint="http://127.0.0.1:9"))


def test_a_certificate_nobody_trusts_is_said_with_the_setting(certificates: Certificates, tmp_path):
    with _tls(certificates, tmp_path) as server:
        ref = ref_to(server, "m/")
        with pytest.raises(SourceRefused, match=r"not trusted.*set gcs\.ca_file"):
            resolve(ref)


@pytest.mark.parametrize("competing", [False, True])
def test_the_configured_authority_is_trusted(
    certificates: Certificates, tmp_path, monkeypatch, competing
):
    if competing:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
    with _tls(certificates, tmp_path) as server:
        server.answers[OBJECTS] = lambda _: Reply(
            200, {}, json.dumps({"items": [Stored(b"x").metadata("m/x")]}).encode()
        )
        ca_file = str(certificates.ca_file)
        source = open_gcs(ref_to(server, "m/"), ca_file=ca_file)
        (file,) = source.resolve(ref_to(server, "m/")).files
        assert source.locate(file).ca_file == ca_file


def _tls(certificates: Certificates, folder) -> ScriptedServer:
    both = folder / "both.pem"
    both.write_bytes(certificates.cert_file.read_bytes() + certificates.key_file.read_bytes())
    return ScriptedServer(both)


@pytest.mark.parametrize(
    "endpoint", ["ftp://host", "http://", "http://user:hunter2@host", "http://h/?x=1", "nothing"]
)
def test_an_endpoint_that_is_none_is_said(endpoint):
    with pytest.raises(InvalidRef, match="GCS endpoint must be a URL") as caught:
        open_gcs(gs(BUCKET, "m", endpoint=endpoint))
    with pytest.raises(InvalidConfig, match="GCS endpoint must be a URL"):
        open_gcs(gs(BUCKET, "m"), endpoint=endpoint)
    assert "hunter2" not in caught.value.message


# Requester pays


def payer_wanted(asked: Asked) -> Reply | None:
    """A bucket whose readers pay."""
    return None if "userProject=billed" in asked.path else refused(400, "required", PAYS)


@pytest.mark.parametrize("by", ["ref", "settings"])
def test_the_project_to_bill_goes_with_every_request(server, tmp_path, by):
    server.answer = payer_wanted
    if by == "ref":
        tree = pull_tree(ref_to(server, user_project="billed"), tmp_path)
        assert tree == {"a": b"content", "b": b"more"}
        assert len(server.reads()) == 2
    else:
        assert len(resolve(ref_to(server), user_project="billed").files) == 2


def test_a_bucket_that_begins_to_want_a_payer_says_so(server):
    source, file = only_file(ref_to(server, "m/a"))
    server.answer = payer_wanted
    with pytest.raises(Forbidden, match="user-project"):
        read(source, file)


# On a data connection


@pytest.fixture
def located(server):
    return only_file(ref_to(server, "m/a"))


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (refused(403, "forbidden"), Forbidden, "access denied"),
        (refused(401, "required"), SourceRefused, "is not public"),
        (refused(412, "conditionNotMet"), OriginChanged, "pull again"),
        (Reply(304), OriginChanged, "pull again"),
        (Reply(416), OriginChanged, "pull again"),
        (Reply(302, {"Location": "http://elsewhere/?sig=hunter2"}), SourceRefused, "redirects"),
        (refused(429, "rateLimitExceeded", Retry_After="7"), Throttled, "fewer requests"),
        (refused(403, "quotaExceeded", Retry_After="7"), Throttled, "fewer requests"),
        (refused(503, "backendError", Retry_After="7"), Throttled, "fewer requests"),
        (Reply(504), SourceUnavailable, "504"),
        (Reply(403, {}, b"\xff\xfe{"), Forbidden, "403"),
        (Reply(403, {}, b'{"error": {"message": 1, "errors": 3}}'), Forbidden, "403"),
        (
            Reply(403, {}, b'{"error": {"message": "x", "errors": [{"reason": "\\n"}]}}'),
            Forbidden,
            r"\(403\)",
        ),
    ],
    ids=lambda value: (
        f"{value.status} {value.body.decode(errors='replace')[-60:]!a}"
        if isinstance(value, Reply)
        else ""
    ),
)
def test_a_refused_read_is_one_clear_line(server, located, reply, error, message):
    server.answer = lambda _: reply
    with pytest.raises(error, match=message) as caught:
        read(*located)
    assert f"gs://{BUCKET}/m/a" in caught.value.message
    assert "hunter2" not in caught.value.message
    assert "\n" not in caught.value.message
    if isinstance(caught.value, Throttled):
        assert caught.value.retry_after_s == 7


def test_a_token_that_was_sent_and_refused_has_expired(located):
    source, file = located
    source._tokens.advice = ""  # as it is where credentials were found
    error = source.refusal(file, 401, {}, b"")
    assert isinstance(error, CredentialsExpired)


def test_another_generation_is_never_believed(server, located):
    server.answer = lambda _: Reply(200, {"X-Goog-Generation": "2"}, b"CONTENT")
    with pytest.raises(OriginChanged, match="was replaced since it was listed"):
        read(*located)


def test_a_server_that_tells_no_generation_is_not_believed(server, located):
    server.answer = lambda _: Reply(200, {"ETag": '"x"'}, b"content")
    with pytest.raises(OriginChanged, match="does not tell which generation"):
        read(*located)


def test_a_replaced_and_a_removed_object_are_told_apart(server, located):
    server.objects["m/a"] = replace(server.objects["m/a"], generation=2)
    with pytest.raises(OriginChanged, match="was replaced"):
        read(*located)
    del server.objects["m/a"]
    with pytest.raises(OriginChanged, match="was removed"):
        read(*located)


def test_a_missing_object_that_is_there_after_all_is_not_called_changed(located):
    source, file = located
    assert isinstance(source.refusal(file, 404, {}, b"<html>a proxy</html>"), NotFound)


def test_trouble_while_asking_what_became_of_an_object_is_no_other_error(server, located):
    server.answer = lambda asked: refused(404 if "alt=media" in asked.path else 403, "forbidden")
    with pytest.raises(NotFound):
        read(*located)
