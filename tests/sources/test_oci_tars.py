"""Finding the members of a tar layer: faithful, bounded, and safe against tars that lie."""

from __future__ import annotations

import io
import random
import tarfile
from hashlib import sha256

import pytest

from modelcache.config import BLOCK_BYTES
from modelcache.errors import DigestMismatch, SourceRefused, UnsafePath
from modelcache.sources.oci import tars
from modelcache.sources.oci.documents import Descriptor
from tests.sources.artifacts import tar_of

LARGE = random.Random(7).randbytes(BLOCK_BYTES + 333)
SMALL = b"small"


class Layer:
    """A tar that is read in ranges, and remembers which."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[tuple[int, int]] = []
        digest = "sha256:" + sha256(content).hexdigest()
        self.descriptor = Descriptor("application/x.tar", digest, len(content))

    def fetch(self, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.content)
        self.asked.append((start, end))
        return self.content[start:end]

    def scan(self) -> tars.Scanned | None:
        return tars.scan(self.descriptor, self.fetch, "r/m:t")

    def files(self) -> dict[str, bytes]:
        """The members, read where the scan says they lie."""
        scanned = self.scan()
        assert scanned is not None
        found = {}
        for file in scanned.files:
            digest, _, place = file.key.partition("#")
            offset, _, size_bytes = place.partition("/")
            assert (digest, int(size_bytes)) == (self.descriptor.digest, len(self.content))
            found[file.path] = self.content[int(offset) :][: file.size_bytes]
        return found


def member(name: str, kind: bytes = tarfile.REGTYPE, aim: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    found.linkname = aim
    return found


# Faithful


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_found_in_every_format(form):
    files = {"a.bin": LARGE, "b/c.json": SMALL, "empty": b"", "d.bin": LARGE[::-1]}
    assert Layer(tar_of(files, form=form)).files() == files


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_found(form):
    files = {"x" * 150 + "/" + "y" * 150: LARGE, "ünïcödé": SMALL}
    assert Layer(tar_of(files, form=form)).files() == files


def test_the_pieces_and_the_large_members_make_the_layer_again():
    layer = Layer(tar_of({"s": SMALL, "a": LARGE, "t": SMALL, "b": LARGE[::-1], "u": SMALL}))
    scanned = layer.scan()
    assert scanned is not None
    assert scanned.assembly is not None
    large = {file.blob: file for file in scanned.files if not file.checksums}
    whole = b""
    for piece in scanned.assembly.pieces:
        if isinstance(piece, bytes):
            whole += piece
        else:
            file = large[piece]
            offset = int(file.key.partition("#")[2].partition("/")[0])
            whole += layer.content[offset : offset + file.size_bytes]
    assert whole == layer.content
    assert scanned.assembly.checksum.value == sha256(whole).hexdigest()


def test_large_members_are_not_read():
    layer = Layer(tar_of({f"{number}.bin": LARGE * 4 for number in range(4)}))
    assert layer.scan() is not None
    assert len(layer.asked) <= 6
    assert sum(end - start for start, end in layer.asked) < len(layer.content) // 10


def test_many_small_members_are_read_by_few_requests():
    layer = Layer(tar_of({f"{number}.json": SMALL * 1000 for number in range(200)}))
    assert len(layer.files()) == 200
    assert len(layer.asked) < 10


def test_small_members_are_the_same_blobs_as_anywhere():
    scanned = Layer(tar_of({"s": SMALL})).scan()
    assert scanned is not None
    (file,) = scanned.files
    assert file.blob == f"sha256-{sha256(SMALL).hexdigest()}"


def test_one_layer_gives_the_same_blobs_each_time_and_another_does_not():
    first, second = (Layer(tar_of({"a": LARGE, "s": text})) for text in (b"1", b"2"))
    blobs = [{file.path: file.blob for file in layer.scan().files} for layer in (first, second)]
    assert blobs[0] == {file.path: file.blob for file in first.scan().files}
    assert blobs[0]["a"] != blobs[1]["a"]


def test_folders_and_the_root_itself_are_no_files():
    more = [member("./", tarfile.DIRTYPE), member("./a", tarfile.DIRTYPE)]
    assert Layer(tar_of({"./a/b": SMALL}, more=more)).files() == {"a/b": SMALL}


def test_links_to_members_are_files_of_the_same_blob():
    more = [
        member("b/hard", tarfile.LNKTYPE, "a/w"),
        member("b/soft", tarfile.SYMTYPE, "../a/w"),
        member("b/second", tarfile.SYMTYPE, "soft"),
    ]
    layer = Layer(tar_of({"a/w": LARGE}, more=more))
    scanned = layer.scan()
    assert scanned is not None
    assert {file.path for file in scanned.files} == {"a/w", "b/hard", "b/soft", "b/second"}
    assert len({file.blob for file in scanned.files}) == 1


def test_an_empty_tar_has_no_files():
    assert Layer(tar_of({})).files() == {}


# Better unpacked


def test_more_members_than_are_worth_it_are_unpacked():
    assert Layer(tar_of({str(number): b"" for number in range(300)})).scan() is None


def test_more_between_large_members_than_is_kept_is_unpacked():
    files = {str(number): bytes(BLOCK_BYTES) for number in range(14)}
    layer = Layer(tar_of(files))
    assert layer.scan() is None
    assert sum(end - start for start, end in layer.asked) < len(layer.content)


def test_a_name_that_comes_twice_is_unpacked():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for content in (b"old", b"new"):
            once = tarfile.TarInfo("w")
            once.size = len(content)
            archive.addfile(once, io.BytesIO(content))
    assert Layer(packed.getvalue()).scan() is None


@pytest.mark.parametrize("aim", ["nowhere", "folder", "loop"])
def test_links_to_anything_but_a_member_are_unpacked(aim):
    more = [member("folder", tarfile.DIRTYPE), member("loop", tarfile.SYMTYPE, aim)]
    assert Layer(tar_of({"w": SMALL}, more=more)).scan() is None


def test_a_header_longer_than_any_need_is_not_read():
    long_name = member("x", tarfile.GNUTYPE_LONGNAME)
    long_name.size = 1 << 30
    content = long_name.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)
    layer = Layer(content)
    layer.descriptor = Descriptor("application/x.tar", layer.descriptor.digest, 1 << 31)
    layer.fetch = lambda start, end: bytes(content[start:end].ljust(end - start, b"\0"))  # type: ignore[method-assign]
    assert layer.scan() is None


# Lies


def test_a_member_larger_than_its_layer_is_a_lie():
    huge = member("w")
    huge.size = 1 << 40
    with pytest.raises(SourceRefused, match="cannot have"):
        Layer(huge.tobuf() + bytes(4096)).scan()


def test_a_negative_size_is_a_lie():
    header = bytearray(member("w").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(SourceRefused):
        Layer(bytes(header) + bytes(4096)).scan()


def test_a_layer_cut_short_is_a_lie():
    content = tar_of({"a": LARGE, "b": LARGE})
    with pytest.raises(SourceRefused):
        Layer(content[: len(LARGE) + 5000]).scan()


def test_a_broken_header_is_not_taken_for_the_end():
    content = bytearray(tar_of({"a": LARGE, "b": SMALL}))
    position = content.index(b"b\0\0\0", len(LARGE))
    content[position] = ord("c")  # its checksum no longer holds
    with pytest.raises(SourceRefused, match="broken header"):
        Layer(bytes(content)).scan()


def test_what_is_no_tar_is_refused():
    with pytest.raises(SourceRefused, match="no readable tar"):
        Layer(b"<html>" * 1000).scan()


def test_a_digest_over_small_members_alone_is_checked_at_once():
    layer = Layer(tar_of({"a": SMALL}))
    layer.content = layer.content.replace(SMALL, b"SMALL")
    with pytest.raises(DigestMismatch):
        layer.scan()


# Safety


@pytest.mark.parametrize("name", ["../w", "/etc/passwd", "a/../../w", "a/./b", "nul\nline"])
def test_members_that_leave_the_root_are_unsafe(name):
    with pytest.raises(UnsafePath):
        Layer(tar_of({name: SMALL})).scan()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_unsafe(kind):
    with pytest.raises(UnsafePath, match="device or a pipe"):
        Layer(tar_of({}, more=[member("dev", kind)])).scan()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("aim", ["/etc/passwd", "../../etc/passwd", "a/../../x"])
def test_links_out_of_the_root_are_unsafe(kind, aim):
    with pytest.raises(UnsafePath, match="link out"):
        Layer(tar_of({"w": SMALL}, more=[member("link", kind, aim)])).scan()
