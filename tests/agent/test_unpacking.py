"""Whole pulls of packed models: the snapshot has the members, and nothing else is left."""

from __future__ import annotations

import gzip
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from modelcache.agent import Engine
from modelcache.config import BLOCK_BYTES
from modelcache.domain.archives import Compression, Unpacking
from modelcache.domain.manifests import Manifest
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    DigestMismatch,
    NotFound,
    SourceRefused,
    StoreFull,
    UnsafePath,
)
from modelcache.store import Store
from tests.agent.archives import (
    Layer,
    PackedOrigin,
    link,
    member,
    packed,
    packed_settings,
    raw_file,
    tar_of,
    use,
)
from tests.agent.support import CHUNK_BYTES, random_bytes, tree
from tests.servers.faults import Fault, FaultProxy, Request
from tests.servers.nginx import Nginx
from tests.store.support import collect, content_id

LARGE = random_bytes(2 * CHUNK_BYTES + 12_345, 1)
CONTENT = {"weights.safetensors": LARGE, "config.json": b"{}", "sub/empty": b""}
IMAGE = Unpacking.IMAGE


@pytest.fixture
def proxy(web: tuple[Nginx, Path]) -> Iterator[FaultProxy]:
    with FaultProxy(web[0].url) as running:
        yield running


@pytest.fixture
def origin(
    web: tuple[Nginx, Path], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> PackedOrigin:
    origin = PackedOrigin(proxy.url, web[1], [], {})
    use(origin, monkeypatch)
    return origin


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def opened(path: Path) -> Store:
    return Store.open(packed_settings(path).store)


def check_nothing_left(path: Path, *, models: int = 1) -> None:
    """Only the models of files, and only their blobs."""
    store = opened(path)
    assert len(store.model_ids()) == models
    blobs = {blob for model_id in store.model_ids() for blob in store.manifest(model_id).blobs()}
    found = {file.name for file in (path / "blobs").glob("*/*") if file.suffix != ".receipt"}
    assert found == blobs
    assert not list((path / "partial").iterdir())
    assert not list((path / "trash").iterdir())
    assert not list((path / "layers").glob("*.lock"))


def check_nothing_visible(path: Path) -> None:
    assert not list((path / "snapshots").iterdir())
    assert not list((path / "partial").glob("unpack-*"))
    assert not list((path / "layers").glob("*"))


@pytest.mark.parametrize("compression", list(Compression))
def test_the_members_of_a_layer_become_the_model(origin, path, compression):
    origin.serve(Layer(packed(tar_of(CONTENT), compression), compression))
    snapshot = origin.pull(path)
    assert tree(snapshot.path) == CONTENT
    assert snapshot.report is not None
    assert snapshot.report.unpacked_bytes == sum(map(len, CONTENT.values()))
    assert snapshot.report.total_bytes == sum(map(len, CONTENT.values()))
    assert snapshot.report.present_bytes == 0
    check_nothing_left(path)


def test_the_same_files_raw_and_packed_are_the_same_model(origin, path):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.ZSTD), Compression.ZSTD))
    snapshot = origin.pull(path)
    raw = Manifest.of("x", [raw_file(name, body, name) for name, body in CONTENT.items()])
    assert snapshot.model_id == raw.model_id


def test_files_beside_layers_are_part_of_the_model(origin, path):
    plain = {"model.bin": random_bytes(BLOCK_BYTES + 5, 3), "LICENSE": b"free"}
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)), plain=plain)
    assert tree(origin.pull(path).path) == CONTENT | plain
    check_nothing_left(path)


@pytest.mark.parametrize("parts", [2, 7])
def test_gzip_of_several_members_is_one_stream(origin, path, parts):
    data = tar_of(CONTENT)
    step = len(data) // parts + 1
    pieces = [gzip.compress(data[at : at + step], 1) for at in range(0, len(data), step)]
    origin.serve(Layer(b"".join(pieces) + bytes(700)))
    assert tree(origin.pull(path).path) == CONTENT


