"""What a manifest says of files behind http, and where they are read, against a scripted server."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator

import pytest

from modelcache.config import HttpSettings, TransferSettings
from modelcache.domain.manifests import Algorithm, Manifest, Pin
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    CredentialsExpired,
    Forbidden,
    InvalidRef,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
    UnsafePath,
)
from modelcache.sources.http import HttpSource
from modelcache.sources.http import source as http_source
from modelcache.sources.web import asking, redirects
from tests.sources.scripted import Asked, Reply, ScriptedServer, StaticFile, redirect

DATE = "Mon, 02 Jan 2023 10:00:00 GMT"
LARGE = bytes(3 << 20)  # beyond what is read in one piece


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent/netrc")
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


def source_for(url: str, *headers: str) -> HttpSource:
    return HttpSource(parse_ref(url).origin(), HttpSettings(headers=headers), TransferSettings())


def resolve(url: str, *headers: str) -> Manifest:
    return source_for(url, *headers).resolve(parse_ref(url))


# One file


def test_a_file_is_pinned_by_its_etag_and_named_by_its_url(server):
    server.answers["/a/model%20x.bin"] = StaticFile(LARGE, {"ETag": '"v1"', "Last-Modified": DATE})
    (file,) = resolve(server.url("/a/model%20x.bin")).files
    assert file.path == "model x.bin"
    assert file.key == server.url("/a/model%20x.bin")
    assert file.size_bytes == len(LARGE)
    assert file.pin == Pin(etag='"v1"')
    assert file.ranges
    assert [asked.method for asked in server.asked] == ["HEAD"]


def test_resolving_twice_gives_one_model(server):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'})
    assert resolve(server.url("/x")) == resolve(server.url("/x"))


def test_a_changed_file_is_another_model(server):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'})
    before = resolve(server.url("/x"))
    server.answers["/x"] = StaticFile(b"abd", {"ETag": '"v2"'})
    assert resolve(server.url("/x")).model_id != before.model_id


def test_ranges_that_are_not_announced_are_tried_with_one_byte(server):
    server.answers["/x"] = StaticFile(LARGE, {"ETag": '"v1"'}, announces_ranges=False)
    (file,) = resolve(server.url("/x")).files
    assert file.ranges
    assert server.asked[-1].headers["range"] == "bytes=0-0"


@pytest.mark.parametrize("announces", [True, False])
def test_a_server_without_ranges_is_read_in_one_stream(server, announces):
    server.answers["/x"] = StaticFile(
        LARGE, {"ETag": '"v1"'}, ranges=False, announces_ranges=announces
    )
    (file,) = resolve(server.url("/x")).files
    assert not file.ranges
    assert file.size_bytes == len(LARGE)


def test_small_files_are_not_probed_for_ranges(server):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'}, announces_ranges=False)
    resolve(server.url("/x"))
    assert [asked.method for asked in server.asked] == ["HEAD"]


def test_without_a_validator_the_file_is_read_in_one_stream(server):
    server.answers["/x"] = StaticFile(LARGE)
    (file,) = resolve(server.url("/x")).files
    assert file.pin.nonce
    assert not file.ranges


@pytest.mark.parametrize("status", [403, 405, 501])
def test_where_head_is_refused_one_byte_tells_the_same(server, status):
    content = StaticFile(LARGE, {"ETag": '"v1"'})

    def only_get(asked: Asked) -> Reply:
        return Reply(status) if asked.method == "HEAD" else content(asked)

    server.answers["/x"] = only_get
    (file,) = resolve(server.url("/x")).files
    assert (file.size_bytes, file.ranges, file.pin) == (len(LARGE), True, Pin(etag='"v1"'))


def test_a_head_that_lies_about_an_empty_body_is_not_believed(server):
    content = StaticFile(LARGE, {"ETag": '"v1"'})
    server.answers["/x"] = lambda asked: (
        Reply(200, {"ETag": '"v1"'}) if asked.method == "HEAD" else content(asked)
    )
    assert resolve(server.url("/x")).size_bytes == len(LARGE)


def test_an_empty_file_is_a_file(server):
    server.answers["/x"] = StaticFile(b"", {"ETag": '"v1"'})
    assert resolve(server.url("/x")).size_bytes == 0


def test_a_file_of_unknown_length_is_refused_with_the_reason(server):
    server.answers["/x"] = lambda _: Reply(200, {"ETag": '"v1"'}, b"abc", length=None)
    with pytest.raises(SourceRefused, match="neither Content-Length nor"):
        resolve(server.url("/x"))


def test_a_compressed_file_is_refused(server):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"', "Content-Encoding": "gzip"})
    with pytest.raises(SourceRefused, match="compressed"):
        resolve(server.url("/x"))
    assert server.asked[0].headers["accept-encoding"] == "identity"


def test_a_published_sha256_names_the_blob(server):
    digest = hashlib.sha256(b"abc").digest()
    spelled = base64.b64encode(digest).decode()
    server.answers["/x"] = StaticFile(
        b"abc", {"ETag": '"1"', "Repr-Digest": f"sha-256=:{spelled}:"}
    )
    (file,) = resolve(server.url("/x")).files
    assert file.blob == f"sha256-{digest.hex()}"
    assert file.checksums[0].algorithm is Algorithm.SHA256


def test_a_name_that_leads_elsewhere_is_refused(server):
    for path in ("/..", "/a%2Fb", "/%2e%2e", "/%ff", "/a%00"):
        with pytest.raises(UnsafePath):
            resolve(server.url(path))
    assert not server.asked


def test_a_filter_that_leaves_nothing_is_an_error(server):
    server.answers["/x.bin"] = StaticFile(b"abc")
    with pytest.raises(NotFound, match="filter"):
        resolve(server.url("/x.bin#include=*.json"))
    server.answers["/"] = lambda _: Reply(200, body=b"[]")
    with pytest.raises(NotFound, match="filter"):
        resolve(server.url("/"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, NoCredentials),
        (403, Forbidden),
        (404, NotFound),
        (410, NotFound),
        (418, SourceRefused),
    ],
)
def test_refusals_are_translated_and_never_show_the_query(server, status, kind):
    server.answers["/x"] = lambda _: Reply(status)
    with pytest.raises(kind) as caught:
        resolve(server.url("/x?token=hunter2"))
    assert server.url("/x") in caught.value.message
    assert "hunter2" not in caught.value.message


def test_a_passing_failure_is_repeated(server):
    content = StaticFile(b"abc", {"ETag": '"v1"'})
    failures = [503, 500, 429]
    server.answers["/x"] = lambda asked: Reply(failures.pop()) if failures else content(asked)
    assert resolve(server.url("/x")).size_bytes == 3


def test_a_lasting_failure_is_given_up_with_its_retry_after(server):
    server.answers["/x"] = lambda _: Reply(503, {"Retry-After": "120"})
    with pytest.raises(Throttled) as caught:
        resolve(server.url("/x"))
    assert caught.value.retry_after_s == 120.0
    assert len(server.asked) == 1  # nobody sits through two minutes unasked


def test_a_connection_that_breaks_is_repeated(server):
    content = StaticFile(b"abc", {"ETag": '"v1"'})
    breaks = [1, 1]

    def answer(asked: Asked) -> Reply:
        if breaks:
            breaks.pop()
            raise ConnectionAbortedError  # the handler ends and the connection with it
        return content(asked)

    server.answers["/x"] = answer
    assert resolve(server.url("/x")).size_bytes == 3


def test_nobody_listening_is_unavailable():
    with ScriptedServer() as gone:
        url = gone.url("/x")
    with pytest.raises(SourceUnavailable, match="refused"):
        resolve(url)


def test_a_host_without_address_is_not_found():
    with pytest.raises(NotFound, match="no such host"):
        resolve("http://no-such-host.invalid/x")


@pytest.mark.parametrize("host", ["a" * 70, "a..b"])
def test_a_host_that_is_no_name_is_an_invalid_ref(host):
    with pytest.raises(InvalidRef):
        source_for(f"http://{host}/x")


# Redirects


def test_redirects_are_followed_but_the_key_stays(server):
    server.answers["/old"] = redirect("/new?signature=s", 301)
    server.answers["/new"] = StaticFile(LARGE, {"ETag": '"v1"'})
    source = source_for(server.url("/old"))
    (file,) = source.resolve(parse_ref(server.url("/old"))).files
    assert file.key == server.url("/old")
    assert file.path == "old"
    assert source.locate(file).path == "/new?signature=s"
    assert "signature" not in repr(source.locate(file))


def test_a_fresh_location_follows_the_redirect_again(server):
    server.answers["/x"] = redirect("/first")
    server.answers["/first"] = StaticFile(b"abc", {"ETag": '"v1"'})
    source = source_for(server.url("/x"))
    (file,) = source.resolve(parse_ref(server.url("/x"))).files
    server.answers["/x"] = redirect("/second")
    server.answers["/second"] = StaticFile(b"abc", {"ETag": '"v1"'})
    assert source.locate(file).path == "/first"
    assert isinstance(source.refusal(file, 403, {}, b""), CredentialsExpired)
    assert source.locate(file, fresh=True).path == "/second"
    assert source.locate(file).path == "/second"


def test_an_old_redirect_is_followed_again_unasked(server, monkeypatch):
    monkeypatch.setattr(redirects, "MOVED_GOOD_FOR_S", 0.0)
    server.answers["/x"] = redirect("/first")
    server.answers["/first"] = server.answers["/second"] = StaticFile(b"abc", {"ETag": '"v1"'})
    source = source_for(server.url("/x"))
    (file,) = source.resolve(parse_ref(server.url("/x"))).files
    server.answers["/x"] = redirect("/second")
    assert source.locate(file).path == "/second"


def test_a_redirect_to_another_state_is_a_change(server):
    server.answers["/x"] = redirect("/first")
    server.answers["/first"] = StaticFile(b"abc", {"ETag": '"v1"'})
    server.answers["/second"] = StaticFile(b"abd", {"ETag": '"v2"'})
    source = source_for(server.url("/x"))
    (file,) = source.resolve(parse_ref(server.url("/x"))).files
    server.answers["/x"] = redirect("/second")
    with pytest.raises(OriginChanged, match="pull again"):
        source.locate(file, fresh=True)


def test_a_redirect_nobody_knew_of_is_followed_when_it_is_met(server):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'})
    (file,) = resolve(server.url("/x")).files
    later = source_for(server.url("/x"))  # another process, with the stored manifest
    server.answers["/x"] = redirect("/y")
    server.answers["/y"] = StaticFile(b"abc", {"ETag": '"v1"'})
    assert later.locate(file).path == "/x"
    error = later.refusal(file, 302, {"location": "/y"}, b"")
    assert isinstance(error, CredentialsExpired)
    assert later.locate(file).path == "/y"


def test_a_redirect_of_raw_utf8_is_encoded(server):
    server.answers["/x"] = redirect("/modèle".encode().decode("latin-1"))
    server.answers["/mod%C3%A8le"] = StaticFile(b"abc", {"ETag": '"v1"'})
    source = source_for(server.url("/x"))
    (file,) = source.resolve(parse_ref(server.url("/x"))).files
    assert source.locate(file).path == "/mod%C3%A8le"


def test_a_chain_of_redirects_has_a_bound(server):
    server.answers["/x"] = redirect("/x")
    with pytest.raises(SourceRefused, match="more than 10"):
        resolve(server.url("/x"))


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host/x", "http://u:p@host/x"])
def test_a_redirect_out_of_http_is_refused(server, location):
    server.answers["/x"] = redirect(location)
    with pytest.raises(SourceRefused, match="cannot be used"):
        resolve(server.url("/x"))


def test_a_url_that_turns_out_to_be_a_directory_says_what_to_write(server):
    server.answers["/models"] = redirect("/models/", 301)
    server.answers["/models/"] = lambda _: Reply(200, body=b"[]")
    with pytest.raises(SourceRefused, match="slash"):
        resolve(server.url("/models"))


# Indexes


def index_of(*files: dict[str, object]):
    return lambda _: Reply(200, {"Content-Type": "application/json"}, json.dumps(files).encode())


def listed(name: str, size: int = 3) -> dict[str, object]:
    return {"name": name, "type": "file", "mtime": DATE, "size": size}


def test_small_files_of_a_listing_cost_no_request(server):
    server.answers["/m/"] = index_of(*(listed(f"f{i}") for i in range(50)))
    manifest = resolve(server.url("/m/"))
    assert len(manifest.files) == 50
    assert manifest.files[0].pin == Pin(modified=DATE)
    assert len(server.asked) == 1


def test_large_files_of_a_listing_are_asked_for_over_few_connections(server, monkeypatch):
    monkeypatch.setattr(http_source, "ENTRY_BYTES_MAX", 2)
    names = [f"f{i}" for i in range(40)]
    server.answers["/m/"] = index_of(*map(listed, names))
    for name in names:
        server.answers[f"/m/{name}"] = StaticFile(b"abc", {"ETag": f'"{name}"'})
    manifest = resolve(server.url("/m/"))
    assert {file.pin.etag for file in manifest.files} == {f'"{name}"' for name in names}
    assert len(server.asked) == 41


def test_one_missing_file_ends_the_resolve(server, monkeypatch):
    monkeypatch.setattr(http_source, "ENTRY_BYTES_MAX", 2)
    server.answers["/m/"] = index_of(*(listed(f"f{i}") for i in range(300)))
    with pytest.raises(NotFound):
        resolve(server.url("/m/"))
    assert len(server.asked) < 300
    assert threading.active_count() < 300


def test_an_index_that_is_out_of_date_is_noticed(server, monkeypatch):
    monkeypatch.setattr(http_source, "ENTRY_BYTES_MAX", 2)
    server.answers["/m/"] = index_of(listed("f", size=4))
    server.answers["/m/f"] = StaticFile(b"abc", {"ETag": '"v1"'})
    with pytest.raises(OriginChanged, match="out of date"):
        resolve(server.url("/m/"))


def test_our_own_index_with_digests_costs_no_request(server):
    digest = hashlib.sha256(b"abc").hexdigest()
    files = [{"path": "a/x", "size": 3, "sha256": digest}]
    server.answers["/i.json"] = lambda _: Reply(200, body=json.dumps({"files": files}).encode())
    manifest = resolve(server.url("/i.json#index=1"))
    assert manifest.files[0].key == server.url("/a/x")
    assert manifest.files[0].blob == f"sha256-{digest}"
    assert len(server.asked) == 1


def test_two_mirrors_of_one_index_with_digests_are_one_model(server):
    digest = hashlib.sha256(b"abc").hexdigest()
    server.answers["/a/x"] = StaticFile(b"abc", {"ETag": '"here"'})
    server.answers["/b/x"] = StaticFile(b"abc", {"ETag": '"there"'})
    complete = {"path": "x", "size": 3, "sha256": digest}
    sizeless = {"path": "x", "sha256": digest}
    server.answers["/a/"] = lambda _: Reply(200, body=json.dumps({"files": [complete]}).encode())
    server.answers["/b/"] = lambda _: Reply(200, body=json.dumps({"files": [sizeless]}).encode())
    assert resolve(server.url("/a/")).model_id == resolve(server.url("/b/")).model_id


def test_an_index_behind_a_redirect_names_files_beside_its_final_place(server):
    server.answers["/latest/"] = redirect("/v2/")
    server.answers["/v2/"] = index_of(listed("x"))
    assert resolve(server.url("/latest/")).files[0].key == server.url("/v2/x")


def test_a_page_for_people_is_no_index(server):
    server.answers["/m/"] = lambda _: Reply(200, body=b"<html>")
    with pytest.raises(SourceRefused, match="autoindex_format json"):
        resolve(server.url("/m/"))


def test_an_index_has_a_largest_size(server, monkeypatch):
    monkeypatch.setattr(asking, "INDEX_BYTES_MAX", 100)
    for length in (-1, None):
        server.answers["/m/"] = lambda _, length=length: Reply(200, body=b" " * 101, length=length)
        with pytest.raises(SourceRefused, match="larger"):
            resolve(server.url("/m/"))


def test_an_index_cut_short_is_asked_for_again(server):
    replies = [Reply(200, body=b"[", length=50)]
    good = index_of(listed("x"))
    server.answers["/m/"] = lambda asked: replies.pop() if replies else good(asked)
    assert len(resolve(server.url("/m/")).files) == 1


# Reading


def located(server: ScriptedServer, pin: Pin, *, path: str = "/x?q=1"):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'})
    source = source_for(server.url(path))
    (file,) = source.resolve(parse_ref(server.url(path))).files
    return source.locate(type(file)(file.path, 3, file.key, file.blob, pin))


def test_a_target_asks_for_the_pinned_state_only(server):
    target = located(server, Pin(etag='"v1"'))
    assert (target.host, target.port, target.tls) == ("127.0.0.1", server.port, False)
    assert target.path == "/x?q=1"
    headers = dict(target.headers)
    assert headers["If-Match"] == '"v1"'
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("modelcache/")
    assert target.proxy is None
    dated = dict(located(server, Pin(modified=DATE)).headers)
    assert dated["If-Unmodified-Since"] == DATE


def test_a_stored_manifest_can_be_read_without_resolving(server):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'})
    stored = Manifest.from_json(resolve(server.url("/x")).to_json())
    target = source_for(server.url("/x")).locate(stored.files[0])
    assert target.path == "/x"


def test_a_response_of_another_state_is_a_change(server):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'})
    source = source_for(server.url("/x?sig=hunter2"))
    (file,) = source.resolve(parse_ref(server.url("/x?sig=hunter2"))).files
    source.check_pin(file, {"etag": '"v1"'})
    with pytest.raises(OriginChanged) as caught:
        source.check_pin(file, {"etag": '"v2"'})
    assert "hunter2" not in caught.value.message
    with pytest.raises(SourceRefused, match="compressed"):
        source.check_pin(file, {"etag": '"v1"', "content-encoding": "gzip"})


def test_checksums_of_a_response_add_to_the_manifest(server):
    spelled = base64.b64encode(hashlib.sha256(b"abc").digest()).decode()
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'})
    source = source_for(server.url("/x"))
    (file,) = source.resolve(parse_ref(server.url("/x"))).files
    (found,) = source.checksums(file, {"digest": f"sha-256={spelled}"})
    assert found.algorithm is Algorithm.SHA256
    known = type(file)(file.path, 3, file.key, file.blob, file.pin, (found,))
    assert source.checksums(known, {"digest": f"sha-256={spelled}"}) == ()


def test_a_refusal_while_reading_is_translated(server):
    server.answers["/x"] = StaticFile(b"abc", {"ETag": '"v1"'})
    source = source_for(server.url("/x"))
    (file,) = source.resolve(parse_ref(server.url("/x"))).files
    assert isinstance(source.refusal(file, 403, {}, b""), Forbidden)
    assert isinstance(source.refusal(file, 412, {}, b""), OriginChanged)
    assert isinstance(source.refusal(file, 404, {}, b""), NotFound)
    throttled = source.refusal(file, 429, {"retry-after": "5"}, b"")
    assert isinstance(throttled, Throttled)
    assert throttled.retry_after_s == 5.0
