"""The report in Chromium: every figure is drawn, every control does something, nothing is in anybody's way."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from drpruning.records import Incident, ModelMeasured, Record
from drpruning.report import write_report
from tests.browser.conftest import OpenPage, until
from tests.report.synthetic import DOMAINS, synthetic, write_run

FIGURES = [
    *(f"loss-{at}" for at in range(len(DOMAINS))), "weights", "reference-ratio", "excess", "divergence",
    *(f"sparsity-{at}" for at in range(4)), "multipliers-linear", "multipliers-quadratic", "training-loss",
    "throughput", "learning-rate", "gradient-norm",
]  # fmt: skip

MARKS = """(figure) => {
  const canvas = figure.querySelector("canvas"), { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(width * 0.2, height * 0.15, width * 0.78, height * 0.7).data;
  let colored = 0;  // what is neither grey nor empty: grid, axes and texts are grey
  for (let at = 0; at < pixels.length; at += 4)
    if (pixels[at + 3] > 100 && Math.max(pixels[at], pixels[at + 1], pixels[at + 2])
        - Math.min(pixels[at], pixels[at + 1], pixels[at + 2]) > 40) colored++;
  return colored;
}"""


def marks(page: Any, figure: str) -> int:
    found: int = page.locator(f"#{figure}").evaluate(MARKS)
    return found


def picture(page: Any, figure: str) -> str:
    found: str = page.locator(f"#{figure} canvas").evaluate("(canvas) => canvas.toDataURL()")
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900), (3840, 2160)])
def test_every_figure_has_marks_at_every_size(
    report: Path, open_page: OpenPage, width: int, height: int, theme: str
) -> None:
    page = open_page(report.as_uri(), width, height, theme)
    assert page.locator("figure:visible .plot").count() == len(FIGURES)
    for figure in FIGURES:
        assert marks(page, figure) > 30, figure
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    page.locator("#weights").scroll_into_view_if_needed()
    assert page.locator("#weights canvas").bounding_box()["width"] > 0.75 * min(width, 620)


def test_a_domain_is_hidden_everywhere_and_comes_back(report: Path, open_page: OpenPage) -> None:
    page = open_page(report.as_uri())
    before = picture(page, "weights")
    button = page.locator("#domains").get_by_role("button", name="python")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    until(page, "document.querySelector('#loss-0').hidden")
    assert picture(page, "weights") != before
    button.click()
    until(page, "!document.querySelector('#loss-0').hidden")
    assert picture(page, "weights") == before
    button.click(modifiers=["Shift"])
    until(page, "document.querySelectorAll('#losses figure:not([hidden])').length === 1")


def test_axis_stage_smoothing_and_run_change_what_is_drawn(report: Path, open_page: OpenPage) -> None:
    page = open_page(report.as_uri())
    seen = [picture(page, "training-loss")]

    def changed(figure: str = "training-loss") -> None:
        page.wait_for_timeout(60)
        now = picture(page, figure)
        assert now not in seen
        seen.append(now)

    page.get_by_role("radio", name="steps").check()
    changed()
    page.get_by_role("radio", name="time").check()
    changed()
    page.get_by_role("radio", name="tokens").check()
    page.get_by_role("slider", name="Smoothing").fill("0.9")
    changed()
    page.get_by_role("combobox", name="Stage").select_option("continue")
    changed()
    changed("weights")
    assert page.locator("#outcome div[data-run='0']").is_visible()
    page.get_by_role("combobox", name="Run").select_option("1")
    changed("weights")
    assert page.locator("#outcome div[data-run='1']").is_visible()
    assert not page.locator("#outcome div[data-run='0']").is_visible()
    page.get_by_role("combobox", name="Theme").select_option("dark")
    changed("weights")


def test_hover_shows_the_values_and_a_drag_zooms_all_charts(report: Path, open_page: OpenPage) -> None:
    page = open_page(report.as_uri())
    plot = page.locator("#loss-1 .u-over")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 20)
    tip = page.locator("#loss-1 .tip")
    assert "drpruning" in tip.inner_text()
    assert "drpruning\n2.09" in tip.inner_text()  # cpp ends at 1.87 + 0.22
    assert tip.inner_text().startswith("continue, 50")
    before = picture(page, "loss-2"), picture(page, "sparsity-0")
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    page.wait_for_timeout(60)
    assert picture(page, "loss-2") != before[0]
    assert picture(page, "sparsity-0") == before[1]  # another axis
    page.get_by_role("button", name="Show all").click()
    page.mouse.move(2, 2)
    page.wait_for_timeout(60)
    assert picture(page, "loss-2") == before[0]


def test_the_keyboard_reads_and_zooms(report: Path, open_page: OpenPage) -> None:
    page = open_page(report.as_uri())
    plot = page.locator("#loss-0 .plot")
    plot.focus()
    page.keyboard.press("End")
    message = page.locator("#message")
    assert "drpruning 2.700" in message.inner_text()
    page.keyboard.press("ArrowLeft")
    assert "continue" in message.inner_text()
    before = picture(page, "loss-0")
    page.keyboard.press("+")
    page.wait_for_timeout(60)
    assert picture(page, "loss-0") != before
    page.keyboard.press("Escape")
    assert page.get_by_role("button", name="Show all").is_disabled()
    assert "Held-out" not in plot.get_attribute("aria-label")
    assert plot.get_attribute("aria-label").startswith("python, in nats per token. ")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(report: Path, open_page: OpenPage, theme: str) -> None:
    axe = resources.files(pytest.importorskip("axe_core_python")) / "axe.min.js"
    page = open_page(report.as_uri(), theme=theme, bypass_csp=True)  # axe is a separate script
    page.evaluate(axe.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    serious = [
        (each["id"], [node["html"][:120] for node in each["nodes"]])
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]
    assert serious == []


def test_it_prints_in_light_colours_with_its_figures(report: Path, open_page: OpenPage) -> None:
    page = open_page(report.as_uri(), theme="dark")
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    dark, light = "#6cb0f5", "#1f5fa8"
    accent = "getComputedStyle(document.documentElement).getPropertyValue('--accent')"
    assert page.evaluate(accent) == light
    assert marks(page, "training-loss") > 30
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(accent) == dark


def test_without_scripts_there_are_tables_and_a_note(report: Path, open_page: OpenPage) -> None:
    page = open_page(report.as_uri(), java_script_enabled=False)
    assert page.get_by_text("drawn by a script").is_visible()
    assert page.get_by_role("cell", name="+0.290").count() == 1


def _hostile() -> list[Record]:
    names = [
        "</script><img src=x onerror=alert(1)>", "__proto__", '"><svg onload=alert(1)>', "constructor",
        "a\x1b[31m\x00\ud800b", "\u8a9e\u8a00" * 40, "<!--",
    ]  # fmt: skip
    records = synthetic(domains=names)
    records.append(
        Incident(what="<img src=x onerror=alert(2)>", detail="<script>alert(3)</script>", stage="prune", step=3)
    )
    return records


def _gaps() -> list[Record]:
    nothing = dict.fromkeys(DOMAINS, math.nan)
    return [*synthetic()[:1], ModelMeasured(model="base", parameters=0, shape={}, losses=nothing)]


@pytest.mark.parametrize(
    ("records", "figures"), [(_hostile(), len(FIGURES)), (synthetic()[:60], 10), (_gaps(), 0), ([], 0)]
)
def test_whatever_a_run_holds_the_page_is_whole_and_nothing_of_it_runs(
    tmp_path: Path, open_page: OpenPage, records: list[Record], figures: int
) -> None:
    page = open_page(
        write_report(write_run(tmp_path / "run", records, recipe="</pre><script>alert(4)</script>")).as_uri()
    )
    assert page.locator("main section").count() == 10
    assert page.locator("figure:visible .plot").count() >= figures
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert page.evaluate("Object.keys(Object.prototype).length") == 0


def test_one_evaluation_is_drawn_and_sections_without_content_are_left_out(tmp_path: Path, open_page: OpenPage) -> None:
    """Check that a run with one evaluation, at step 0, has its losses on the page and no empty boxes."""
    page = open_page(write_report(write_run(tmp_path / "run", synthetic()[:4])).as_uri())
    assert page.locator("#losses figure:visible").count() == len(DOMAINS)
    shown = page.locator("main > section:visible").evaluate_all("(all) => all.map((each) => each.id)")
    assert shown == ["outcome", "losses", "mixture", "recipe"]
    links = page.locator("nav a:visible").evaluate_all("(all) => all.map((each) => each.hash.slice(1))")
    assert links == shown


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_first_screen_of_a_phone_shows_the_verdict_and_its_figure(
    report: Path, open_page: OpenPage, theme: str
) -> None:
    page = open_page(report.as_uri(), 390, 844, theme)
    result, figure = page.locator(".result:visible"), page.locator(".headline:visible figure svg")
    assert "0.340 nats above the unpruned model in the worst domain" in result.inner_text()
    for part in (result, figure):
        box = part.bounding_box()
        assert box["y"] > 0
        assert box["y"] + box["height"] <= 844
        assert box["x"] + box["width"] <= 390
    assert "worst +0.340" in figure.text_content()
    assert result.evaluate("(each) => getComputedStyle(each).color") == page.evaluate(
        "getComputedStyle(document.documentElement).color"
    )


def test_the_table_of_runs_is_sorted_by_a_column(tmp_path: Path, open_page: OpenPage) -> None:
    folder = write_run(tmp_path / "run", synthetic())
    for name in ("constant", "cvar"):
        records = synthetic("constant")
        records[0] = replace(records[0], strategy=name)  # type: ignore[type-var]
        if name == "cvar":
            records = [
                replace(each, losses=dict.fromkeys(DOMAINS, 3.0))
                if isinstance(each, ModelMeasured) and each.model == "recovered"
                else each
                for each in records
            ]
        write_run(folder / "compare" / name, records)
    page = open_page(write_report(folder).as_uri())
    table = page.locator("table.sortable")

    def names() -> list[str]:
        found: list[str] = table.locator("tbody tr th").all_inner_texts()
        return found

    assert names()[:4] == ["unpruned", "drpruning", "constant", "cvar"]
    last = names()[4:]
    table.get_by_role("button", name="python").click()
    assert names()[:4] == ["unpruned", "constant", "drpruning", "cvar"]
    table.get_by_role("button", name="python").click()
    assert names()[:4] == ["unpruned", "cvar", "drpruning", "constant"]
    assert names()[4:] == last
    table.get_by_role("button", name="python").click()
    assert names()[:4] == ["unpruned", "drpruning", "constant", "cvar"]
