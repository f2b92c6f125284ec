"""Settings from defaults, file and environment, and errors that say where and what."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.config import (
    IoMode,
    LocalCopy,
    Settings,
    default_store,
    load_settings,
    parse_duration,
    parse_size,
)
from modelcache.errors import InvalidConfig


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def load(path: Path | None = None, **environment: str) -> Settings:
    return load_settings(path, {"HOME": "/nonexistent", **environment})


def test_without_file_and_environment_the_defaults_hold():
    assert load() == Settings()


def test_a_file_sets_every_kind_of_value(toml):
    path = toml(
        """
        max_age_s = 60
        [store]
        path = "/data/é"
        quota_bytes = "1.5 TB"
        high_watermark = 0.9
        [transfer]
        io = "direct"
        connections_max = 128
        stall_timeout_s = "2m"
        verify_md5 = true
        [s3]
        endpoint = "http://minio:9000"
        [http]
        headers = ["Authorization: Bearer x", "X-Y: z"]
        [file]
        link = "hardlink"
        """
    )
    settings = load(path)
    assert settings.max_age_s == 60.0
    assert settings.store.path == Path("/data/é")
    assert settings.store.quota_bytes == 1_500_000_000_000
    assert settings.store.high_watermark == 0.9
    assert settings.transfer.io is IoMode.DIRECT
    assert settings.transfer.connections_max == 128
    assert settings.transfer.stall_timeout_s == 120.0
    assert settings.transfer.verify_md5 is True
    assert settings.s3.endpoint == "http://minio:9000"
    assert settings.http.headers == ("Authorization: Bearer x", "X-Y: z")
    assert settings.file.link is LocalCopy.HARDLINK


def test_the_environment_sets_every_kind_of_value():
    settings = load(
        MODELCACHE_STORE_PATH="/data",
        MODELCACHE_STORE_QUOTA_BYTES="10GiB",
        MODELCACHE_TRANSFER_IO="buffered",
        MODELCACHE_TRANSFER_VERIFY_MD5="yes",
        MODELCACHE_TRANSFER_STALL_TIMEOUT_S="1m",
        MODELCACHE_HTTP_HEADERS="A: 1\nB: 2",
        MODELCACHE_MAX_AGE_S="1h",
        MODELCACHE_STORE_LOW_WATERMARK="",
    )
    assert settings.store.path == Path("/data")
    assert settings.store.quota_bytes == 10 << 30
    assert settings.transfer.io is IoMode.BUFFERED
    assert settings.transfer.verify_md5 is True
    assert settings.transfer.stall_timeout_s == 60.0
    assert settings.http.headers == ("A: 1", "B: 2")
    assert settings.max_age_s == 3600.0
    assert settings.store.low_watermark == Settings().store.low_watermark


def test_the_environment_wins_over_the_file(toml):
    path = toml('[transfer]\nio = "direct"\nconnections_max = 9\n')
    settings = load(path, MODELCACHE_TRANSFER_IO="auto")
    assert settings.transfer.io is IoMode.AUTO
    assert settings.transfer.connections_max == 9


def test_the_short_name_of_the_store_gives_way_to_the_long_one():
    assert load(MODELCACHE_STORE="/a").store.path == Path("/a")
    assert load(MODELCACHE_STORE="/a", MODELCACHE_STORE_PATH="/b").store.path == Path("/b")


def test_names_that_other_programs_own_are_left_alone():
    assert load(MODELCACHE_SOMETHING_ELSE="x") == Settings()


def test_the_file_is_found_in_the_usual_places(tmp_path: Path):
    home = tmp_path / ".config/modelcache"
    home.mkdir(parents=True)
    (home / "config.toml").write_text("max_age_s = 1")
    assert load(HOME=str(tmp_path)).max_age_s == 1
    other = tmp_path / "other/modelcache"
    other.mkdir(parents=True)
    (other / "config.toml").write_text("max_age_s = 2")
    assert load(HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path / "other")).max_age_s == 2
    named = tmp_path / "named.toml"
    named.write_text("max_age_s = 3")
    assert load(HOME=str(tmp_path), MODELCACHE_CONFIG=str(named)).max_age_s == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[stor]\n", "unknown setting 'stor'"),
        ("[store]\npth = 1\n", "unknown setting 'pth'"),
        ("store = 1\n", "[store]"),
        ("[store\n", "not valid TOML"),
        ("[store]\npath = ''\n", "store.path"),
        ("[store]\npath = 7\n", "store.path: expected text"),
        ("[store]\nquota_bytes = 'lots'\n", "512MiB"),
        ("[store]\nquota_bytes = -1\n", "store.quota_bytes must not be negative"),
        ("[store]\nquota_bytes = true\n", "store.quota_bytes"),
        ("[store]\nreserve_bytes = -1\n", "store.reserve_bytes must not be negative"),
        ("[store]\nhigh_watermark = 1.5\n", "watermark"),
        ("[store]\nlow_watermark = 0.99\n", "watermark"),
        ("[store]\nhigh_watermark = nan\n", "watermark"),
        ("[store]\nchunk_bytes = 1000\n", "multiple"),
        ("[transfer]\nio = 'fast'\n", "is none of direct, buffered, auto"),
        ("[transfer]\nverify_md5 = 'maybe'\n", "yes or no"),
        ("[transfer]\nmemory_bytes = 1\n", "at least"),
        ("[transfer]\nconnections_start = 0\n", "connections_start"),
        ("[transfer]\nconnections_max = 0\n", "connections_max"),
        ("[transfer]\nretries_max = -1\n", "retries_max"),
        ("[transfer]\nbandwidth_limit_bytes_s = -1\n", "bandwidth_limit_bytes_s"),
        ("[transfer]\nstall_timeout_s = 0\n", "stall_timeout_s"),
        ("[transfer]\nstall_timeout_s = inf\n", "finite"),
        ("[transfer]\nstall_timeout_s = 'soon'\n", "90s"),
        ("[transfer]\nconnect_timeout_s = -1\n", "connect_timeout_s"),
        ("[s3]\nstyle = 'wild'\n", "path or virtual"),
        ("[s3]\nendpoint = ['x']\n", "s3.endpoint: expected text, found list"),
        ("[http]\nheaders = [1]\n", "http.headers: expected text"),
        ("[file]\nlink = 'soft'\n", "is none of reflink, hardlink, copy"),
        ("max_age_s = -1\n", "max_age_s"),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_place(toml, text: str, says: str):
    path = toml(text)
    with pytest.raises(InvalidConfig) as caught:
        load(path)
    assert says in caught.value.message
    assert caught.value.exit_code == 2


def test_a_bad_environment_is_an_error_that_names_the_setting():
    with pytest.raises(InvalidConfig, match=r"environment: transfer\.io: 'x'"):
        load(MODELCACHE_TRANSFER_IO="x")


def test_a_named_file_must_be_there(tmp_path: Path):
    missing = tmp_path / "none.toml"
    with pytest.raises(InvalidConfig, match="No such file"):
        load(missing)
    with pytest.raises(InvalidConfig, match="No such file"):
        load(MODELCACHE_CONFIG=str(missing))


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfig, match="not valid TOML"):
        load(path)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512MiB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("2T", 2_000_000_000_000),
        ("1Ki", 1024),
        ("10kb", 10_000),
        ("0.5KiB", 512),
        ("9007199254740993", 9_007_199_254_740_993),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5.2", "5iB", "1XB", "1e6", "٣"])
def test_what_is_not_a_size(text: str):
    with pytest.raises(InvalidConfig):
        parse_size(text)


@given(st.integers(0, 1 << 70))
def test_plain_numbers_of_bytes_are_exact(size: int):
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1.5h", 5400), ("2d", 172_800), ("250ms", 0.25), ("7", 7)],
)
def test_durations(text: str, seconds: float):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1w", "1 s s"])
def test_what_is_not_a_duration(text: str):
    with pytest.raises(InvalidConfig):
        parse_duration(text)


def test_the_default_store_follows_the_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_store() == Path("/var/lib/modelcache")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_store() == Path("/somewhere/modelcache")


def test_another_store_changes_nothing_else():
    settings = Settings().with_store(Path("/x"))
    assert settings.store.path == Path("/x")
    assert settings.transfer == Settings().transfer
