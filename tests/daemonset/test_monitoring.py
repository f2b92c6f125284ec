"""Metrics, rules and the dashboard, as Prometheus' own tool sees them, and held to each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from modelcache.config import Settings
from modelcache.domain.refs import parse_ref
from tests.agent.nodes import MIB, Models, node_settings
from tests.cluster.installing import CHART, rendered
from tests.faces.http.agents import WAIT_S, Running, running_faces
from tests.servers.faults import Fault
from tests.servers.nginx import Nginx
from tests.servers.process import ServerUnavailable, find_program

FILES = CHART / "files"
TESTS = Path(__file__).with_name("rules_test.yaml")


def promtool(*arguments: str, given: str = "", cwd: Path | None = None) -> str:
    """What it says. Raises AssertionError with its complaint."""
    try:
        program = find_program("promtool", "run `python -m tests.tools`")
    except ServerUnavailable as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [program, *arguments], input=given, capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return node_settings(
        tmp_path / "store", node="node-1", socket=tmp_path / "a.sock", listen="127.0.0.1:0"
    )


@pytest.fixture
def exposed(chosen: Settings, web: tuple[Nginx, Path]) -> str:
    """Metrics of an agent with peers that has brought two models, one of them measured."""
    models = Models(web[0].url, web[1])
    try:
        with running_faces(chosen) as running, running.client() as client:
            slow = models.add("slow", 8 * MIB, plan=lambda _: Fault(bytes_s=2 * MIB))
            for proxy, name in ((slow, "slow"), (models.add("fast"), "fast")):
                ref = parse_ref(f"{proxy.url}/{name}/")
                client.want(ref)
                assert client.wait(ref, WAIT_S).path
                client.estimate(ref)
            return scrape(running)
    finally:
        models.close()


def scrape(running: Running) -> str:
    with running.tcp() as api:
        return api.get("/metrics").text


def test_metrics_follow_prometheus_rules(exposed: str):
    assert promtool("check", "metrics", given=exposed) == ""


def test_what_is_predicted_and_measured_is_among_them(exposed: str):
    for series in (
        'modelcache_time_to_ready_seconds_bucket{le="+Inf",model="',
        'modelcache_predicted_seconds{level="0.9",model="',
        'modelcache_source_bandwidth_bytes{source="origin"}',
        'modelcache_predicted_starts_total{result="ready"}',
        "modelcache_prediction_confident 0.0",
    ):
        assert series in exposed
    missing = re.findall(r"modelcache_bytes_missing\{model=.*\} (.*)", exposed)
    assert missing == ["0.0", "0.0"]
    assert "127.0.0.1" not in "".join(
        line for line in exposed.splitlines() if line.startswith("modelcache_time")
    )


def test_rules_are_rules_and_say_what_they_should(tmp_path: Path):
    promtool("check", "rules", str(FILES / "rules.yaml"))
    for path in (FILES / "rules.yaml", TESTS):
        shutil.copy(path, tmp_path)
    assert "SUCCESS" in promtool("test", "rules", TESTS.name, cwd=tmp_path)


def test_rules_and_dashboard_ask_only_for_what_there_is(exposed: str):
    rules = yaml.safe_load((FILES / "rules.yaml").read_text())
    recorded = {
        rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule
    }
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert all(set(rule["annotations"]) == {"summary", "description"} for rule in alerts)
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    asked = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    asked += [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    asked += [each["query"] for each in dashboard["templating"]["list"]]
    names = {name for text in asked for name in re.findall(r"modelcache[_:][a-z0-9_:]+", text)}
    known = set(re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE)) | recorded
    known |= {f"{name}_bucket" for name in known}
    known |= {"modelcache_peers", "modelcache_peer_namesakes"}  # of agents with others around them
    known |= {"modelcache_scaler_checkpoints_total"}  # of the scaler
    assert names - known == set()


def test_every_panel_has_its_place():
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_the_chart_brings_both_where_they_are_asked_for():
    kinds = {each["kind"] for each in rendered()}
    assert not kinds & {"PrometheusRule"}
    asked = {"monitoring.rules": True, "monitoring.dashboard": True}
    found = {each["kind"] + "/" + each["metadata"]["name"]: each for each in rendered(asked)}
    rules = found["PrometheusRule/modelcache"]["spec"]
    assert rules == yaml.safe_load((FILES / "rules.yaml").read_text())
    board = found["ConfigMap/modelcache-dashboard"]["data"]["modelcache.json"]
    assert json.loads(board)["uid"] == "modelcache"
