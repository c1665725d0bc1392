"""A local server that follows run folders and sends every change of the report to open pages.

It serves two addresses and nothing else: ``/``, the page, and ``/events``, server-sent events with the page's parts and
data whenever they change. It answers only requests whose ``Host`` is its own, so that no other site can reach it
through the reader's browser, and outside of this machine only with its token. The page may run its own script alone.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import math
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from markupsafe import Markup

from drpruning.errors import StateError
from drpruning.report.page.chart_data import page_data
from drpruning.report.page.render import render_shell, title_of, to_script_json
from drpruning.report.page.sections import render_sections
from drpruning.report.read.run import run_folders, runs_together
from drpruning.report.read.tail import MetricsTail
from drpruning.run_folder import RunFolder

LOOPBACK = "127.0.0.1"
PORT = 8642
LOOK_EVERY = 0.25  # seconds between two looks at the files
SEND_EVERY = 0.5  # seconds between two versions of the page, at least
ALIVE_EVERY = 10.0  # seconds after which a silent connection is tried
BEHIND = 2  # times as long is read as a version takes to make, while there is much to read
MOST_PAGES = 32  # open at once
MOST_CONNECTIONS = 2 * MOST_PAGES  # each has a thread; more are refused with 503
REQUEST_SECONDS = 10.0  # for a whole request, from the connection or the request before; slower clients are cut off
BLOCKS = 32  # read of one run before the next one's turn


class LiveReport:
    """Reads run folders in the background and makes a new version of the page after each change.

    Args:
        folders: The run and the runs to compare with it; by default those in its ``compare/NAME``.

    Attributes:
        version: Of the page, 0 before there is one; grows with each, also beyond those of an earlier server.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self.version = 0
        self.changed = threading.Condition()
        self.closed = threading.Event()
        self.sent: dict[str, Any] = {}  # the title, the parts and the status of the version
        self.data = ""  # its figures' data, as JSON that is safe inside a script
        self.event = b""  # all of it, as open pages get it: made once, not for each of them
        self._tails: dict[Path, MetricsTail] = {}
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def start(self) -> None:
        """Start to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading and close the connections of open pages."""
        self.closed.set()
        with self.changed:
            self.changed.notify_all()
        self._thread.join()

    def wait(self, version: int, seconds: float) -> bool:
        """Wait for a version after ``version``; return False if ``seconds`` pass first."""
        with self.changed:
            return self.changed.wait_for(lambda: self.version > version or self.closed.is_set(), seconds)

    def _follow(self) -> None:
        made, took, pending = -math.inf, 0.0, True
        while not self.closed.is_set():
            pending = self._read() or pending
            behind = any(tail.progress() < 1 for tail in self._tails.values())
            now = time.monotonic()
            # Making a version must not take the time that reading needs.
            if pending and now >= made + max(SEND_EVERY - took, took * (BEHIND if behind else 1)):
                self._make_version()
                pending, made = False, time.monotonic()
                took = made - now
            if not behind:
                self.closed.wait(LOOK_EVERY)

    def _read(self) -> bool:
        try:
            folders = run_folders(*self.folders)
        except StateError:  # not there yet, or gone
            folders = self.folders
        new = list(self._tails) != list(folders)
        self._tails = {folder: self._tails.get(folder) or MetricsTail(RunFolder(folder).metrics) for folder in folders}
        for tail in self._tails.values():
            new = tail.read(BLOCKS) or new
        return new

    def _make_version(self) -> None:
        tails = self._tails
        run = runs_together(list(tails), [tail.series for tail in tails.values()])
        progress = min(tail.progress() for tail in tails.values())
        ended = all(each.ended for each in (run, *run.others))
        sent = {
            "title": title_of(run),
            "parts": {name: str(html) for name, html in render_sections(run).items()},
            "status": f"reading, {progress:.0%}" if progress < 1 else "ended" if ended else "live",
        }
        data = to_script_json(page_data(run))
        head = json.dumps(sent, separators=(",", ":"), allow_nan=False).removesuffix("}")
        event = f'data: {head},"data":{data}}}\n\n'.encode()
        with self.changed:
            self.sent, self.data, self.event = sent, data, event
            self.version = max(self.version + 1, int(1000 * time.time()))
            self.changed.notify_all()


