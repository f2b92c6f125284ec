"""The conformance suite of the CSI project, whole, against the driver over a real agent."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from modelcache.config import Settings
from tests.csi.driver import running_driver
from tests.kernel.roots import needs_root
from tests.servers.nginx import Nginx
from tests.servers.process import ServerUnavailable, find_program

pytestmark = [pytest.mark.kernel, pytest.mark.slow, needs_root]


@pytest.mark.timeout(300)
def test_the_conformance_suite_passes(
    chosen: Settings, tmp_path: Path, pods: Path, web: tuple[Nginx, Path]
):
    try:
        program = find_program("csi-sanity", "run `make test` where Go can be had")
    except ServerUnavailable as error:
        pytest.skip(str(error))
    server, root = web
    (root / "m").mkdir()
    (root / "m/config.json").write_bytes(b"{}")
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(f"model: {server.url}/m/\n")
    with running_driver(chosen, tmp_path / "csi.sock") as driver:
        done = subprocess.run(
            [
                program,
                f"--csi.endpoint={driver.socket}",
                f"--csi.testvolumeparameters={parameters}",
                f"--csi.mountdir={pods}/mount",
                f"--csi.stagingdir={pods}/staging",
                "--ginkgo.no-color",
            ],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    ran = re.search(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped", done.stdout)
    assert ran is not None
    passed, failed, _, _ = map(int, ran.groups())  # pending ones are so for every driver
    assert failed == 0
    print(ran[0])
    assert passed >= 30
    # What it left out is for services that this driver says it does not have.
    skipped = re.findall(r"\[SKIPPED\] (.*)", done.stdout)
    assert not [reason for reason in skipped if "not supported" not in reason.lower()], skipped
