"""The unit for systemd says what the agent needs, and systemd understands it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from modelcache.config import AgentSettings
from modelcache.main.serving import GRACE_S

UNIT = Path(__file__).parents[2] / "daemonset/systemd/modelcache-agent.service"
LATER = {"RestartSteps", "RestartMaxDelaySec"}  # systemd 254; older ones pass them over


def service() -> dict[str, str]:
    parser = RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


def test_the_agent_is_given_the_time_that_it_takes_and_is_watched():
    unit = service()
    assert (unit["Type"], unit["NotifyAccess"]) == ("notify", "main")
    assert float(unit["WatchdogSec"]) > 0
    assert float(unit["TimeoutStopSec"]) > AgentSettings().shutdown_s + GRACE_S
    assert unit["ExecStart"].split()[1:] == ["agent"]
    assert (unit["StateDirectory"], unit["RuntimeDirectory"]) == ("modelcache", "modelcache")


def test_systemd_understands_all_of_it(tmp_path: Path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here; it comes with the package systemd")
    known = tmp_path / UNIT.name
    known.write_text(UNIT.read_text().replace("/opt/modelcache/bin/modelcache", sys.executable))
    done = subprocess.run(
        [program, "verify", "--man=no", known],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not [line for line in ours if not any(name in line for name in LATER)]
