"""Listings laid over each other: the same tree as a folder to which the layers were applied."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcache.domain.archives import Compression, Unpacking
from modelcache.domain.layers import Entry, EntryKind, Listing, files_of, layer_of, name_in_layer
from modelcache.domain.manifests import Archive, BlobId, File, Manifest
from modelcache.errors import SourceRefused

PATHS = ("a", "b", "a/x", "a/y", "b/x", "a/x/1")
Layer = tuple[dict[str, bytes], frozenset[str], frozenset[str]]


def blob(data: bytes) -> BlobId:
    return BlobId(f"sha256-{sha256(data).hexdigest()}")


def archive(unpacking: Unpacking = Unpacking.IMAGE, root: str = "") -> Archive:
    return Archive(File("layer", 9, "key", blob(b"layer")), Compression.GZIP, unpacking, root)


def file(path: str, data: bytes) -> Entry:
    return Entry(path, EntryKind.FILE, len(data), blob(data))


def is_tree(paths: set[str]) -> bool:
    return not any(other.startswith(f"{path}/") for path in paths for other in paths)


contents = st.dictionaries(st.sampled_from(PATHS), st.binary(max_size=2), max_size=4)
layers = st.tuples(
    contents.filter(lambda content: is_tree(set(content))),
    st.frozensets(st.sampled_from(PATHS), max_size=2),
    st.frozensets(st.sampled_from(("", "a", "b", "a/x")), max_size=1),
)


def applied(stack: list[Layer]) -> dict[str, bytes]:
    """The image specification's words over a flat folder: remove, then add."""
    tree: dict[str, bytes] = {}
    for content, whiteouts, opaque in stack:
        gone = {path for path in tree for folder in opaque if below(path, folder)}
        gone |= {path for path in tree for name in whiteouts if path == name or below(path, name)}
        for path in content:
            gone |= {old for old in tree if old == path or below(old, path) or below(path, old)}
        tree = {path: data for path, data in tree.items() if path not in gone} | content
    return tree


def below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/") if folder else True


@settings(deadline=None)
@given(st.lists(layers, max_size=4))
def test_layers_of_an_image_make_the_tree_that_applying_them_makes(stack: list[Layer]) -> None:
    listings = [
        Listing(tuple(file(*item) for item in content.items()), tuple(whiteouts), tuple(opaque))
        for content, whiteouts, opaque in stack
    ]
    found = files_of([(archive(), listing) for listing in listings], lambda _: True)
    assert {item.path: item.blob for item in found} == {
        path: blob(data) for path, data in applied(stack).items()
    }


def test_a_folder_over_a_file_replaces_it() -> None:
    lower, upper = Listing((file("a", b"1"),)), Listing((Entry("a", EntryKind.FOLDER),))
    assert files_of([(archive(), lower), (archive(), upper)], lambda _: True) == []


@pytest.mark.parametrize("other", [file("a", b"2"), file("a/x", b"2"), Entry("a", EntryKind.LINK)])
def test_plain_archives_that_disagree_are_refused(other: Entry) -> None:
    plain = archive(Unpacking.PLAIN)
    with pytest.raises(SourceRefused, match="something else in"):
        files_of([(plain, Listing((file("a", b"1"),))), (plain, Listing((other,)))], lambda _: True)


def test_folders_that_mean_each_other_are_a_circle() -> None:
    entries = (
        Entry("a/l", EntryKind.LINK, target="../b"),
        Entry("b/l", EntryKind.LINK, target="../a"),
    )
    with pytest.raises(SourceRefused, match="that it is in itself"):
        files_of([(archive(), Listing(entries))], lambda _: True)


def test_a_link_inside_a_root_may_go_through_what_is_above_it() -> None:
    entries = (file("w", b"1"), Entry("l", EntryKind.LINK, target="../models/w"))
    found = files_of([(archive(root="models"), Listing(entries))], lambda path: path == "l")
    assert [(item.path, item.blob) for item in found] == [("l", blob(b"1"))]


def test_a_file_knows_its_layer_and_the_name_that_carries_its_bytes() -> None:
    twin = Entry("hard", EntryKind.FILE, 1, blob(b"1"), "w")
    listing = Listing((file("w", b"1"), twin))
    files = files_of([(archive(), listing)], lambda path: path == "hard")
    model = Manifest.of(
        "o", [*files, File("own", 1, "key!x", blob(b"2"))], unpacked_from=[archive()]
    )
    own, hard = sorted(model.files, key=lambda each: each.path, reverse=True)
    assert layer_of(model, own) is None
    assert layer_of(model, hard) == archive()
    assert name_in_layer(hard) == "w"
    assert listing.carriers({blob(b"1")}) == {"w"}