def test_zstd_of_several_frames_is_one_stream(origin, path):
    data = tar_of(CONTENT)
    half = len(data) // 2
    pack = zstandard.ZstdCompressor(1).compress
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    origin.serve(Layer(pack(data[:half]) + skippable + pack(data[half:]), Compression.ZSTD))
    assert tree(origin.pull(path).path) == CONTENT


def test_a_second_pull_fetches_nothing(origin, path, proxy):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    origin.pull(path)
    before = len(proxy.gets(".tar"))
    again = origin.pull(path)
    assert again.fetched_bytes == 0
    assert len(proxy.gets(".tar")) == before
    check_nothing_left(path)


def test_a_filter_chooses_members_and_another_one_fetches_what_it_lacks(origin, path, proxy):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    assert set(tree(origin.pull(path, "#include=*.json").path)) == {"config.json"}
    check_nothing_left(path)
    before = len(proxy.gets(".tar"))
    assert tree(origin.pull(path).path) == CONTENT
    assert len(proxy.gets(".tar")) > before
    asked = len(proxy.gets(".tar"))
    subset = origin.pull(path, "#exclude=*.json")
    assert set(tree(subset.path)) == {"weights.safetensors", "sub/empty"}
    assert len(proxy.gets(".tar")) == asked
    check_nothing_left(path, models=3)


def test_a_filter_that_accepts_nothing_is_an_error(origin, path):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    with pytest.raises(NotFound, match="filter"):
        origin.pull(path, "#include=*.gguf")


def test_later_layers_of_an_image_replace_and_remove(origin, path):
    lower = {"models/a": b"old", "models/gone": b"x", "models/d/one": b"1", "etc/passwd": b"no"}
    upper = {
        "models/a": LARGE,
        "models/.wh.gone": b"",
        "models/d/two": b"2",
        "models/d/.wh..wh..opq": b"",
        "models/.wh..wh.plnk": b"",
    }
    pieces = [
        Layer(gzip.compress(tar_of(each)), unpacking=IMAGE, root="models")
        for each in (lower, upper)
    ]
    origin.serve(*pieces)
    assert tree(origin.pull(path).path) == {"a": LARGE, "d/two": b"2"}
    check_nothing_left(path)


def test_a_whiteout_of_the_root_removes_what_is_below(origin, path):
    pieces = [{"a/models/x": b"1"}, {"a/.wh.models": b"", "a/models/y": b"2"}]
    origin.serve(
        *(Layer(gzip.compress(tar_of(each)), unpacking=IMAGE, root="a/models") for each in pieces)
    )
    assert tree(origin.pull(path).path) == {"y": b"2"}


def test_plain_layers_add_up_and_may_not_disagree(origin, path):
    origin.serve(*(Layer(gzip.compress(tar_of({name: b"1"}))) for name in ("a", "b", "a")))
    assert tree(origin.pull(path).path) == {"a": b"1", "b": b"1"}
    origin.serve(*(Layer(gzip.compress(tar_of({"a": body}))) for body in (b"1", b"2")))
    with pytest.raises(SourceRefused, match=r"a' is something|!a is something"):
        origin.pull(path)


def test_links_become_the_files_they_mean(origin, path):
    extra = [
        link("models/current", "v1"),
        link("models/v1/link.bin", "../blobs/w"),
        member("models/v1/hard.bin", tarfile.LNKTYPE, "models/blobs/w"),
        link("models/absolute", "/models/v1/./link.bin"),
    ]
    data = tar_of({"models/blobs/w": LARGE, "models/v1/c": b"{}"}, extra=extra)
    origin.serve(Layer(gzip.compress(data, 1), unpacking=IMAGE, root="models"))
    inside = {"c": b"{}", "link.bin": LARGE, "hard.bin": LARGE}
    assert tree(origin.pull(path).path) == {
        "blobs/w": LARGE,
        "absolute": LARGE,
        **{f"v1/{name}": body for name, body in inside.items()},
        **{f"current/{name}": body for name, body in inside.items()},
    }


