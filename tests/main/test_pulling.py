"""Pulls through real servers: what is asked again, what options do, what explain tells."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest

from tests.agent.support import tree
from tests.main.conftest import FILES, write
from tests.main.support import Shell
from tests.servers.faults import SLOW_DOWN, Fault, FaultProxy, Request
from tests.servers.minio import Minio
from tests.servers.moto import Moto
from tests.servers.uploads import s3_client, upload_tree

TOTAL = sum(map(len, FILES.values()))


def failing_once(*faults: Fault):
    """A plan: each fault for one GET of the weights."""
    left = list(faults)

    def plan(request: Request) -> Fault | None:
        wanted = request.method == "GET" and request.path.endswith("a.safetensors")
        return left.pop() if left and wanted and request.span else None

    return plan


def test_a_second_pull_asks_for_no_bytes_and_a_third_for_nothing(shell: Shell, origin: FaultProxy):
    url = f"{origin.url}/"
    assert shell.call("pull", url).code == 0
    weights = len(origin.gets(".safetensors"))
    second = shell.call("pull", url)
    assert "nothing to fetch, its origin was asked" in second.err
    assert len(origin.gets(".safetensors")) == weights
    asked = len(origin.requests)
    third = shell.call("pull", url, "--max-age", "5m")
    assert "its origin was not asked" in third.err
    assert len(origin.requests) == asked
    assert shell.call("pull", url, "--max-age", "5m", "--refresh").code == 0
    assert len(origin.requests) > asked


def test_a_fresh_answer_needs_no_origin_that_is_up(shell: Shell, web):
    server, root = web
    write(root)
    path = shell.call("pull", f"{server.url}/").out
    server.stop()
    assert shell.call("pull", f"{server.url}/", "--max-age", "5m").out == path
    refused = shell.call("pull", f"{server.url}/")
    assert refused.code == 1
    assert "connection refused" in refused.complaint


def test_s3_brings_a_tree_and_a_pinned_version_stays(shell: Shell, minio: Minio, model: Path):
    upload_tree(minio, "cli-tree", "m", model)
    shell.env["MODELCACHE_S3_ENDPOINT"] = minio.url
    done = shell.run("pull", "s3://cli-tree/m", "--json")
    assert done.code == 0, done.err
    assert tree(Path(done.json["path"])) == FILES
    assert done.json["ref"] == "s3://cli-tree/m"


def test_a_version_is_a_model_of_its_own(shell: Shell, minio: Minio):
    client = s3_client(minio)
    client.create_bucket(Bucket="cli-versions")
    client.put_bucket_versioning(
        Bucket="cli-versions", VersioningConfiguration={"Status": "Enabled"}
    )
    versions = [
        client.put_object(Bucket="cli-versions", Key="w.bin", Body=body)["VersionId"]
        for body in (b"old", b"new")
    ]
    shell.env["MODELCACHE_S3_ENDPOINT"] = minio.url
    for version, body in zip(versions, (b"old", b"new"), strict=True):
        done = shell.call("pull", f"s3://cli-versions/w.bin?version-id={version}", "-q")
        assert done.code == 0, done.err
        assert (Path(done.out.strip()) / "w.bin").read_bytes() == body


def test_moto_serves_as_well(shell: Shell, moto: Moto, model: Path):
    upload_tree(moto, "cli-moto", "m", model, checksums=False)
    done = shell.call("pull", f"s3://cli-moto/m?endpoint={moto.url}", "-q")
    assert done.code == 0, done.err
    assert tree(Path(done.out.strip())) == FILES


@pytest.mark.parametrize("mode", ["direct", "buffered", "auto"])
def test_every_way_to_write_gives_the_same_bytes(shell: Shell, origin: FaultProxy, mode: str):
    done = shell.call("pull", f"{origin.url}/", "--io", mode, "--json")
    assert tree(Path(done.json["path"])) == FILES
    assert done.json["report"]["io"] in ({mode} if mode != "auto" else {"direct", "buffered"})


@pytest.mark.slow
def test_a_rate_limit_is_kept(shell: Shell, origin: FaultProxy):
    started_s = monotonic()
    done = shell.run("pull", f"{origin.url}/", "--limit-rate", "8MB", "--connections", "3")
    assert done.code == 0
    assert monotonic() - started_s > 0.8 * TOTAL / 8e6
    assert "limit" in shell.call("explain", f"{origin.url}/", "-q").out


def test_connections_are_a_ceiling(shell: Shell, origin: FaultProxy):
    done = shell.run("pull", f"{origin.url}/", "--connections", "1", "--json")
    assert done.json["report"]["connections_peak"] == 1


@pytest.mark.parametrize("link", ["reflink", "hardlink", "copy"])
def test_local_files_enter_in_three_ways(shell: Shell, model: Path, link: str):
    done = shell.call("pull", f"file://{model}", "--link", link, "-q")
    snapshot = Path(done.out.strip())
    assert tree(snapshot) == FILES
    same = (snapshot / "a.safetensors").samefile(model / "a.safetensors")
    assert same == (link == "hardlink")


@pytest.mark.slow
def test_explain_names_retries_and_their_reasons(shell: Shell, origin: FaultProxy):
    origin.plan = failing_once(SLOW_DOWN, Fault(status=500))
    done = shell.run("pull", f"{origin.url}/", "--verbose")
    assert done.code == 0, done.err
    assert tree(Path(done.out.strip())) == FILES
    assert "503" in done.err
    explained = shell.call("explain", f"{origin.url}/")
    assert "on the way:" in explained.out
    assert "503" in explained.out
    assert "throttled 1" in explained.out
    report = shell.call("explain", f"{origin.url}/", "--json").json
    (source,) = report["sources"].values()
    assert sum(source["failures"].values()) == 2
    assert len(report["events"]) >= 2
    assert report["wall_s"] >= report["resolving_s"] + report["transfer_s"]


def test_retries_end_where_they_are_told_to(shell: Shell, origin: FaultProxy):
    origin.plan = lambda request: Fault(status=500) if request.span else None
    done = shell.run("pull", f"{origin.url}/", "--retries", "1")
    assert done.code == 1
    assert "500" in done.complaint
