"""The doctor: a verdict for everything, and nothing left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from modelcache.config import Settings, load_settings
from modelcache.domain.ranges import MIB
from modelcache.domain.refs import parse_ref
from modelcache.faces import doctor
from modelcache.faces.doctor import Finding, Verdict, examine, report_text
from modelcache.sources.web import asking
from tests.main.conftest import origin  # noqa: F401 - a fixture
from tests.servers.faults import FaultProxy
from tests.servers.process import free_port


@pytest.fixture(autouse=True)
def _small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_TEST_BYTES", 16 * MIB)
    monkeypatch.setattr(doctor, "NETWORK_TEST_BYTES", 16 * MIB)
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)


def findings(store: Path, ref: str | None = None) -> dict[str, Finding]:
    settings = Settings().with_store(store)
    return {item.name: item for item in examine(settings, parse_ref(ref) if ref else None)}


def test_every_finding_has_a_verdict_and_nothing_is_left_behind(tmp_path: Path):
    found = findings(tmp_path / "not" / "there")
    assert {"system", "limits", "store", "xattr", "reflink", "page cache", "network"} <= set(found)
    assert all(isinstance(item.verdict, Verdict) and item.detail for item in found.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("cheap", "said"), [(0, "writes past it"), (64 << 30, "up to 17.2 GB")])
def test_what_auto_does_here_is_told(tmp_path: Path, monkeypatch, cheap: int, said: str):
    monkeypatch.setattr(doctor, "cheap_memory_bytes", lambda: cheap)
    assert said in findings(tmp_path)["page cache"].detail


def test_a_folder_with_a_store_is_left_as_it_was(tmp_path: Path):
    (tmp_path / "store.json").write_text("{}")
    findings(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_a_filesystem_without_direct_writes_is_named(tmp_path: Path, monkeypatch):
    plain_open = os.open

    def refusing(path, flags, *more, **named):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refusing)
    found = findings(tmp_path)["O_DIRECT"]
    assert found.verdict is Verdict.WARN
    assert "page cache" in found.advice
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_for_the_measurement_is_a_failure(tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(doctor.files, "preallocate", full)
    found = findings(tmp_path)["disk"]
    assert found.verdict is Verdict.FAIL
    assert "No space left" in found.detail
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_in_a_writing_thread_is_a_failure(tmp_path: Path, monkeypatch):
    plain_write = os.pwrite

    def failing(fd, data, offset):
        if len(data) > doctor.files.ALIGNMENT:
            raise OSError(errno.EIO, "Input/output error")
        return plain_write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    found = findings(tmp_path)["disk"]
    assert found.verdict is Verdict.FAIL
    assert "Input/output error" in found.detail


def test_what_a_streaming_mount_would_meet_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0)
    monkeypatch.setattr(doctor, "FUSE", tmp_path)
    monkeypatch.setattr(doctor.platform, "release", lambda: "6.18.1-cloud")
    assert "outlive their agent" in findings(tmp_path)["streaming"].detail
    monkeypatch.setattr(doctor.platform, "release", lambda: "5.15rc1")
    assert "without passthrough" in findings(tmp_path)["streaming"].detail
    monkeypatch.setattr(doctor, "FUSE", tmp_path / "missing")
    assert findings(tmp_path)["streaming"].verdict is Verdict.WARN


def test_a_few_open_files_are_too_few(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (1024, 4096))
    found = findings(tmp_path)["limits"]
    assert found.verdict is Verdict.WARN
    assert "ulimit -n" in found.advice


@pytest.mark.parametrize("below", ["", "store"])
def test_a_file_where_the_store_should_be_is_a_failure(tmp_path: Path, below: str):
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = findings(blocked / below)["store"]
    assert found.verdict is Verdict.FAIL
    assert str(blocked) in found.detail


def test_a_quota_larger_than_the_disk_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MODELCACHE_STORE_QUOTA_BYTES", "900PB")
    found = {item.name: item for item in examine(load_settings().with_store(tmp_path), None)}
    assert found["quota"].verdict is Verdict.WARN


def test_an_origin_that_answers_is_counted_and_its_clock_compared(
    tmp_path: Path,
    origin: FaultProxy,  # noqa: F811 - pytest's way
):
    found = findings(tmp_path / "store", f"{origin.url}/")
    assert found["origin"].verdict is Verdict.OK
    assert "4 files, 11.5 MB" in found["origin"].detail
    assert found["clock"].verdict is Verdict.OK


def test_an_endpoint_nobody_listens_on_is_a_failure(tmp_path: Path):
    port = free_port()
    found = findings(tmp_path / "store", f"http://127.0.0.1:{port}/m")["origin"]
    assert found.verdict is Verdict.FAIL
    assert f"127.0.0.1:{port}" in found.detail


def test_credentials_are_told_of_and_not_told(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    found = findings(tmp_path)["s3"]
    assert found.verdict is Verdict.OK
    assert "AKIA..." in found.detail
    assert "EXAMPLE" not in str(found)
    assert "hunter2" not in str(found)


def test_the_report_is_aligned_and_puts_advice_below():
    lines = report_text(
        [Finding("a", Verdict.OK, "fine"), Finding("long", Verdict.FAIL, "bad", "do this")]
    ).splitlines()
    assert lines == ["ok    a     fine", "fail  long  bad", "            -> do this"]
