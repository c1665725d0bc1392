"""The live page: served by this process for `report --watch`, by a second process for `train --watch`."""

from __future__ import annotations

import subprocess
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click


def serve_until_interrupted(folders: Sequence[Path], host: str, port: int | None, *, show: bool | None) -> None:
    """Serve the page of runs until Ctrl-C.

    Args:
        folders: The runs; they need not exist yet.
        host: Address to bind.
        port: Port to bind; None: the default port, or any port if that is in use.
        show: Whether to open a browser; None: only on a terminal.

    Raises:
        OSError: The address cannot be bound.
    """
    from drpruning.report.live import PORT, LiveReport, Server

    watched = LiveReport(folders)
    try:
        server = Server(watched, host, PORT if port is None else port)
    except OSError:
        if port is not None:
            raise
        server = Server(watched, host, 0)
    watched.start()
    click.echo(server.url)
    click.echo("Ctrl-C stops the server, not the run.", err=True)
    if sys.stdout.isatty() if show is None else show:
        webbrowser.open(server.url)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        watched.close()


@contextmanager
def serve_during_training(folder: Path) -> Iterator[None]:
    """Serve the page of a run that this process trains, from a second process, while the block runs."""
    code = (
        "import sys, signal; from pathlib import Path; from drpruning.cli.live_page import serve_until_interrupted\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training\n"
        f"serve_until_interrupted([Path(sys.argv[1])], '127.0.0.1', None, show={sys.stdout.isatty()})"
    )
    server = subprocess.Popen(  # noqa: S603 - this program
        [sys.executable, "-c", code, str(folder)], stdout=sys.stderr, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        server.terminate()
        server.wait()
