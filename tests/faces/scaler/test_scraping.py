"""Demand is read from real servers of metrics, and from what such servers should not say."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server

from modelcache.errors import CorruptData, SourceUnavailable, UsageError
from modelcache.faces.scaler import scraping
from modelcache.faces.scaler.scraping import Scraper


@pytest.fixture
def scraper() -> Iterator[Scraper]:
    made = Scraper()
    yield made
    made.close()


@contextmanager
def answering(body: bytes, status: int = 200, headers: dict[str, str] | None = None):
    """A server that says the same to everybody; gives its port and what it was asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_counter_of_the_usual_library_is_read_and_added_up(scraper: Scraper):
    registry = CollectorRegistry()
    counter = Counter("vllm:request_success", "…", ["model", "reason"], registry=registry)
    other = Counter("vllm:request_success_other", "…", registry=registry)
    counter.labels("llama", "stop").inc(5)
    counter.labels("llama", "length").inc(2)
    counter.labels("qwen", "stop").inc(100)
    other.inc(1000)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    port = server.server_address[1]
    try:
        name = "vllm:request_success_total"
        names = [name, "vllm:request"]

        def read(**labels: str) -> list[float | None]:
            return scraper.metrics("127.0.0.1", port, "/metrics", names, labels)

        assert read(model="llama") == [7, None]
        assert read() == [107, None]
        assert read(model="mistral") == [None, None]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_is_no_metrics_is_told_as_such(scraper: Scraper):
    with answering(b'requests{a="b 5\n') as (port, _), pytest.raises(CorruptData):
        scraper.metrics("127.0.0.1", port, "/metrics", ["requests"], {})
    with answering(b"requests NaN\n") as (port, _):
        assert scraper.metrics("127.0.0.1", port, "/metrics", ["requests"], {}) == [None]
    with answering(b"no", 503) as (port, _), pytest.raises(SourceUnavailable, match="503"):
        scraper.metrics("127.0.0.1", port, "/metrics", ["requests"], {})
    with pytest.raises(SourceUnavailable, match="does not answer"):
        scraper.metrics("127.0.0.1", port, "/metrics", ["requests"], {})


def test_an_answer_has_a_size(scraper: Scraper, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scraping, "BODY_BYTES_MAX", 1000)
    with answering(b"x 1\n" * 1000) as (port, _), pytest.raises(SourceUnavailable, match="1000"):
        scraper.metrics("127.0.0.1", port, "/metrics", ["x"], {})


def test_nobody_is_sent_elsewhere(scraper: Scraper):
    with answering(b"x 1\n") as (there, asked):
        location = {"Location": f"http://127.0.0.1:{there}/metrics"}
        with answering(b"", 302, location) as (port, _):
            with pytest.raises(SourceUnavailable, match="302"):
                scraper.metrics("127.0.0.1", port, "/metrics", ["x"], {})
            assert not asked


VECTOR = b'{"status":"success","data":{"resultType":"vector","result":[%s]}}'
ONE = b'{"metric":{},"value":[1700000000.1,"12.5"]}'


def test_a_query_gives_one_number(tmp_path):
    token = tmp_path / "token"
    token.write_text("hush\n")
    with answering(VECTOR % ONE) as (port, asked):
        scraper = Scraper(f"http://127.0.0.1:{port}/prom/", token)
        assert scraper.query('sum(rate(x{a="b"}[1m]))') == 12.5
        ((path, authorization),) = asked
        assert path.startswith("/prom/api/v1/query?query=sum%28rate")
        assert authorization == "Bearer hush"
        scraper.close()


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (VECTOR % b"", UsageError, "0 series"),
        (VECTOR % (ONE + b"," + ONE), UsageError, "2 series"),
        (VECTOR % ONE.replace(b"12.5", b"+Inf"), UsageError, "finite"),
        (b'{"data":{"resultType":"matrix","result":[]}}', UsageError, "matrix"),
        (b'{"data":{}}', CorruptData, "Prometheus"),
        (b"[]", CorruptData, "Prometheus"),
        (b"<html>", CorruptData, "Prometheus"),
    ],
)
def test_any_other_answer_is_refused(body, error, words):
    with answering(body) as (port, _):
        scraper = Scraper(f"http://127.0.0.1:{port}")
        with pytest.raises(error, match=words):
            scraper.query("x")
        scraper.close()


def test_a_scalar_is_a_number_too_and_a_wrong_query_is_told():
    with answering(b'{"data":{"resultType":"scalar","result":[1.5,"3"]}}') as (port, _):
        scraper = Scraper(f"http://127.0.0.1:{port}")
        assert scraper.query("scalar(x)") == 3
        scraper.close()
    with answering(b'{"status":"error"}', 400) as (port, _):
        scraper = Scraper(f"http://127.0.0.1:{port}")
        with pytest.raises(UsageError, match="does not accept"):
            scraper.query("x(")
        scraper.close()


def test_a_query_needs_a_prometheus(scraper: Scraper):
    with pytest.raises(UsageError, match="--prometheus"):
        scraper.query("up")