class Server(ThreadingHTTPServer):
    """An HTTP server of the page of ``watched``.

    Args:
        watched: What to show.
        host: Address to bind. For any but this machine's own a token is needed, part of :attr:`url`.
        port: Port to bind; 0 for any free one.

    Raises:
        OSError: The address cannot be bound.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, watched: LiveReport, host: str = LOOPBACK, port: int = PORT) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.watched = watched
        self.host = host.lower()
        self.port = int(self.server_address[1])
        self.token = "" if _is_loopback(self.host) else secrets.token_urlsafe(24)
        self.names = {self.host, socket.gethostname().lower(), self.server_name.lower()}
        self.pages = threading.BoundedSemaphore(MOST_PAGES)
        self._connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._deadlines: dict[socket.socket, float] = {}  # of connections whose request is not complete

    @property
    def url(self) -> str:
        """The address of the page, with the token if one is needed."""
        everywhere = self.host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        name = socket.gethostname() if everywhere else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def accepts(self, host: str) -> bool:
        """Return whether ``host`` is an address or a name of this server, with its port."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path:
            return False
        if _is_loopback(self.host):
            return name in {"localhost", self.host}
        return name in self.names or _is_address(name)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread, or refuse it without one if too many are open."""
        if not self._connections.acquire(blocking=False):
            _send_busy(request)
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system starts no more threads
            self._connections.release()
            _send_busy(request)
            self.shutdown_request(request)
        return None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def expect_request(self, connection: socket.socket) -> None:
        """Cut ``connection`` off if its next request is not complete in :data:`REQUEST_SECONDS`."""
        self._deadlines[connection] = time.monotonic() + REQUEST_SECONDS

    def end_request(self, connection: socket.socket) -> None:
        """Cancel the deadline of a connection: its request is complete, or it is closed."""
        self._deadlines.pop(connection, None)

    def service_actions(self) -> None:
        """Cut off connections whose deadline is over; called between connections, and when the server polls."""
        now = time.monotonic()
        for connection, deadline in tuple(self._deadlines.items()):
            if now > deadline:
                self.end_request(connection)
                with suppress(OSError):  # closed meanwhile
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of pages that were closed during a transfer."""


class Handler(BaseHTTPRequestHandler):
    """A handler of one request."""

    server_version = "drpruning"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def handle_one_request(self) -> None:
        """Read a request, within a deadline, and answer it."""
        server = cast("Server", self.server)
        server.expect_request(self.connection)
        try:
            super().handle_one_request()
        finally:
            server.end_request(self.connection)

    def do_GET(self) -> None:
        """Send the page or its events."""
        server = cast("Server", self.server)
        server.end_request(self.connection)
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not server.accepts(hosts[0]):
            return self._refuse(HTTPStatus.FORBIDDEN, "This server answers to its own address only.")
        if server.token and not hmac.compare_digest(query.get("token", [""])[-1].encode(), server.token.encode()):
            return self._refuse(HTTPStatus.FORBIDDEN, "The address lacks the token that the command printed.")
        if url.path == "/":
            return self._page(server.watched)
        if url.path == "/events":
            return self._events(server, query.get("version", ["0"])[-1])
        return self._refuse(HTTPStatus.NOT_FOUND, "There is only the page at /.")

    def _page(self, watched: LiveReport) -> None:
        nonce = secrets.token_urlsafe(16)
        with watched.changed:
            sent, data, version = watched.sent, watched.data, watched.version
        html = render_shell(
            title=sent.get("title", "drpruning"),
            parts={name: Markup(part) for name, part in sent.get("parts", {}).items()},  # noqa: S704 - rendered, escaped
            data=Markup(data) if sent else None,  # noqa: S704 - every < is an escape
            live=True,
            version=version,
            nonce=nonce,
        )
        body = html.encode("utf-8", errors="replace")
        self._head(HTTPStatus.OK, "text/html; charset=utf-8", nonce)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _events(self, server: Server, since: str) -> None:
        if not server.pages.acquire(blocking=False):
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_PAGES} pages are open already.")
        try:
            self._head(HTTPStatus.OK, "text/event-stream; charset=utf-8")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"retry: 1000\n\n")
            version = int(since) if since.isdecimal() and int(since) <= server.watched.version else 0
            while not server.watched.closed.is_set():
                if server.watched.wait(version, ALIVE_EVERY):
                    with server.watched.changed:
                        version, event = server.watched.version, server.watched.event
                    self.wfile.write(event)
                else:
                    self.wfile.write(b": still here\n\n")
                self.wfile.flush()
        finally:
            server.pages.release()
            self.close_connection = True

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        body = f"{why}\n".encode()
        self._head(status, "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, content: str, nonce: str = "") -> None:
        script = f"script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; connect-src 'self'; " if nonce else ""
        self.send_response(status)
        for name, value in {
            "Content-Type": content,
            "Content-Security-Policy": f"default-src 'none'; {script}base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Log no requests."""


def _send_busy(connection: socket.socket) -> None:
    """Send a refusal without waiting for the client."""
    body = f"{MOST_CONNECTIONS} connections are open already.\n"
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {REQUEST_SECONDS:.0f}\r\nConnection: close\r\n\r\n"
    )
    connection.setblocking(False)
    with suppress(OSError):
        connection.send((head + body).encode())
        connection.recv(65536)  # what is unread would reset the connection, and the client would lose the answer


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
