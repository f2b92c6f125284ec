"""Receipts: their stored form, where they are kept, and what one stat tells."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.ranges import ChunkGrid
from modelcache.store import BlobState, Receipt, receipts
from tests.store.support import CHUNK, chunk_hashes, content_id, put, random_bytes

SMALL = random_bytes(CHUNK + 1)
LARGE = random_bytes(40 * CHUNK)


@st.composite
def any_receipt(draw):
    chunk = draw(st.integers(1, 1 << 30))
    size = draw(st.integers(0, 50 * chunk))
    count = ChunkGrid(size, chunk).count
    hashes = tuple(number.to_bytes(16, "little") for number in range(count))
    verified = draw(st.none() | st.sampled_from(["sha256", "crc64nvme", "md5", "size", "other-1"]))
    mtime_ns = draw(st.integers(-(1 << 62), 1 << 62))
    return Receipt(size, chunk, hashes, verified, mtime_ns, draw(st.integers(0, (1 << 64) - 1)))


@given(any_receipt())
def test_what_is_stored_is_read_again(receipt):
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt


@given(st.binary(max_size=200))
def test_other_bytes_are_no_receipt(data):
    assert Receipt.from_bytes(data) is None


def test_a_receipt_that_is_torn_or_flipped_anywhere_is_none():
    whole = Receipt(CHUNK + 1, CHUNK, (b"a" * 16, b"b" * 16), "sha256", 5, 6).to_bytes()
    for at in range(len(whole)):
        assert Receipt.from_bytes(whole[:at]) is None
        assert Receipt.from_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]) is None


def test_a_receipt_of_one_chunk_fits_beside_an_ext4_inode():
    assert len(Receipt(100, CHUNK, (b"a" * 16,), "sha256", 1, 1).to_bytes()) <= 52


def test_small_receipts_are_attributes_and_large_ones_files(store):
    small, large = put(store, SMALL), put(store, LARGE)
    assert receipts.XATTR in os.listxattr(small)
    assert receipts.XATTR not in os.listxattr(large)
    sidecars = [path.name for path in store.layout.blobs.glob("*/*.receipt")]
    assert sidecars == [f"{content_id(LARGE)}.receipt"]
    assert store.receipt(content_id(LARGE)).chunk_hashes == chunk_hashes(LARGE)


@pytest.mark.parametrize("code", sorted(receipts._NO_XATTR))
def test_where_attributes_fail_the_receipt_is_a_file(store, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "setxattr", refuse)
    put(store, SMALL)
    assert store.layout.receipt(content_id(SMALL)).exists()
    assert store.receipt(content_id(SMALL)).chunk_hashes == chunk_hashes(SMALL)
    assert store.blob_state(content_id(SMALL)) is BlobState.INTACT


def touch(path):
    os.utime(path, ns=(1, 1))


def truncate(path):
    os.truncate(path, 100)


def replace(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [touch, truncate, replace])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["attribute", "file"])
def test_one_stat_finds_a_blob_that_was_changed(store, data, change):
    change(put(store, data))
    lost = change is replace and data is SMALL  # the attribute went with the old file
    expected = BlobState.UNKNOWN if lost else BlobState.CHANGED
    assert store.blob_state(content_id(data)) is expected


def test_a_blob_that_is_not_there_is_missing(store):
    assert store.blob_state(content_id(b"?")) is BlobState.MISSING


def test_a_blob_without_receipt_is_unknown(store):
    put(store, LARGE)
    store.layout.receipt(content_id(LARGE)).unlink()
    assert store.blob_state(content_id(LARGE)) is BlobState.UNKNOWN


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["attribute", "file"])
def test_a_touched_blob_that_was_found_to_be_the_same_is_intact_again(store, data):
    touch(put(store, data))
    store.renew_receipt(content_id(data))
    assert store.blob_state(content_id(data)) is BlobState.INTACT
    assert store.receipt(content_id(data)).chunk_hashes == chunk_hashes(data)
