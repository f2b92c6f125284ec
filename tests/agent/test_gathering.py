"""What is pushed, and what stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.agent import Engine, gathering
from modelcache.agent.digests import ENTRIES_MAX, Digests
from modelcache.agent.gathering import gather, opened
from modelcache.config import StoreSettings
from modelcache.domain.refs import FileFilter, parse_ref
from modelcache.errors import NotFound, NotInStore, SourceRefused, UnsafePath
from tests.agent.support import settings

ALL = FileFilter()
DIGEST = "sha256:" + 64 * "a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    for name in ("b.bin", "a.json", "sub/c.txt"):
        (root / name).write_text(name)
    return root


def names(root: Path, accepted: FileFilter = ALL, **how: bool) -> list[str]:
    return [file.name for file in gather(root, accepted, **how).files]


def test_files_come_by_name_with_their_sizes(folder):
    found = gather(folder, ALL).files
    assert [(file.name, file.size_bytes) for file in found] == [
        ("a.json", 6),
        ("b.bin", 5),
        ("sub/c.txt", 9),
    ]


def test_a_file_alone_has_its_own_name(folder):
    assert names(folder / "b.bin") == ["b.bin"]


def test_filters_decide(folder):
    assert names(folder, FileFilter(include=("*.json", "*.txt"))) == ["a.json", "sub/c.txt"]
    assert names(folder, FileFilter(exclude=("sub/*",))) == ["a.json", "b.bin"]


def test_hidden_files_stay_behind_and_are_told(folder):
    (folder / ".git").mkdir()
    (folder / ".git/config").touch()
    (folder / "sub/.env").write_text("TOKEN=secret")
    found = gather(folder, ALL)
    assert [file.name for file in found.files] == ["a.json", "b.bin", "sub/c.txt"]
    assert found.note == "left out, because hidden: .git, sub/.env (--hidden takes them)"
    assert ".git/config" in names(folder, hidden=True)


def test_many_hidden_files_are_one_line(folder):
    for number in range(8):
        (folder / f".h{number}").touch()
    assert gather(folder, ALL).note.count(".h") == 5
    assert "and 3 more" in gather(folder, ALL).note


@pytest.mark.parametrize("how", ["empty", "hidden", "filtered"])
def test_nothing_to_push_is_an_error(tmp_path, how):
    root = tmp_path / "model"
    root.mkdir()
    if how == "hidden":
        (root / ".x").touch()
    if how == "filtered":
        (root / "x").touch()
    with pytest.raises(NotFound, match="no file to push"):
        gather(root, FileFilter(include=("*.safetensors",)))


def test_links_inside_are_followed_and_links_out_are_refused(folder, tmp_path):
    (folder / "inside").symlink_to("b.bin")
    (folder / "folder").symlink_to("sub")
    assert names(folder) == ["a.json", "b.bin", "folder/c.txt", "inside", "sub/c.txt"]
    (tmp_path / "secret").write_text("x")
    (folder / "out").symlink_to("../secret")
    with pytest.raises(UnsafePath, match=r"--exclude 'out'.*--follow-links"):
        gather(folder, ALL)
    assert "out" not in names(folder, FileFilter(exclude=("out",)))
    assert "out" in names(folder, follow=True)


def test_a_folder_that_holds_itself_is_refused(folder):
    (folder / "sub/up").symlink_to("..")
    with pytest.raises(UnsafePath):
        gather(folder, ALL, follow=True)


def test_broken_links_pipes_and_odd_names_are_refused(folder):
    (folder / "gone").symlink_to("nowhere")
    with pytest.raises(NotFound):
        gather(folder, ALL)
    (folder / "gone").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(UnsafePath, match="pipe"):
        gather(folder, ALL)
    (folder / "pipe").unlink()
    (folder / "new\nline").touch()
    with pytest.raises(UnsafePath):
        gather(folder, ALL)


def test_more_files_than_a_manifest_holds_are_refused(folder, monkeypatch):
    monkeypatch.setattr(gathering, "FILES_MAX", 2)
    with pytest.raises(SourceRefused, match="--exclude"):
        gather(folder, ALL)


def test_a_model_of_the_store_is_held_and_brings_its_digests(folder, tmp_path):
    chosen = settings(tmp_path / "store")
    ref = f"file://{folder}"
    with Engine(chosen) as engine:
        snapshot = engine.pull(parse_ref(ref))
        for what in (snapshot.model_id[:8], snapshot.model_id):
            with opened(what, ALL, chosen.store, hidden=False, follow=False) as found:
                assert [file.name for file in found.files] == ["a.json", "b.bin", "sub/c.txt"]
                assert found.files[0].path == snapshot.path / "a.json"
                assert [lease.kind for lease in engine.store.leases(snapshot.model_id)] == ["push"]
        assert engine.store.leases(snapshot.model_id) == []


def test_what_is_nothing_is_said_and_makes_no_store(tmp_path):
    store = StoreSettings(path=tmp_path / "store")
    with (
        pytest.raises(NotFound, match="neither a file or directory nor a model"),
        opened("no-such-thing", ALL, store, hidden=False, follow=False),
    ):
        pass
    with (
        pytest.raises(NotInStore, match="was not pulled"),
        opened("s3://bucket/m", ALL, store, hidden=False, follow=False),
    ):
        pass
    assert not store.path.exists()


def test_digests_are_remembered_of_files_at_rest(tmp_path, folder):
    status = (folder / "b.bin").stat()
    digests = Digests(tmp_path / "cache")
    digests.remember(status, "raw", DIGEST, status.st_ctime + 1)
    assert digests.find(status, "raw") is None
    digests.remember(status, "raw", DIGEST, status.st_ctime + 3)
    assert digests.find(status, "raw") == DIGEST
    assert digests.find(status, "tar") is None
    digests.remember_place("r", "a/b", DIGEST)
    digests.save()
    again = Digests(tmp_path / "cache")
    assert again.find(status, "raw") == DIGEST
    assert again.repository("r", DIGEST) == "a/b"
    assert again.repository("other", DIGEST) is None
    (folder / "b.bin").write_text("other")
    assert again.find((folder / "b.bin").stat(), "raw") is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": 3}', '{"files": {"x": "y"}}'])
def test_what_was_remembered_badly_is_forgotten(tmp_path, text):
    (tmp_path / "pushed.json").write_text(text)
    digests = Digests(tmp_path)
    digests.remember_place("r", "a/b", DIGEST)
    digests.save()
    assert Digests(tmp_path).repository("r", DIGEST) == "a/b"


def test_what_is_remembered_is_bounded(tmp_path):
    digests = Digests(tmp_path)
    for number in range(ENTRIES_MAX + 5):
        digests.remember_place("r", "a", f"sha256:{number}")
    assert digests.repository("r", "sha256:4") is None
    assert digests.repository("r", "sha256:5") == "a"


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "file").touch()
    digests = Digests(tmp_path / "file")
    digests.remember_place("r", "a/b", DIGEST)
    digests.save()
