"""What is known of layers: written once, believed while it fits, collected with its models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcache.domain.layers import Entry, EntryKind, Listing
from modelcache.domain.manifests import Manifest
from modelcache.store import listings
from tests.store.processes import holding
from tests.store.support import (
    ORIGIN,
    archive_of,
    collect,
    content_id,
    listing_of,
    manifest_of,
    put_model,
)

ARCHIVE = archive_of(b"layer", "models")
CONTENT = {"a": b"one", "b/c": b"two"}
LISTING = Listing(
    (
        *listing_of(CONTENT).entries,
        Entry("b", EntryKind.FOLDER),
        Entry("link", EntryKind.LINK, target="b/c"),
        Entry("hard", EntryKind.FILE, 3, content_id(b"one"), "a"),
    ),
    whiteouts=("gone",),
    opaque=("b", ""),
)


def test_a_listing_is_read_as_it_was_written(store):
    store.save_listing(ARCHIVE, LISTING)
    assert store.listing(ARCHIVE) == LISTING


def test_another_root_or_layer_is_another_listing(store):
    store.save_listing(ARCHIVE, LISTING)
    assert store.listing(replace(ARCHIVE, root="")) is None
    assert store.listing(archive_of(b"another", "models")) is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"[]",
        b'{"format":2}',
        b"{" * 5000,
        b'{"format":1,"layer":1,"root":"","entries":[]}',
    ],
)
def test_a_damaged_listing_is_as_if_never_written_and_is_collected(store, damage):
    store.save_listing(ARCHIVE, LISTING)
    (path,) = store.layout.layers.iterdir()
    path.write_bytes(damage)
    assert store.listing(ARCHIVE) is None
    collect(store)
    assert not path.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"size":3', '"size":-3'),
        ('"size":3', '"size":"3"'),
        ('"kind":"file"', '"kind":"device"'),
        (content_id(b"one"), "../../etc/passwd"),
        ('"path":"a"', '"path":7'),
    ],
)
def test_an_entry_that_unpacking_cannot_have_written_is_not_believed(store, old, new):
    store.save_listing(ARCHIVE, LISTING)
    (path,) = store.layout.layers.iterdir()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert store.listing(ARCHIVE) is None


def test_a_listing_lives_while_a_model_names_its_layer(store):
    packed = Manifest.of(ORIGIN, [], archives=[ARCHIVE])
    store.save_listing(ARCHIVE, LISTING)
    with store.begin_model(packed, "test"):
        collect(store)
        assert store.listing(ARCHIVE) is not None
    store.remove_model(packed.model_id)
    collect(store)
    assert store.listing(ARCHIVE) is None


def test_a_listing_lives_while_a_model_was_unpacked_from_its_layer(store):
    manifest = replace(manifest_of({"z": b"other"}), unpacked_from=(ARCHIVE,))
    store.save_listing(ARCHIVE, LISTING)
    with store.begin_model(manifest, "test"):
        collect(store)
    assert store.manifest(manifest.model_id).unpacked_from == (ARCHIVE,)
    assert store.listing(ARCHIVE) is not None


def test_a_listing_lives_while_a_member_of_it_is_part_of_a_model(store):
    store.save_listing(ARCHIVE, LISTING)
    put_model(store, {"elsewhere": b"two"})
    collect(store)
    assert store.listing(ARCHIVE) is not None


def test_where_files_were_unpacked_from_is_no_part_of_what_a_model_is():
    plain = manifest_of(CONTENT)
    packed = replace(plain, unpacked_from=(ARCHIVE,))
    again = Manifest.from_json(packed.to_json())
    assert again.model_id == plain.model_id
    assert again == packed
    assert again.unpacked_from == (ARCHIVE,)


def test_a_layer_has_one_unpacker_and_its_lock_leaves_nothing(store):
    layer = ARCHIVE.layer.blob
    with holding(lambda: listings.try_lock(store.layout, layer)):
        assert listings.try_lock(store.layout, layer) is None
        collect(store)
        assert listings.try_lock(store.layout, layer) is None
    fd = listings.try_lock(store.layout, layer)
    assert fd is not None
    listings.unlock(store.layout, layer, fd)
    assert not list(store.layout.layers.iterdir())


def test_a_lock_that_a_dead_process_left_is_collected(store):
    store.layout.layer_lock(ARCHIVE.layer.blob).touch()
    collect(store)
    assert not list(store.layout.layers.iterdir())
