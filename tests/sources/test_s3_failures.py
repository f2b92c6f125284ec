"""S3's errors in the middle of things: which are waited out, which end a pull, and what is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.errors import Forbidden, NotFound, SourceRefused, Throttled
from tests.agent.support import CHUNK_BYTES, random_bytes, settings
from tests.servers.faults import SLOW_DOWN, Fault, FaultProxy, Request
from tests.servers.minio import Minio
from tests.sources.buckets import (
    CREDENTIALS,
    Bucket,
    first,
    pull_tree,
    reads,
    resolve,
    s3_error,
    session_of,
)

LARGE = random_bytes(6 * CHUNK_BYTES + 1, 11)
SMALL = {f"part-{number}": b"%d" % number * 100 for number in range(20)}
FILES = {"weights": LARGE, **SMALL}


@pytest.fixture
def bucket(minio: Minio) -> Bucket:
    """A model below m/."""
    made = Bucket(minio)
    for name, content in FILES.items():
        made.put(f"m/{name}", content)
    return made


def lists(request: Request) -> bool:
    return "list-type" in request.path


def test_a_burst_of_slow_downs_is_waited_out(bucket: Bucket, tmp_path: Path):
    with FaultProxy(bucket.endpoint) as proxy, Engine(settings(tmp_path)) as engine:
        proxy.plan = first(SLOW_DOWN, 12, reads)
        report = engine.pull(bucket.ref("m/", at=proxy.url)).report
    (source,) = report.sources.values()
    assert source.failures["throttled"] >= 1
    assert sum(report.verified.values()) == sum(map(len, FILES.values()))


@pytest.mark.parametrize("asked", ["list", "head"])
def test_a_slow_down_while_resolving_is_waited_out(bucket: Bucket, tmp_path: Path, asked: str):
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.plan = first(
            SLOW_DOWN, 2, lists if asked == "list" else lambda request: request.method == "HEAD"
        )
        assert pull_tree(bucket.ref("m/", at=proxy.url), tmp_path) == FILES


def test_a_bucket_that_only_throttles_is_said(bucket: Bucket):
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.plan = lambda _: SLOW_DOWN
        with pytest.raises(Throttled, match="asks for fewer requests"):
            resolve(bucket.ref("m/", at=proxy.url))


@pytest.mark.parametrize(
    "fault",
    [
        s3_error("InternalError", 500),
        s3_error("ServiceUnavailable", 503),
        s3_error("RequestTimeout", 400),
        s3_error("OperationAborted", 409),
        s3_error("SlowDown", 503, Retry_After="0"),
        Fault(status=502, body=b"<html>a load balancer</html>"),
        Fault(reset_at=1000),
    ],
    ids=lambda fault: fault.body.decode()[27:52] or str(fault.status or "reset"),
)
def test_what_passes_is_asked_again(bucket: Bucket, tmp_path: Path, fault: Fault):
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.plan = first(fault, 2, reads)
        assert pull_tree(bucket.ref("m/", at=proxy.url), tmp_path) == FILES


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (s3_error("AccessDenied", 403), Forbidden, "access denied"),
        (s3_error("SignatureDoesNotMatch", 403), Forbidden, "secret key does not belong"),
        (s3_error("InvalidAccessKeyId", 403), Forbidden, "does not know these credentials"),
        (s3_error("NoSuchKey", 404), NotFound, "no such object"),
        (s3_error("NoSuchBucket", 404), NotFound, "no such bucket"),
        (s3_error("InvalidObjectState", 403), SourceRefused, "archived"),
        (s3_error("KMS.DisabledException", 400), SourceRefused, r"KMS\.DisabledException"),
    ],
)
def test_what_will_not_pass_ends_the_pull_and_says_why(
    bucket: Bucket,
    tmp_path: Path,
    fault: Fault,
    error: type[Exception],
    message: str,
):
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.plan = lambda request: (
            fault if request.path.endswith("weights") and reads(request) else None
        )
        with pytest.raises(error, match=message) as caught:
            pull_tree(bucket.ref("m/", at=proxy.url), tmp_path, retries_max=1)
    assert f"s3://{bucket.name}/m/weights" in str(caught.value)
    assert not any((tmp_path / "snapshots").iterdir())
    assert pull_tree(bucket.ref("m/"), tmp_path) == FILES


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wrong_clock_is_said_with_the_difference(bucket: Bucket, hours: int):
    theirs = datetime.now(UTC) + timedelta(hours=hours)
    skewed = s3_error("RequestTimeTooSkewed", 403, Date=format_datetime(theirs, usegmt=True))
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.plan = lambda _: skewed
        side = "ahead of" if hours < 0 else "behind"
        with pytest.raises(SourceRefused, match=rf"1(20|19|21) minutes {side}.*set the clock"):
            resolve(bucket.ref("m/", at=proxy.url))


def test_no_secret_is_in_any_message_or_report(
    bucket: Bucket, minio: Minio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    session = session_of(minio)
    for name, value in session.items():
        monkeypatch.setenv(name, value)
    echo = s3_error("InternalError", 500, message=" ".join(session.values()))
    with FaultProxy(bucket.endpoint) as proxy, Engine(settings(tmp_path)) as engine:
        proxy.plan = first(echo, 3, reads)
        report = engine.pull(bucket.ref("m/", at=proxy.url)).report
    assert report.events
    small = (path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 1e6)
    told = repr(report).encode() + b"".join(path.read_bytes() for path in small)
    for name in CREDENTIALS[1:]:
        assert session[name].encode() not in told
    assert b"Signature=" not in told
