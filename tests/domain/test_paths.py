"""File names that may and may not stand in a snapshot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.paths import DEPTH_MAX, check_path, check_tree, parents
from modelcache.errors import UnsafePath


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "a/b/c.safetensors",
        "with space and é模型.txt",
        "..hidden",
        "...",
        "a\\b",
        "-rf",
        "x" * 255,
        "é" * 127,
        "/".join(["d"] * DEPTH_MAX),
        "~",
    ],
)
def test_ordinary_names_pass(path: str):
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("../x", "'..'"),
        ("a/../../x", "'..'"),
        ("a/..", "'..'"),
        ("./x", "'.'"),
        ("a//b", "empty component"),
        ("a/", "empty component"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x1b[2Jb", "control"),
        ("a\x9b2Jb", "control"),
        ("a\x7f", "control"),
        ("x" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("/".join(["x" * 200] * 20), "3072 bytes"),
        ("/".join(["d"] * (DEPTH_MAX + 1)), "nested deeper"),
        ("a\udcffb", "Unicode"),
    ],
)
def test_unsafe_names_are_refused_with_the_reason(path: str, why: str):
    with pytest.raises(UnsafePath) as caught:
        check_path(path)
    assert why in caught.value.message
    assert caught.value.message.isprintable()


def test_a_name_of_megabytes_does_not_fill_the_message():
    with pytest.raises(UnsafePath) as caught:
        check_path("../" + "x" * 5_000_000)
    assert len(caught.value.message) < 1000


@given(st.text(max_size=40))
def test_what_passes_stays_inside_its_root(path: str):
    try:
        check_path(path)
    except UnsafePath:
        return
    parts = path.split("/")
    assert all(parts)
    assert not {".", ".."} & set(parts)
    assert "\0" not in path


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["Config.json", "config.json"], "differs only by case"),
        (["é", "e\u0301"], "differs only by case or the encoding"),  # composed and not
        (["STRASSE", "stra\u00dfe"], "differs only by case"),
        (["a", "a/b"], "would have to be a directory"),
        (["a/b/c", "A/B"], "would have to be a directory"),
    ],
)
def test_names_that_collide_are_refused(paths: list[str], why: str):
    for order in (paths, paths[::-1]):
        with pytest.raises(UnsafePath) as caught:
            check_tree(order)
        assert why in caught.value.message


def test_one_name_twice_is_refused_even_if_it_is_one_object():
    name = "config.json"
    with pytest.raises(UnsafePath, match="twice"):
        check_tree([name, name])
    with pytest.raises(UnsafePath, match="twice"):
        check_tree([name, "config" + ".json"[:5]])


def test_directories_may_be_shared():
    check_tree(["a/b", "a/c", "a/d/e", "ab"])


def test_parents_are_listed_from_the_root():
    assert parents("a/b/c") == ["a", "a/b"]
    assert parents("a") == []
