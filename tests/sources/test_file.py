"""`file://`: trees, links, what is refused, and files that change."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from modelcache.config import FileSettings, LocalCopy
from modelcache.domain.manifests import File, Manifest
from modelcache.domain.refs import parse_ref
from modelcache.errors import Forbidden, InvalidRef, NotFound, OriginChanged, UnsafePath
from modelcache.sources import file as file_source
from modelcache.sources.file import FileSource
from modelcache.sources.source import LocalTarget


@pytest.fixture
def root(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "sub/deep").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub/deep/w é#?%.bin").write_bytes(b"weights")
    (model / "empty").touch()
    return model


def ref_to(path: Path, tail: str = "") -> str:
    escaped = str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return f"file://{escaped}{tail}"


def resolve(text: str, settings: FileSettings | None = None) -> Manifest:
    ref = parse_ref(text)
    return FileSource(ref.origin(), settings or FileSettings()).resolve(ref)


def names(manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files]


def opened(path: Path) -> tuple[FileSource, File]:
    ref = parse_ref(ref_to(path))
    source = FileSource(ref.origin(), FileSettings())
    return source, source.resolve(ref).files[0]


def test_a_tree_is_listed_with_relative_names_and_absolute_keys(root):
    manifest = resolve(ref_to(root))
    assert names(manifest) == ["config.json", "empty", "sub/deep/w é#?%.bin"]
    weights = manifest.files[2]
    assert weights.key == f"{root}/sub/deep/w é#?%.bin"
    assert weights.size_bytes == 7
    assert weights.pin.holds
    assert weights.ranges
    assert resolve(ref_to(root, "/")).model_id == manifest.model_id


def test_a_single_file_is_named_by_its_last_component(root):
    path = root / "sub/deep/w é#?%.bin"
    manifest = resolve(ref_to(path))
    assert names(manifest) == ["w é#?%.bin"]


def test_resolving_twice_gives_one_model(root):
    assert resolve(ref_to(root)) == resolve(ref_to(root))


def test_the_filter_chooses(root):
    assert names(resolve(ref_to(root, "?include=*.json"))) == ["config.json"]
    assert names(resolve(ref_to(root, "?exclude=sub/*&exclude=empty"))) == ["config.json"]


@pytest.mark.parametrize("tail", ["?include=*.gguf", "/nothing", "/config.json/x", "/" + "x" * 300])
def test_what_is_not_there_is_not_found(root, tail):
    with pytest.raises(NotFound):
        resolve(ref_to(root, tail))


def test_an_empty_directory_is_not_a_model(tmp_path):
    with pytest.raises(NotFound, match="no file"):
        resolve(ref_to(tmp_path))


# Links


def test_links_to_files_are_followed_as_in_a_hugging_face_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "0123").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    ref = parse_ref(ref_to(snapshot, "?link=hard"))
    source = FileSource(ref.origin(), FileSettings())
    (file,) = source.resolve(ref).files
    assert file.size_bytes == 7
    # A hard link must name the file itself, not the link to it.
    assert source.locate(file) == LocalTarget(str(blobs / "0123"), link=True)


def test_links_to_directories_inside_the_tree_are_followed(root):
    (root / "alias").symlink_to("sub/deep")
    assert "alias/w é#?%.bin" in names(resolve(ref_to(root)))


def test_the_root_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "latest").symlink_to(root)
    assert len(resolve(ref_to(tmp_path / "latest")).files) == 3


@pytest.mark.parametrize("target", ["/", "..", ".", "../..", "/etc"])
def test_links_to_directories_elsewhere_or_upwards_are_refused(root, target):
    (root / "sub/out").symlink_to(target)
    with pytest.raises(UnsafePath, match="links to") as caught:
        resolve(ref_to(root))
    assert "sub/out/*" in caught.value.message
    assert len(names(resolve(ref_to(root, "?exclude=sub/out/*")))) == 3


def test_a_link_to_nothing_is_named(root):
    (root / "broken").symlink_to("nowhere")
    with pytest.raises(NotFound, match="broken is a link to something that does not exist"):
        resolve(ref_to(root))
    assert len(names(resolve(ref_to(root, "?exclude=broken")))) == 3


def test_links_in_a_circle_are_an_error_not_a_hang(root):
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(NotFound, match="symbolic links"):
        resolve(ref_to(root))


# What cannot be a model's file


@pytest.fixture
def odd(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    os.mkfifo(root / "fifo")
    monkeypatch.chdir(root)  # a socket's address must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("sock")
        yield root


@pytest.mark.parametrize(("name", "other"), [("fifo", "sock"), ("sock", "fifo")])
def test_pipes_and_sockets_are_refused_unless_excluded(odd, name, other):
    with pytest.raises(UnsafePath, match=f"{name} is a device, pipe or socket"):
        resolve(ref_to(odd, f"?exclude={other}"))
    assert len(resolve(ref_to(odd, f"?exclude={other}&exclude={name}")).files) == 3


def test_devices_are_refused():
    with pytest.raises(UnsafePath, match="device"):
        resolve("file:///dev/zero")


def test_names_that_are_not_utf8_are_refused_unless_excluded(root):
    os.close(os.open(os.fsencode(root) + b"/\xff.bin", os.O_CREAT))
    with pytest.raises(UnsafePath, match="Unicode"):
        resolve(ref_to(root))
    assert len(names(resolve(ref_to(root, "?include=*.json")))) == 1


def test_names_with_control_characters_are_refused(root):
    (root / "a\nb").touch()
    with pytest.raises(UnsafePath, match="control"):
        resolve(ref_to(root))


def test_names_that_differ_by_case_are_refused(root):
    (root / "CONFIG.json").touch()
    with pytest.raises(UnsafePath, match="case"):
        resolve(ref_to(root))


def test_a_tree_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "/".join(["d"] * 70)).mkdir(parents=True)
    with pytest.raises(UnsafePath, match="nested deeper"):
        resolve(ref_to(tmp_path))


def test_a_tree_of_too_many_files_is_refused(root, monkeypatch):
    monkeypatch.setattr(file_source, "FILES_MAX", 2)
    with pytest.raises(UnsafePath, match="over 2 files"):
        resolve(ref_to(root))


_AS_NOBODY = """
import os, sys
from modelcache.config import FileSettings
from modelcache.domain.refs import parse_ref
from modelcache.errors import ModelcacheError
from modelcache.sources.file import FileSource
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
ref = parse_ref(sys.argv[1])
try:
    print(len(FileSource(ref.origin(), FileSettings()).resolve(ref).files))