def test_a_wanted_link_brings_the_file_that_the_filter_left_out(origin, path, proxy):
    data = tar_of({"blobs/w": LARGE}, extra=[link("v/model.bin", "../blobs/w")])
    origin.serve(Layer(gzip.compress(data, 1)))
    assert tree(origin.pull(path, "#include=*.bin").path) == {"v/model.bin": LARGE}
    fetched = sum(r.span[1] - r.span[0] for r in proxy.gets(".tar") if r.span)
    assert fetched <= len(origin.layers[0].data) + 10, "the layer was there for the second look"
    check_nothing_left(path)


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("a/l", "../../x", "out of"),
        ("l", "/etc/passwd", "out of"),
        ("l", "missing", "nowhere"),
        ("l", "l", "circle"),
        ("d/l", "..", "itself"),
    ],
)
def test_a_link_that_means_nothing_here_is_refused_by_name(origin, path, name, target, reason):
    data = tar_of({"f": b"1", "d/f": b"2"}, extra=[link(name, target)])
    origin.serve(Layer(gzip.compress(data)))
    with pytest.raises(SourceRefused, match=rf"layer-0.tar!{name} .*{reason}"):
        origin.pull(path)
    assert not list((path / "snapshots").iterdir())
    excluded = origin.pull(path, f"#exclude={name}")
    assert tree(excluded.path) == {"f": b"1", "d/f": b"2"}


@pytest.mark.parametrize(
    ("extra", "error", "reason"),
    [
        (member("../x"), UnsafePath, "leaves"),
        (member("a/../../x"), UnsafePath, "leaves"),
        (member("/x"), UnsafePath, "absolute"),
        (member("a\x07b"), UnsafePath, "control"),
        (member("dev", tarfile.CHRTYPE), SourceRefused, "a device"),
        (member("dev", tarfile.BLKTYPE), SourceRefused, "a device"),
        (member("pipe", tarfile.FIFOTYPE), SourceRefused, "a named pipe"),
        (member("sparse", tarfile.GNUTYPE_SPARSE), SourceRefused, "sparse"),
        (member("odd", b"Q"), SourceRefused, "not known"),
        (member("h", tarfile.LNKTYPE, "nothing"), SourceRefused, "not before it"),
        (member("h", tarfile.LNKTYPE, "../f"), UnsafePath, "leaves"),
        (member("f/below"), SourceRefused, "lies below"),
    ],
)
def test_a_member_that_has_no_place_in_a_model_is_refused(origin, path, extra, error, reason):
    origin.serve(Layer(gzip.compress(tar_of({"f": LARGE}, extra=[extra]), 1)))
    with pytest.raises(error, match=reason) as caught:
        origin.pull(path)
    assert "layer-0.tar" in caught.value.message
    check_nothing_visible(path)


def test_what_is_not_below_the_root_of_an_image_may_be_anything(origin, path):
    extra = [
        member("dev/null", tarfile.CHRTYPE),
        member("run/pipe", tarfile.FIFOTYPE),
        link("bin", "usr/bin"),
        link("etc/mtab", "/proc/mounts"),
    ]
    data = tar_of({"models/x": b"1", "usr/bin/sh": LARGE}, extra=extra)
    origin.serve(Layer(gzip.compress(data, 1), unpacking=IMAGE, root="models"))
    assert tree(origin.pull(path).path) == {"x": b"1"}


def test_a_root_that_is_a_link_is_refused(origin, path):
    data = tar_of({"data/x": b"1"}, extra=[link("models", "data")])
    origin.serve(Layer(gzip.compress(data), unpacking=IMAGE, root="models"))
    with pytest.raises(SourceRefused, match="where a folder is looked for"):
        origin.pull(path)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_long_names_and_targets_are_read_in_full(origin, path, form):
    name = "/".join(["n" * 90] * 4) + "/ä.bin"
    data = tar_of({name: b"long"}, form=form, extra=[link("l", name)])
    origin.serve(Layer(gzip.compress(data)))
    assert tree(origin.pull(path).path) == {name: b"long", "l": b"long"}


def test_many_small_members_are_all_there(origin, path):
    content = {f"part-{n % 10}/file-{n:05d}": b"%d" % n for n in range(10_000)}
    origin.serve(Layer(gzip.compress(tar_of(content, form=tarfile.USTAR_FORMAT), 1)))
    snapshot = origin.pull(path)
    assert sum(1 for file in snapshot.path.rglob("file-*")) == 10_000
    assert (snapshot.path / "part-7/file-09997").read_bytes() == b"9997"
    assert not list((path / "partial").iterdir())


