"""Indexes: nginx's and our own, and the bad ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.refs import FileFilter
from modelcache.errors import ModelcacheError, SourceRefused, UnsafePath
from modelcache.sources.http import index
from modelcache.sources.http.index import Document, read_index
from modelcache.sources.web.address import Address, parse_address

ROOT = "https://host/models/llama/"
DATE = "Mon, 02 Jan 2023 10:00:00 GMT"
ALL = FileFilter()


def read(documents, accepted: FileFilter = ALL, root: str = ROOT):
    """documents: URL -> what is there, as JSON or bytes."""
    asked = []

    def get(address: Address) -> Document:
        asked.append(address.url)
        found = documents[address.url]
        return Document(address, found if isinstance(found, bytes) else json.dumps(found).encode())

    return read_index(parse_address(root), accepted, get), asked


def listed(name, kind="file", size=3, mtime=DATE):
    entry = {"name": name, "type": kind, "mtime": mtime}
    return {**entry, "size": size} if kind == "file" else entry


def test_a_listing_is_followed_into_its_directories():
    entries, asked = read(
        {
            ROOT: [listed("sub", "directory"), listed("config.json")],
            f"{ROOT}sub/": [listed("deep", "directory"), listed("a b#?é.bin", size=5)],
            f"{ROOT}sub/deep/": [listed("x")],
        }
    )
    assert {entry.path: entry.address.url for entry in entries} == {
        "config.json": f"{ROOT}config.json",
        "sub/a b#?é.bin": f"{ROOT}sub/a%20b%23%3F%C3%A9.bin",
        "sub/deep/x": f"{ROOT}sub/deep/x",
    }
    assert entries[1].size_bytes == 5
    assert entries[1].modified == DATE
    assert len(asked) == 3


def test_excluded_directories_are_not_read():
    entries, asked = read(
        {ROOT: [listed("original", "directory"), listed("a.bin")]},
        FileFilter(exclude=("original/*",)),
    )
    assert [entry.path for entry in entries] == ["a.bin"]
    assert asked == [ROOT]


def test_a_date_that_is_none_is_not_believed():
    entries, _ = read({ROOT: [listed("x", mtime="2023-01-02"), listed("y", mtime=None)]})
    assert [entry.modified for entry in entries] == [None, None]


def test_other_kinds_of_entries_count_as_files_of_unknown_size():
    entries, _ = read({ROOT: [{"name": "x", "type": "other", "mtime": DATE}]})
    assert entries[0].size_bytes is None


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "/etc/passwd", "../x", "a\0b", "x" * 300, "\udcff"]
)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_names_that_lead_elsewhere_are_refused(name, kind):
    with pytest.raises(UnsafePath):
        read({ROOT: [listed(name, kind)]})


def test_unsafe_names_that_are_not_wanted_do_no_harm():
    entries, _ = read({ROOT: [listed("..\n.bin"), listed("a.json")]}, FileFilter(("*.json",)))
    assert [entry.path for entry in entries] == ["a.json"]


def test_names_that_are_not_utf8_are_refused_only_if_wanted():
    body = b'[{"name": "\xff.bin", "type": "file", "size": 1}, {"name": "a", "type": "file"}]'
    with pytest.raises(UnsafePath, match="Unicode"):
        read({ROOT: body})
    entries, _ = read({ROOT: body}, FileFilter(exclude=("*.bin",)))
    assert [entry.path for entry in entries] == ["a"]


def test_a_directory_that_contains_itself_ends():
    def get(address: Address) -> Document:
        return Document(address, json.dumps([listed("again", "directory"), listed("x")]).encode())

    with pytest.raises(UnsafePath, match="nested deeper"):
        read_index(parse_address(ROOT), ALL, get)


@pytest.mark.parametrize(
    ("bound", "name"), [("FILES_MAX", "file"), ("DIRECTORIES_MAX", "directory")]
)
def test_a_listing_without_end_is_given_up(monkeypatch, bound, name):
    monkeypatch.setattr(index, bound, 3)

    def get(address: Address) -> Document:
        entries = [listed(f"{name}{i}", name) for i in range(5)]
        return Document(address, json.dumps(entries).encode())

    with pytest.raises(SourceRefused, match="more than"):
        read_index(parse_address(ROOT), ALL, get)


def test_our_own_form_needs_only_paths():
    entries, _ = read(
        {
            ROOT: {
                "files": [
                    {"path": "a/b c.bin"},
                    {"path": "x", "size": 7, "sha256": "AB" * 32, "url": "https://cdn/x?sig=1"},
                    {"path": "y", "url": "../shared/y"},
                ]
            }
        }
    )
    assert [(entry.path, entry.address.url) for entry in entries] == [
        ("a/b c.bin", f"{ROOT}a/b%20c.bin"),
        ("x", "https://cdn/x?sig=1"),
        ("y", "https://host/models/shared/y"),
    ]
    assert entries[1].size_bytes == 7
    assert entries[1].sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({}, "no `path`"),
        ("x", "no `path`"),
        ({"path": 1}, "no `path`"),
        ({"path": "x", "size": "7"}, "`size`"),
        ({"path": "x", "size": -1}, "`size`"),
        ({"path": "x", "size": True}, "`size`"),
        ({"path": "x", "size": 1e30}, "`size`"),
        ({"path": "x", "sha256": "abc"}, "`sha256`"),
        ({"path": "x", "sha256": 7}, "`sha256`"),
        ({"path": "x", "url": 7}, "`url`"),
        ({"path": "x", "url": "file:///etc/passwd"}, "not http"),
        ({"path": "x", "url": "http://host/x"}, "https to http"),
        ({"path": "x", "url": "https://user:hunter2@host/x"}, "netrc"),
        ({"path": "x", "url": "https://[::1"}, "`url`"),
    ],
)
def test_a_bad_entry_is_named_by_its_position(entry, says):
    with pytest.raises(SourceRefused) as caught:
        read({ROOT: {"files": [{"path": "good"}, entry]}})
    assert "files[1]" in caught.value.message
    assert says in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("path", ["../x", "/x", "a/../b", "a\0", "x" * 300])
def test_unsafe_paths_of_our_own_form_are_refused(path):
    with pytest.raises(UnsafePath):
        read({ROOT: {"files": [{"path": path, "url": "x"}]}})


@pytest.mark.parametrize(
    "body",
    [
        b"<html>listing</html>",
        b"",
        b"null",
        b"7",
        b"[7]",
        b'[{"type": "file"}]',
        b'[{"name": 7}]',
        b'[{"name": "x", "type": "file", "size": -1}]',
        b"{}",
        b'{"files": {}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_index_says_what_one_is(body):
    with pytest.raises(SourceRefused, match="autoindex_format json"):
        read({ROOT: body})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["files", "path", "size", "sha256", "url", "name", "type", "mtime"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_an_index_or_an_error_of_ours(value):
    body = json.dumps(value).encode()
    try:
        entries = read_index(parse_address(ROOT), ALL, lambda address: Document(address, body))
    except ModelcacheError:
        return
    assert all(entry.address.tls for entry in entries)