except ModelcacheError as error:
    print(error.code, error.message)
"""


@pytest.mark.parametrize("name", ["config.json", "sub"])
def test_what_may_not_be_read_is_forbidden(name):
    with TemporaryDirectory() as folder:  # pytest's own are closed to everybody else
        top = Path(folder)
        top.chmod(0o755)
        (top / "sub").mkdir()
        (top / "sub/x").touch()
        (top / "config.json").touch()
        (top / name).chmod(0)
        command = [sys.executable, "-c", _AS_NOBODY, ref_to(top)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (top / name).chmod(0o755)
    assert done.stdout.startswith("forbidden"), done
    assert f"{top}/{name}" in done.stdout


# Reading


def test_a_located_file_is_the_file(root):
    source, file = opened(root / "config.json")
    assert source.locate(file) == LocalTarget(str(root / "config.json"), link=False)
    source.check_pin(file, {})
    assert source.checksums(file, {}) == ()


def rewrite(path: Path) -> None:
    path.write_bytes(b"longer than it was")


def replace(path: Path) -> None:
    """Another file of the same size and date under the same name."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [rewrite, replace, touch])
def test_a_changed_file_is_noticed(root, change):
    source, file = opened(root / "config.json")
    change(root / "config.json")
    with pytest.raises(OriginChanged, match="pull again"):
        source.locate(file)
    with pytest.raises(OriginChanged):
        source.check_pin(file, {})


def test_a_removed_file_is_not_found(root):
    source, file = opened(root / "config.json")
    (root / "config.json").unlink()
    with pytest.raises(NotFound):
        source.locate(file)


def test_a_hard_link_made_by_the_store_is_no_change(root, tmp_path):
    source, file = opened(root / "config.json")
    (tmp_path / "blob").hardlink_to(root / "config.json")
    assert source.locate(file)


def test_a_replaced_file_is_another_model(root):
    before = resolve(ref_to(root)).model_id
    replace(root / "config.json")
    assert resolve(ref_to(root)).model_id != before


@pytest.mark.parametrize(
    ("tail", "setting", "link", "share"),
    [
        ("", LocalCopy.REFLINK, False, True),
        ("", LocalCopy.COPY, False, False),
        ("", LocalCopy.HARDLINK, True, True),
        ("?link=hard", LocalCopy.REFLINK, True, True),
    ],
)
def test_a_hard_link_is_made_only_when_asked_for(root, tail, setting, link, share):
    ref = parse_ref(ref_to(root, tail))
    source = FileSource(ref.origin(), FileSettings(setting))
    target = source.locate(source.resolve(ref).files[0])
    assert (target.link, target.share) == (link, share)


def test_other_values_of_the_link_option_are_refused(root):
    with pytest.raises(InvalidRef, match="link=hard"):
        FileSource(parse_ref(ref_to(root, "?link=soft")), FileSettings())


def test_a_missing_permission_is_told_from_a_missing_file():
    translated = file_source._translated(PermissionError(13, "no", "/x"), "/x")
    assert isinstance(translated, Forbidden)