def test_a_layer_with_another_digest_shows_nothing(origin, path):
    layer = Layer(gzip.compress(tar_of(CONTENT), 1), digest="ab" * 32)
    origin.serve(layer)
    with pytest.raises(DigestMismatch, match=r"layer-0\.tar"):
        origin.pull(path, retries_max=1)
    check_nothing_visible(path)
    assert not list((path / "blobs").glob("*/sha256-*"))


@pytest.mark.parametrize("at", [20, 100_000, CHUNK_BYTES + 9])
def test_a_byte_that_changed_on_the_way_is_fetched_again(origin, path, proxy, at):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    seen: list[Request] = []

    def plan(request: Request) -> Fault | None:
        hit = request.span is not None and request.span[0] <= at < request.span[1]
        if request.method == "GET" and hit and not seen:
            seen.append(request)
            return Fault(flip_at=at - (request.span[0] if request.span else 0))
        return None

    proxy.plan = plan
    assert tree(origin.pull(path).path) == CONTENT
    assert seen
    check_nothing_left(path)


@pytest.mark.parametrize(
    ("compression", "spoil", "reason"),
    [
        (Compression.NONE, lambda data: data[: len(LARGE) // 2], "middle of a member"),
        (Compression.NONE, lambda data: b"x" * len(data), "no tar"),
        (Compression.NONE, lambda data: data + b"garbage", "follows the end"),
        (Compression.GZIP, lambda data: data[:-7], "too early"),
        (Compression.GZIP, lambda data: data[: len(data) // 2], "too early"),
        (Compression.GZIP, lambda data: data + b"garbage" * 9, "gzip data is damaged"),
        (Compression.GZIP, lambda data: data + b"\0garbage", "follows its gzip"),
        (Compression.GZIP, lambda data: b"PK" + data, "gzip data is damaged"),
        (Compression.ZSTD, lambda data: data[: len(data) // 2], "middle of a member"),
        (Compression.ZSTD, lambda data: data + b"garbage", "zstd data is damaged"),
    ],
    ids=map(str, range(10)),
)
def test_a_layer_that_was_published_broken_is_refused(origin, path, compression, spoil, reason):
    origin.serve(Layer(spoil(packed(tar_of({"w": LARGE}), compression)), compression))
    with pytest.raises(SourceRefused, match=reason) as caught:
        origin.pull(path)
    assert "layer-0.tar cannot be unpacked" in caught.value.message
    check_nothing_visible(path)


def test_a_header_that_says_more_than_there_is_is_refused(origin, path):
    info = tarfile.TarInfo("liar")
    info.size = 50_000
    data = info.tobuf() + b"short" + bytes(507)
    origin.serve(Layer(data, Compression.NONE))
    with pytest.raises(SourceRefused, match="middle of a member"):
        origin.pull(path)
    check_nothing_visible(path)


def test_an_extended_header_without_bounds_is_refused(origin, path):
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = 5 << 20
    origin.serve(Layer(gzip.compress(info.tobuf() + bytes(5 << 20)), Compression.GZIP))
    with pytest.raises(SourceRefused, match="header of its tar has 5242880 bytes"):
        origin.pull(path)


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_a_bomb_ends_the_pull_before_it_fills_anything(origin, path, compression):
    info = tarfile.TarInfo("zeros")
    info.size = 256 << 20
    data = io.BytesIO(info.tobuf() + bytes(info.size))
    origin.serve(Layer(packed(data.getvalue(), compression), compression))
    with pytest.raises(SourceRefused, match="unpacked_bytes_max"):
        origin.pull(path, oci={"unpacked_bytes_max": 8 << 20})
    check_nothing_visible(path)


def test_a_member_larger_than_the_quota_is_store_full(origin, path):
    data = tar_of({"zeros": bytes(64 << 20)})
    origin.serve(Layer(packed(data, Compression.GZIP)))
    with pytest.raises(StoreFull):
        origin.pull(path, quota_bytes=32 << 20)
    check_nothing_visible(path)


def test_what_an_interrupted_pull_stored_of_a_layer_is_not_fetched_again(origin, path, proxy):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    held = CHUNK_BYTES
    proxy.plan = lambda request: (
        Fault(status=404) if request.span and request.span[0] >= held else None
    )
    with pytest.raises(NotFound):
        origin.pull(path, connections_max=1, connections_start=1)
    kept = opened(path).partial_bytes(content_id(origin.layers[0].data))
    assert kept >= held
    proxy.plan = lambda _: None
    snapshot = origin.pull(path)
    assert tree(snapshot.path) == CONTENT
    assert snapshot.fetched_bytes == len(origin.layers[0].data) - kept
    check_nothing_left(path)


def test_a_damaged_member_is_mended_from_its_layer(origin, path, proxy):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)), plain={"plain": b"1" * 500})
    snapshot = origin.pull(path)
    blob = opened(path).layout.blob(content_id(LARGE))
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"damage")
    asked = len(proxy.gets("plain"))
    with Engine(packed_settings(path)) as engine:
        (result,) = engine.verify()
        assert result.bad == {"weights.safetensors": [1]}
        assert result.repaired
        (again,) = engine.verify(repair=False)
    assert not again.bad
    assert tree(snapshot.path) == {**CONTENT, "plain": b"1" * 500}
    assert len(proxy.gets("plain")) == asked
    check_nothing_left(path)


def test_a_member_that_was_lost_comes_with_the_next_pull(origin, path):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    origin.pull(path)
    store = opened(path)
    store.layout.blob(content_id(LARGE)).unlink()
    assert tree(origin.pull(path).path) == CONTENT
    manifest = store.manifest(store.model_ids()[0])
    assert not store.mend_snapshot(manifest)
    check_nothing_left(path)


def test_garbage_collection_leaves_what_a_second_pull_needs(origin, path, proxy):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    origin.pull(path)
    collect(opened(path))
    before = len(proxy.gets(".tar"))
    assert tree(origin.pull(path).path) == CONTENT
    assert len(proxy.gets(".tar")) == before


def test_a_model_that_was_removed_is_fetched_again(origin, path):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    store = opened(path)
    store.remove_model(origin.pull(path).model_id)
    assert not list((path / "blobs").glob("*/sha256-*"))
    assert tree(origin.pull(path).path) == CONTENT
    check_nothing_left(path)


def test_a_layer_that_is_a_blob_here_is_not_fetched(origin, path, proxy):
    layer = Layer(packed(tar_of(CONTENT), Compression.GZIP))
    origin.serve(plain={"layer-0.tar": layer.data})
    raw = origin.pull(path)
    assert tree(raw.path) == {"layer-0.tar": layer.data}
    origin.serve(layer)
    before = len(proxy.gets(".tar"))
    assert tree(origin.pull(path).path) == CONTENT
    assert len(proxy.gets(".tar")) == before
    check_nothing_left(path, models=2)


def test_several_pulls_of_one_packed_model_at_once_fetch_it_once(origin, path, proxy):
    origin.serve(
        *(Layer(packed(tar_of({f"w{n}": LARGE + b"%d" % n}), Compression.GZIP)) for n in range(2))
    )
    results: list[dict[str, bytes]] = []

    def pull() -> None:
        results.append(tree(origin.pull(path).path))

    threads = [threading.Thread(target=pull) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [{"w0": LARGE + b"0", "w1": LARGE + b"1"}] * 3
    fetched = sum(r.span[1] - r.span[0] for r in proxy.gets(".tar") if r.span)
    whole = sum(len(layer.data) for layer in origin.layers)
    assert fetched < 1.5 * whole, "each layer came once, but for what was hedged"
    check_nothing_left(path)


def test_a_cold_store_says_where_the_ref_leads(origin, path):
    origin.serve(Layer(packed(tar_of(CONTENT), Compression.GZIP)))
    snapshot = origin.pull(path)
    with Engine(packed_settings(path)) as engine:
        assert engine.path(str(parse_ref(f"{origin.url}/packed"))) == snapshot.path
        (model,) = engine.models()
    assert model.warm
    assert model.verified == {"sha256": sum(map(len, CONTENT.values()))}
