"""A pull on the screen: bars on a terminal, a line now and then elsewhere, silence on request."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from modelcache.faces import progress
from modelcache.faces.progress import Bars, Lines, Silence, describe, display
from modelcache.transfer.report import Phase
from tests.faces.reports import moment, under_way


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(shown, *, width: int = 100) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width, force_terminal=False).print(progress._drawing(shown))
    return screen.getvalue()


def said(capsys) -> list[str]:
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err.splitlines()


def test_a_log_gets_lines_a_terminal_bars_and_who_wants_quiet_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(display(quiet=False)) is Lines
    assert type(display(quiet=True)) is Silence
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(display(quiet=False)) is Bars


def test_silence_is_silent(capsys):
    with Silence() as shown:
        shown(moment(10))
    assert not said(capsys)


def test_lines_come_with_every_tenth_of_the_way_not_with_every_moment(capsys):
    with Lines() as shown:
        for done in range(0, 1001, 5):
            shown(moment(done, elapsed_s=done / 1000))
    assert 10 <= len(said(capsys)) <= 12


def test_a_pull_that_hardly_moves_is_told_of_every_five_seconds(capsys):
    with Lines() as shown:
        for second in range(31):
            shown(moment(1, elapsed_s=float(second)))
    assert len(said(capsys)) == 7


def test_a_new_phase_is_told_at_once_and_the_end_is_left_to_the_summary(capsys):
    with Lines() as shown:
        for phase in Phase:
            shown(moment(1000, phase=phase))
    lines = said(capsys)
    words = ["resolving", "waiting", "fetching", "pushing", "publishing"]
    assert [line.split()[0] for line in lines] == words


def test_a_line_has_share_bytes_rate_time_left_connections_and_retries():
    line = describe(moment(250, rate_bytes_s=50.0, eta_s=15.0, connections=4, retries=2))
    assert line == (
        "fetching s3://b/m: 25 %, 250 B of 1.0 kB, 50 B/s, 15.0 s left, 4 connections, 2 retries"
    )


def test_one_retry_is_one_retry():
    assert describe(moment(250, retries=1)).endswith(", 1 retry")


def test_nothing_is_divided_by_a_total_that_is_not_known_yet():
    assert describe(moment(phase=Phase.RESOLVING, total_bytes=0)) == "resolving s3://b/m"
    assert describe(moment(total_bytes=0)) == "fetching s3://b/m"
    assert drawn(moment(total_bytes=0)).strip() == "fetching s3://b/m"


def test_a_pull_is_not_done_before_it_is_done():
    assert "100 %" not in describe(moment(99_999, total_bytes=100_000))


@pytest.mark.parametrize("files", [1, 7, 64])
def test_bars_fill_a_screen_at_most_however_many_files_there_are(files):
    picture = drawn(moment(500, active=under_way(files)))
    lines = picture.splitlines()
    assert len(lines) <= progress.BARS_MAX + 3
    assert f"model-{min(files, progress.BARS_MAX) - 1:05d}.safetensors" in picture
    hidden = files - progress.BARS_MAX
    assert (f"+ {hidden} more under way" in picture) == (hidden > 0)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_bars_fit_any_width(width):
    name = "a/very/long/folder/name/that/goes/on/and/on/model-{:05d}-of-00100.safetensors"
    picture = drawn(moment(500, active=under_way(64, name)), width=width)
    assert max(map(len, picture.splitlines())) <= width
    assert len(picture.splitlines()) <= progress.BARS_MAX + 7


def test_file_names_are_shown_as_they_are_not_as_markup():
    for name in ("[red]x[/red]", "x[/b]"):
        assert name in drawn(moment(500, active=under_way(1, name)))


def test_bars_are_wiped_when_the_pull_ends(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Bars() as shown:
        shown(moment(500, active=under_way(2)))
    assert screen.getvalue().endswith("\x1b[2K")
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is back
