"""A chat endpoint on this machine that fails, waits, answers wrongly and answers: requests, retries, cost, items."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, EndpointError, StateError
from drpruning.evaluation.benchmark.build import Prices, build_benchmark
from drpruning.evaluation.benchmark.chat import Chat, read_answer
from drpruning.evaluation.benchmark.endpoint import Endpoint
from drpruning.evaluation.benchmark.judge import Judge
from tests.evaluation.conftest import items, planned

WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "glade", "heron", "inlet", "jetty", "karst", "lagoon")


class Server:
    """Answers with what ``say`` returns: a status and a body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.say: Callable[[int], tuple[int, bytes]] = lambda number: (200, good(number))
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append({"path": self.path, **body})
                    outer.keys.append(self.headers["Authorization"])
                    status, content = outer.say(len(outer.requests))
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def good(number: int, linked: int = 5, usage: bool = True) -> bytes:
    def half(shift: int) -> str:
        return " ".join(WORDS[(number * 5 + shift * 3 + at * (shift + 2)) % len(WORDS)] for at in range(14))

    pairs = [{"first": f"corrupted {at}", "second": half(at)} for at in range(3)]
    text = "Here you are:\n```json\n" + json.dumps({"linked": linked, "wrong": pairs}) + "\n```"
    body: dict[str, Any] = {"choices": [{"message": {"content": text}}]}
    if usage:
        body["usage"] = {"prompt_tokens": 300, "completion_tokens": 100}
    return json.dumps(body).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def endpoint(server: Server, waits: list[float] | None = None, **changes: Any) -> Endpoint:
    return Endpoint(server.url, "tutor", sleep=(waits if waits is not None else []).append, **changes)


def test_items_come_from_corrupted_first_halves(
    server: Server,
    stories: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    plan = planned(stories, per_domain=6)
    summary = build_benchmark(plan, tmp_path / "bench", Chat(endpoint(server), plan.seed), Judge(), Prices(1, 2))
    assert summary["spent"]["requests"] == len(server.requests)
    assert summary["spent"]["dollars"] == pytest.approx(len(server.requests) * (300 * 1 + 100 * 2) / 1e6)
    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in (tmp_path / "bench" / "benchmark.json").read_text()
    assert server.requests[0]["path"] == "/v1/chat/completions"
    assert server.requests[0]["model"] == "tutor"
    for item in items(tmp_path / "bench", "sea"):
        assert item.provenance["linked"] == 5
        wrong = [source for source in item.provenance["choices"] if "right" not in source]
        assert {source["corrupted"] for source in wrong} == {f"corrupted {at}" for at in range(3)}
        assert any(item.context.strip() in body["messages"][0]["content"] for body in server.requests)


def test_what_may_pass_is_tried_again_with_longer_waits(server: Server) -> None:
    states = [503, 429, 500]
    server.say = lambda number: (states[number - 1], b"busy") if number <= 3 else (200, good(1))
    waits: list[float] = []
    answer = endpoint(server, waits).complete("hello", temperature=0.5, seed=3)
    assert answer.spent.requests == 4
    assert len(waits) == 3
    assert all(0.5 * 2**at <= wait <= 2**at for at, wait in enumerate(waits))


def test_nonsense_is_counted_and_requested_again(server: Server, stories: Corpus, tmp_path: Path) -> None:
    nonsense = [b"<html>", b'{"choices": []}', json.dumps({"choices": [{"message": {"content": "I cannot"}}]}).encode()]
    server.say = lambda number: (200, nonsense[number % 3] if number % 2 else good(number))
    plan = planned(stories, per_domain=4)
    summary = build_benchmark(
        plan, tmp_path / "bench", Chat(endpoint(server), plan.seed, num_parallel=1), Judge(), Prices()
    )
    assert summary["domains"]["sea"]["items"] == 4
    assert len(server.requests) > 8


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [(401, ConfigError, "refuses the request: HTTP 401"), (503, EndpointError, "failed [0-9]+ times in a row")],
)
def test_nothing_is_lost_when_the_endpoint_is_gone(
    server: Server,
    stories: Corpus,
    tmp_path: Path,
    status: int,
    error: type[Exception],
    message: str,
) -> None:
    plan = planned(stories, per_domain=6)
    chat = Chat(endpoint(server, tries=2), plan.seed, num_parallel=1)
    server.say = lambda number: (200, good(number)) if number <= 5 else (status, b"no")
    with pytest.raises(error, match=message):
        build_benchmark(planned(stories, per_domain=20), tmp_path / "bench", chat, Judge(), Prices())
    before = len(server.requests)
    server.say = lambda number: (200, good(number))
    build_benchmark(plan, tmp_path / "bench", chat, Judge(), Prices())
    done = 5 if status == 503 else 0  # a refusal ends the chunk that was running
    assert len(server.requests) - before <= 2 * 16 - done
    assert len(items(tmp_path / "bench", "sea")) == 6


def test_a_silent_endpoint_times_out(server: Server) -> None:
    wait = threading.Event()
    server.say = lambda number: (200 if wait.wait(5) else 500, good(1))
    try:
        with pytest.raises(EndpointError, match="no answer in 2 tries; the last: timed out"):
            endpoint(server, timeout=0.05, tries=2).complete("hello", temperature=0, seed=1)
    finally:
        wait.set()


def test_spending_stops_at_the_cap_and_resumes_with_a_larger_one(
    server: Server,
    stories: Corpus,
    tmp_path: Path,
) -> None:
    plan, chat = planned(stories, per_domain=6), Chat(endpoint(server), 5, num_parallel=2)
    with pytest.raises(StateError, match=r"are spent, the next requests cost about .*; the budget is \$0.0030"):
        build_benchmark(plan, tmp_path / "bench", chat, Judge(), Prices(1, 2, budget=0.003))
    assert 0 < len(server.requests) <= 6  # half a thousandth of a dollar each
    summary = build_benchmark(plan, tmp_path / "bench", chat, Judge(), Prices(1, 2, budget=1))
    assert summary["spent"]["requests"] == len(server.requests)


def test_costs_are_estimated_where_the_endpoint_does_not_count(server: Server) -> None:
    server.say = lambda number: (200, good(1, usage=False))
    spent = endpoint(server).complete("x" * 350, temperature=0, seed=1).spent
    assert spent.prompt_tokens == 100
    assert spent.completion_tokens > 50


def test_halves_that_are_not_linked_are_dropped(server: Server, stories: Corpus) -> None:
    server.say = lambda number: (200, good(number, linked=2))
    made = Chat(endpoint(server), 5).make(planned(stories).passages["sea"][0], 3)
    assert made.dropped == "the halves are not linked"
    assert not made.failed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "not the requested JSON"),
        ('{"linked": 4}', "not the requested JSON"),
        ('{"linked": 4, "wrong": [{"first": "a", "second": "b"}]}', "1 wrong choices, expected 3"),
        ('{"linked": 4, "wrong": [{"first": "a", "second": " "}]}', "empty or not text"),
        ('{"linked": 1e999, "wrong": []}', "not the requested JSON"),
        ('{"linked": 4, "wrong": [{"first": "a", "second": "b \\ud83d"}]}', "unpaired surrogate"),
    ],
)
def test_answers_that_cannot_be_used_say_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_answer(text, 3)
