"""The live server: what it sends, whom it answers, and that it outlives whatever happens to the files."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drpruning.records import Incident, RunEnded, to_json
from drpruning.report import live
from drpruning.report.live import LiveReport, Server
from tests.report.synthetic import synthetic, write_run


@contextmanager
def serving(*folders: Path, host: str = "127.0.0.1", port: int = 0) -> Iterator[Server]:
    watched = LiveReport(folders)
    server = Server(watched, host, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    watched.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        watched.close()


def get(server: Server, path: str = "/", **headers: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


class Events:
    """The server-sent events of a page that is open."""

    def __init__(self, server: Server, version: int = 0) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self.connection.request("GET", f"/events?version={version}")
        self.response = self.connection.getresponse()

    def next(self) -> dict[str, Any]:
        while True:
            line = self.response.readline()
            assert line, "the server ended the stream"
            if line.startswith(b"data: "):
                found: dict[str, Any] = json.loads(line[6:])
                return found

    def until(self, status: str) -> dict[str, Any]:
        sent = self.next()
        while sent["status"] != status:
            sent = self.next()
        return sent

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def steps_of(sent: dict[str, Any], run: int = 0) -> dict[str, int]:
    return {stage["name"]: stage["steps"] for stage in sent["data"]["runs"][run]["stages"]}


def test_an_open_page_hears_of_each_change_and_of_restart_and_end(tmp_path: Path) -> None:
    records = synthetic()
    folder = write_run(tmp_path / "run", records[:100])
    metrics = folder / "metrics.jsonl"
    with serving(folder) as server:
        events = Events(server)
        first = events.until("live")
        assert "This run has not ended" in first["parts"]["head"]
        with metrics.open("a") as file:
            file.write(to_json(records[100]) + "\n" + to_json(Incident(what="paused", detail="<b>why</b>")) + "\n")
        sent = events.next()
        assert "&lt;b&gt;why" in sent["parts"]["incidents"]
        metrics.write_text("".join(to_json(record) + "\n" for record in records[:50]))  # resumed from a checkpoint
        sent = events.next()
        assert steps_of(sent)["prune"] < steps_of(first)["prune"]
        metrics.write_text("".join(to_json(record) + "\n" for record in records))
        sent = events.until("ended")
        assert steps_of(sent) == {"prune": 150, "continue": 250}
        events.close()


def test_a_run_that_begins_later_and_comparison_runs_that_join(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    with serving(folder) as server:
        events = Events(server)
        assert "recorded nothing yet" in events.next()["parts"]["head"]
        write_run(folder, synthetic())
        assert events.until("ended")["title"] == "quickstart · drpruning"
        write_run(folder / "compare" / "constant", synthetic("constant")[:-1])
        sent = events.until("live")
        assert [run["label"] for run in sent["data"]["runs"]] == ["drpruning", "constant"]
        with (folder / "compare" / "constant" / "metrics.jsonl").open("a") as file:
            file.write(to_json(RunEnded(seconds=1.0)) + "\n")
        events.until("ended")
        events.close()


def test_the_page_comes_with_what_is_known_and_lets_only_its_own_script_run(run: Path) -> None:
    with serving(run) as server:
        while "outcome" not in server.watched.sent.get("parts", {}):
            assert server.watched.wait(server.watched.version, 60)
        response, html = get(server)
        policy = response.headers["Content-Security-Policy"]
        nonce = policy.partition("'nonce-")[2].partition("'")[0]
        assert f"default-src 'none'; script-src 'nonce-{nonce}';" in policy
        assert len(nonce) >= 20
        assert html.count(f'nonce="{nonce}"') == 1
        assert '<script type="application/json" id="data">{' in html
        assert "2.410" in html
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert get(server)[0].headers["Content-Security-Policy"] != policy


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", "127.0.0.1.evil.example:{port}",
             "evil@127.0.0.1:{port}", "127.0.0.1:{port}/x", "[::1", ""],
)  # fmt: skip
def test_other_hosts_are_refused(run: Path, host: str) -> None:
    with serving(run) as server:
        assert server.watched.wait(0, 60)
        for path in ("/", "/events"):
            response, text = get(server, path, Host=host.format(port=server.port))
            assert response.status == 403
            assert "quickstart" not in text


def test_own_names_and_nothing_but_the_page_are_answered(run: Path) -> None:
    with serving(run) as server:
        assert get(server, Host=f"localhost:{server.port}")[0].status == 200
        for path in ("/metrics.jsonl", "/../recipe.yaml", "/%2e%2e/recipe.yaml", "/recipe.yaml"):
            assert get(server, path)[0].status == 404
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("POST", "/", body=b"x")
        assert connection.getresponse().status == 501
        connection.close()


def test_another_address_needs_its_token(run: Path) -> None:
    with serving(run, host="0.0.0.0") as server:  # noqa: S104 - what is tested
        token = server.url.partition("?token=")[2]
        assert len(token) >= 32
        for path in ("/", "/?token=", "/?token=wrong", "/events", f"/?token={token[:-1]}"):
            assert get(server, path)[0].status == 403
        assert get(server, f"/?token={token}")[0].status == 200
        assert get(server, f"/?token={token}", Host=f"evil.example:{server.port}")[0].status == 403


def test_a_host_is_known_however_it_is_written(run: Path) -> None:
    with serving(run, host="LocalHost") as server:
        assert "token" not in server.url
        assert get(server, Host=f"LOCALHOST:{server.port}")[0].status == 200


def test_pages_beyond_the_limit_get_a_message(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_PAGES", 1)
    with serving(run) as server:
        events = Events(server)
        events.next()
        response, text = get(server, "/events")
        assert (response.status, text) == (503, "1 pages are open already.\n")
        events.close()


def rest_of(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = b""
    with connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := connection.recv(65536):
            received += part
    return received


def test_half_open_connections_are_bounded_and_cut_off(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_CONNECTIONS", 8)
    monkeypatch.setattr(live, "REQUEST_SECONDS", 1.0)
    with serving(run) as server:
        threads = threading.active_count()
        connections = []
        for k in range(300):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            connections.append(connection)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall([b"", b"GET / HTTP/1.1\r\nHost: ", b"\r\n"][k % 3])
            assert threading.active_count() <= threads + 8
        answers = [rest_of(connection) for connection in connections]
        busy = b"HTTP/1.1 503 Service Unavailable"
        assert sum(answer.startswith(busy) for answer in answers) > 8
        assert all(answer == b"" or answer.startswith(busy) for answer in answers)
        while True:  # a thread ends a moment after its connection
            response, _ = get(server)
            if response.status == 200:
                break
            assert response.status == 503


def test_a_page_that_is_read_slowly_stays_open(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the deadline is one of requests: events are sent for as long as the page is open."""
    monkeypatch.setattr(live, "REQUEST_SECONDS", 0.1)
    monkeypatch.setattr(live, "ALIVE_EVERY", 0.05)
    with serving(run) as server:
        events = Events(server)
        for _ in range(20):
            assert events.response.readline()
        events.close()
