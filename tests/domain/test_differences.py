"""What changed between two models, and what they share."""

from __future__ import annotations

from modelcache.domain.differences import Change, compare
from modelcache.domain.manifests import BlobId, File, Manifest


def model(**files: str) -> Manifest:
    """path=content; a file's size is ten times the length of its content."""
    return Manifest.of(
        "s3://bucket/m",
        [
            File(path, 10 * len(content), path, BlobId(f"sha256-{content:0>64}"))
            for path, content in files.items()
        ],
    )


def changes(first: Manifest, second: Manifest) -> dict[str, tuple[Change, str | None]]:
    return {change.path: (change.change, change.before) for change in compare(first, second).files}


def test_each_path_is_same_changed_added_removed_or_renamed():
    first = model(a="aaa", b="bb", c="c", d="dddd")
    second = model(a="aaa", b="ee", e="f", moved="dddd")
    assert changes(first, second) == {
        "a": (Change.SAME, None),
        "b": (Change.CHANGED, None),
        "c": (Change.REMOVED, None),
        "e": (Change.ADDED, None),
        "moved": (Change.RENAMED, "d"),
    }


def test_bytes_are_counted_once_however_many_files_hold_them():
    difference = compare(model(a="aaa", b="bb"), model(a="aaa", x="cccc", y="cccc"))
    assert difference.shared_bytes == 30
    assert difference.fetch_bytes == 40
    assert difference.freed_bytes == 20


def test_a_second_copy_of_what_is_here_costs_nothing():
    difference = compare(model(a="aaa"), model(a="aaa", b="aaa"))
    assert (difference.fetch_bytes, difference.freed_bytes) == (0, 0)


def test_a_model_does_not_differ_from_itself():
    difference = compare(model(a="aaa"), model(a="aaa"))
    assert [change.change for change in difference.files] == [Change.SAME]
    assert (difference.fetch_bytes, difference.freed_bytes) == (0, 0)
