"""The live page in Chromium: a change arrives by itself, and nothing from the folder is ever run."""

from __future__ import annotations

from pathlib import Path

from drpruning.records import Incident, StepTaken, to_json
from tests.browser.conftest import OpenPage, until
from tests.report.synthetic import synthetic, write_run
from tests.report.test_live import serving

UPDATES = "+(document.documentElement.dataset.updates || 0)"


def test_what_is_written_arrives_in_the_open_page(tmp_path: Path, open_page: OpenPage) -> None:
    records = synthetic()
    folder = write_run(tmp_path / "run", records[:120])
    with serving(folder) as server:
        assert server.watched.wait(0, 60)
        page = open_page(server.url)
        until(page, "document.querySelector('#live').textContent === 'live'")
        points = page.locator("#training-loss").get_attribute("data-points")
        steps = [record for record in records[120:] if isinstance(record, StepTaken)][:20]
        hostile = Incident(what="<img src=x onerror=alert(1)>", detail="<script>alert(2)</script>")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("".join(to_json(record) + "\n" for record in [*steps, hostile]))
        until(page, f"{UPDATES} > 0 && document.querySelector('#training-loss').dataset.points !== '{points}'")
        assert page.get_by_text("<img src=x onerror=alert(1)>").is_visible()
        assert page.locator("img").count() == 0
        page.get_by_role("slider", name="Smoothing").fill("0.5")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("".join(to_json(record) + "\n" for record in records[-1:]))
        until(page, "document.querySelector('#live').textContent === 'ended'")
        assert page.get_by_role("slider", name="Smoothing").input_value() == "0.5"


def test_it_finds_its_server_again(tmp_path: Path, open_page: OpenPage) -> None:
    folder = write_run(tmp_path / "run", synthetic())
    with serving(folder) as server:
        assert server.watched.wait(0, 60)
        page = open_page(server.url, quiet=False)
    until(page, "document.querySelector('#live').textContent.includes('does not answer')")
    assert page.locator("#training-loss canvas").is_visible()
    (folder / "metrics.jsonl").write_text("".join(to_json(record) + "\n" for record in synthetic()[:-1]))
    with serving(folder, port=server.port):
        until(page, "document.querySelector('#live').textContent === 'live'")
