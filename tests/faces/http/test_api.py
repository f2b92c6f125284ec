"""The API over a real Unix socket: what can be asked of an agent, and what it answers."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from time import monotonic

import httpx2
import pytest

from modelcache.config import Settings
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import wanted_id
from tests.agent.nodes import Models
from tests.agent.support import CHUNK_BYTES
from tests.faces.http.agents import WAIT_S, Running, running_faces
from tests.servers.faults import Fault, held_from


@pytest.fixture
def api(faces: Running):
    with faces.unix() as client:
        yield client


def want(api: httpx2.Client, ref: str, **more) -> dict:
    answer = api.post("/v1/models/wanted", json={"ref": ref, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()


def waited(api: httpx2.Client, wanted: dict) -> dict:
    answer = api.get(f"/v1/models/wanted/{wanted['wanted_id']}", params={"wait_s": WAIT_S})
    assert answer.status_code == 200, answer.text
    return answer.json()


def error(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_model_is_wanted_watched_listed_and_released(api: httpx2.Client, models: Models):
    ref = f"{models.add('m').url}/m/"
    begun = want(api, ref, priority=70, lease="pod/a", note="why", ttl_s=3600)
    assert begun["wanted_id"] == wanted_id(parse_ref(ref))
    warm = waited(api, begun)
    assert (warm["phase"], warm["percent"], warm["priority"]) == ("warm", 100.0, 70)
    assert warm["wants"][0]["holder"] == "pod/a"
    assert warm["wants"][0]["expires_at_s"] > warm["wants"][0]["since_s"] + 3500
    assert api.get("/v1/models/wanted").json() == [warm]

    (stored,) = api.get("/v1/models").json()
    assert stored["model_id"] == warm["model_id"]
    assert stored["warm"]
    assert [lease["kind"] for lease in stored["leases"]] == ["agent"]
    shown = api.get(f"/v1/models/{stored['model_id'][:12]}").json()
    assert [item["path"] for item in shown["contents"]] == ["model.safetensors"]
    assert shown["contents"][0]["present"]

    released = api.delete(f"/v1/models/wanted/{warm['wanted_id']}", params={"lease": "pod/a"})
    assert released.json() == {"released": True}
    again = api.delete(f"/v1/models/wanted/{warm['wanted_id']}")
    assert again.json() == {"released": False}
    gone = api.get(f"/v1/models/wanted/{warm['wanted_id']}")
    assert error(gone) == (404, "not_in_store")


def test_filters_make_another_model(api: httpx2.Client, models: Models):
    ref = f"{models.add('m').url}/m/"
    filtered = waited(api, want(api, ref, include=["*.nothing"]))
    assert filtered["phase"] == "failed"
    whole = waited(api, want(api, ref))
    assert whole["phase"] == "warm"
    assert whole["wanted_id"] != filtered["wanted_id"]


def test_what_may_be_secret_in_a_ref_is_not_told(
    api: httpx2.Client, models: Models, faces: Running
):
    ref = f"{models.add('m').url}/m/?token=hunter2"
    begun = want(api, ref)
    waited(api, begun)
    told = [
        api.get(path).text for path in ("/v1/models/wanted", "/v1/models", "/v1/status", "/metrics")
    ]
    events, _ = faces.daemon.node.events.after(0)
    assert "hunter2" not in "".join(told) + str(events)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "usage"),
        ({"ref": ""}, "usage"),
        ({"ref": "nonsense"}, "invalid_ref"),
        ({"ref": "s3://bucket/m", "priority": 101}, "usage"),
        ({"ref": "s3://bucket/m", "priority": "high"}, "usage"),
        ({"ref": "s3://bucket/m", "lease": "two words"}, "usage"),
        ({"ref": "s3://bucket/m", "ttl_s": -1}, "usage"),
        ({"ref": "s3://bucket/m", "typo": 1}, "usage"),
        ({"ref": "s3://bucket/m", "include": [""]}, "usage"),
        ({"ref": "s3://" + "x" * 9000}, "usage"),
    ],
    ids=str,
)
def test_what_cannot_be_wanted_is_refused_in_one_form(api: httpx2.Client, body, code: str):
    answer = api.post("/v1/models/wanted", json=body)
    assert error(answer) == (400, code)
    assert "\n" not in answer.json()["error"]["message"]
    assert api.get("/v1/models/wanted").json() == []


def test_a_refusal_does_not_repeat_what_was_wrong(api: httpx2.Client):
    answer = api.post(
        "/v1/models/wanted", json={"ref": "https://h/m?token=hunter2", "lease": "x y"}
    )
    assert answer.status_code == 400
    answer = api.post("/v1/models/wanted", json={"ref": ["https://h/m?token=hunter2"]})
    assert answer.status_code == 400
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/wanted/nothex",
        "/v1/models/../../etc",
        "/v1/models/abc",
        "/v1/models/wanted/0123456789abcdef0",
    ],
)
def test_names_that_are_none_are_refused(api: httpx2.Client, path: str):
    assert api.get(path).status_code in {400, 404}


def test_unknown_models_pages_and_methods_are_errors_in_the_same_form(api: httpx2.Client):
    assert error(api.get("/v1/models/abcdef")) == (404, "not_in_store")
    assert error(api.get("/v1/models/wanted/0123456789abcdef")) == (404, "not_in_store")
    assert error(api.get("/v2")) == (404, "no_such_page")
    assert error(api.put("/v1/models")) == (405, "no_such_method")
    assert error(api.post("/v1/models/wanted", content=b"{")) == (400, "usage")


def test_waiting_answers_at_once_when_there_is_news(api: httpx2.Client, models: Models):
    origin = models.add("m", plan=held_from(CHUNK_BYTES))
    begun = want(api, f"{origin.url}/m/")
    path = f"/v1/models/wanted/{begun['wanted_id']}"
    early = api.get(path, params={"wait_s": 0.2}).json()
    assert early["phase"] in {"resolving", "transferring"}
    found: list[dict] = []
    waiter = threading.Thread(target=lambda: found.append(waited(api, begun)))
    waiter.start()
    started_s = monotonic()
    origin.plan = lambda _: None
    waiter.join(WAIT_S)
    assert found[0]["phase"] == "warm"
    assert monotonic() - started_s < 10
    assert error(api.get(path, params={"wait_s": 1e6})) == (400, "usage")


def test_who_waits_for_what_is_released_is_told(api: httpx2.Client, models: Models):
    begun = want(api, f"{models.add('m', plan=held_from(0)).url}/m/")
    answers: list[httpx2.Response] = []
    path = f"/v1/models/wanted/{begun['wanted_id']}"
    waiter = threading.Thread(
        target=lambda: answers.append(api.get(path, params={"wait_s": WAIT_S}))
    )
    waiter.start()
    assert api.delete(path).json() == {"released": True}
    waiter.join(WAIT_S)
    assert error(answers[0]) == (404, "not_in_store")


def test_a_failure_is_told_with_its_code(api: httpx2.Client, models: Models):
    origin = models.add("m", plan=lambda _: Fault(status=403, body=b""))
    failed = waited(api, want(api, f"{origin.url}/m/"))
    assert failed["phase"] == "failed"
    assert failed["trouble"]["code"] == "forbidden"
    assert failed["retry_in_s"] > 60


def test_the_status_has_all_of_it(api: httpx2.Client, models: Models, chosen: Settings):
    warm = waited(api, want(api, f"{models.add('m').url}/m/"))
    status = api.get("/v1/status").json()
    assert (status["node"], status["ready"], status["reasons"]) == ("node-1", True, [])
    assert status["wanted"] == [warm]
    assert status["store"]["path"] == str(chosen.store.path)
    assert api.get("/v1/peers").json() == {"enabled": False, "peers": []}


def test_probes_tell_alive_from_ready(chosen: Settings):
    with running_faces(chosen, begin=False) as faces, faces.tcp() as api:
        assert api.get("/healthz").json() == {"alive": True}
        early = api.get("/readyz")
        assert early.status_code == 503
        assert early.json()["reasons"] == [
            "what was wanted before the restart was not looked at yet"
        ]
        faces.daemon.start()
        assert api.get("/readyz").status_code == 200
        assert api.get("/readyz").json() == {"ready": True, "reasons": []}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_agent_whose_own_thread_has_died_is_not_alive(
    faces: Running, monkeypatch: pytest.MonkeyPatch
):
    node = faces.daemon.node

    def broken() -> None:
        raise ZeroDivisionError

    deciding = node._deciding
    monkeypatch.setattr(deciding, "_chores", [broken])
    with node._board.changed:
        node._board.changed.notify_all()
    assert deciding._thread is not None
    deciding._thread.join(WAIT_S)
    with faces.tcp() as api:
        answer = api.get("/healthz")
        assert (answer.status_code, answer.json()) == (503, {"alive": False})


def test_a_drained_agent_is_alive_not_ready_and_takes_nothing(api: httpx2.Client, models: Models):
    origin = models.add("m", plan=held_from(CHUNK_BYTES))
    begun = want(api, f"{origin.url}/m/")
    assert api.post("/v1/drain", params={"timeout_s": WAIT_S}).json() == {
        "draining": True,
        "complete": True,
    }
    assert api.get("/healthz").status_code == 200
    assert api.get("/readyz").json() == {"ready": False, "reasons": ["draining"]}
    refused = api.post("/v1/models/wanted", json={"ref": "s3://bucket/m"})
    assert error(refused) == (503, "draining")
    kept = api.get(f"/v1/models/wanted/{begun['wanted_id']}").json()
    assert kept["phase"] == "queued"
    origin.plan = lambda _: None
    assert api.post("/v1/resume").json() == {"draining": False, "resumed": True}
    assert api.post("/v1/resume").json() == {"draining": False, "resumed": False}
    assert api.get("/readyz").status_code == 200
    assert waited(api, begun)["phase"] == "warm"


def test_an_agent_that_is_about_to_end_is_not_held_up(api: httpx2.Client, faces: Running):
    faces.daemon.leave()
    assert error(api.post("/v1/resume")) == (503, "draining")
    assert faces.daemon.node.draining


def test_metrics_are_few_bounded_and_in_base_units(api: httpx2.Client, models: Models):
    warm = waited(api, want(api, f"{models.add('m').url}/m/"))
    text = api.get("/metrics").text
    names = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert all(name.startswith("modelcache_") for name in names)
    assert not [name for name in names if re.search(r"_(ms|kb|mb|percent)(_|$)", name)]
    size = 5 * CHUNK_BYTES
    labels = f'model="{warm["model_id"][:12]}"'
    assert f"modelcache_model_present_bytes{{{labels}}} {float(size)!r}" in _plain(text)
    assert 'modelcache_wanted_models{phase="warm"} 1.0' in text
    assert f"modelcache_stored_bytes_total {float(size)!r}" in _plain(text)
    assert 'kind="http"' in text
    assert 'modelcache_pulls_total{result="warm"} 1.0' in text
    assert 'modelcache_pull_seconds_bucket{le="+Inf"} 1.0' in text


def _plain(text: str) -> str:
    """Large numbers without exponents."""
    return re.sub(r"\d\.\d+e\+\d+", lambda hit: repr(float(hit[0])), text)


def test_the_description_needs_nothing_from_elsewhere_and_has_every_model(api: httpx2.Client):
    page = api.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page.text)
    assert "<script" not in page.text
    document = api.get("/openapi.json").json()
    for name, schema in document["components"]["schemas"].items():
        if name in {"HTTPValidationError", "ValidationError"}:
            continue
        assert schema.get("description"), name
        assert f'id="{name}"' in page.text
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
    assert "s3://models/llama-3-70b" in page.text


def test_nothing_of_the_frameworks_own_pages_is_there(api: httpx2.Client):
    assert api.get("/redoc").status_code == 404
    assert "server" not in api.get("/healthz").headers


def test_files_of_a_node_stay_where_they_are(api: httpx2.Client, tmp_path: Path):
    (tmp_path / "weights.bin").write_bytes(b"x" * 100)
    warm = waited(api, want(api, f"file://{tmp_path}/weights.bin"))
    assert Path(warm["path"], "weights.bin").read_bytes() == b"x" * 100
