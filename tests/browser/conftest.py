"""A real browser: Chromium, driven by Playwright. Without it these tests are skipped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drpruning.report import write_report
from tests.report.synthetic import synthetic, write_run

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

OpenPage = Callable[..., Any]


def until(page: Any, condition: str, seconds: float = 60) -> None:
    """Waits for a JavaScript expression to hold; Playwright's own way needs eval, which the page forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens an address; at the end of the test no error may have been written to the console."""
    errors: list[str] = []
    contexts: list[Any] = []

    def open_(
        url: str, width: int = 1280, height: int = 900, theme: str = "light", quiet: bool = True, **settings: Any
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30000)
        page.on(
            "console",
            lambda message: errors.append(message.text) if quiet and message.type in {"error", "warning"} else None,
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of a finished run with a comparison run next to it."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "quickstart", synthetic())
    write_run(folder / "compare" / "constant", synthetic("constant"))
    return write_report(folder)
