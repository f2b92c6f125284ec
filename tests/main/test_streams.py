"""Standard output belongs to whoever reads it, standard error to people; both may go away."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.agent.support import random_bytes
from tests.main.support import PROGRAM, WAIT_S, Shell

FULL = Path("/dev/full")


def on_a_terminal(shell: Shell, *arguments: str) -> tuple[int, str]:
    """Run with standard error on a pseudo-terminal of 80 columns; its output."""
    master, slave = pty.openpty()
    environment = shell.environment(TERM="xterm", COLUMNS="80", LINES="24")
    process = subprocess.Popen(
        [PROGRAM, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    seen = b""
    try:
        while piece := os.read(master, 65536):
            seen += piece
    except OSError:
        pass  # EIO: the other end is closed
    finally:
        os.close(master)
    return process.wait(WAIT_S), seen.decode()


@pytest.mark.slow
def test_a_terminal_shows_a_few_bars_of_many_files_then_the_summary(shell: Shell, tmp_path: Path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(120):
        (folder / f"part-{number:03d}.bin").write_bytes(random_bytes(200_000, number))
    code, seen = on_a_terminal(shell, "pull", f"file://{folder}", "--limit-rate", "16MB")
    assert code == 0
    assert "━" in seen
    frames = seen.split("\x1b[2K")
    assert max(frame.count("\n") for frame in frames) <= 10
    summary = seen.rpartition("\x1b[2K")[2]
    assert "120 files" in summary
    assert "fetched 24.0 MB" in summary
    assert "\x1b[?25h" in seen  # the cursor is back


def test_without_a_terminal_progress_is_plain_lines(shell: Shell, model: Path):
    done = shell.run("pull", f"file://{model}")
    assert "\x1b" not in done.err
    assert "\r" not in done.err
    assert done.err.startswith("resolving file://")
    assert done.err.count("\n") < 20


@pytest.mark.parametrize("arguments", [("ls",), ("ls", "--json"), ("--help",)])
def test_a_reader_that_leaves_ends_the_command_without_words(shell: Shell, arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [PROGRAM, *arguments],
        env=shell.environment(),
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode in {0, 1}


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [("ls",), ("ls", "--json"), ("version",)])
def test_a_result_that_cannot_be_written_is_a_failure_in_one_line(shell: Shell, arguments):
    with FULL.open("wb") as full:
        done = subprocess.run(
            [PROGRAM, *arguments],
            env=shell.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "modelcache: cannot write the result: No space left on device\n"


def test_help_and_import_load_nothing_heavy(shell: Shell):
    script = (
        "import sys, modelcache; assert 'modelcache.agent' not in sys.modules\n"
        "sys.argv = ['modelcache', '--help']\n"
        "from modelcache.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'botocore', 'rich', 'awscrt', 'ssl', 'http', 'asyncio', 'modelcache.agent'}\n"
        "sys.stderr.write(','.join(sorted(heavy & set(sys.modules))))\n"
    )
    python = str(PROGRAM.with_name("python"))
    done = subprocess.run(
        [python, "-c", script], env=shell.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: modelcache")


def test_a_warm_pull_loads_no_network(shell: Shell, model: Path):
    assert shell.run("pull", f"file://{model}", "-q").code == 0
    done = shell.run("pull", f"file://{model}", "--max-age", "1h", PYTHONPROFILEIMPORTTIME="1")
    assert done.code == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.err.splitlines() if "|" in line}
    assert "modelcache.agent" in loaded
    assert not loaded & {"botocore", "http.client", "modelcache.sources.file", "rich"}


@pytest.mark.slow
def test_the_shell_completes_commands_and_models(shell: Shell, model: Path):
    # The shell is the one that calls: whoever runs the tests may have none above them.
    script = subprocess.run(
        ["bash", "-c", '"$0" --show-completion; exit $?', PROGRAM],
        env=shell.environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert script.returncode == 0, script.stderr
    assert "_MODELCACHE_COMPLETE" in script.stdout
    pulled = shell.run("pull", f"file://{model}", "--json").json["model_id"]

    def completed(words: str) -> list[str]:
        number = str(len(words.split(" ")) - 1)
        variables = {"COMP_WORDS": words, "COMP_CWORD": number}
        return shell.run(_MODELCACHE_COMPLETE="complete_bash", **variables).out.split()

    assert completed("modelcache pu") == ["pull", "push"]
    assert completed(f"modelcache show {pulled[:3]}") == [pulled[:12]]
    shell.store = Path(__file__)
    assert completed("modelcache show a") == []
