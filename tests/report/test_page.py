"""The report: its numbers are right, and whatever a run folder holds, the page is whole and nothing in it runs."""

import base64
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from drpruning.cli.render.run_outcome import print_tables
from drpruning.cli.report import report
from drpruning.errors import CorpusError, StateError
from drpruning.formatting import NONE
from drpruning.records import (
    Evaluated,
    Incident,
    Kept,
    ModelMeasured,
    Record,
    RunEnded,
    RunStarted,
    StepTaken,
    TaskMeasured,
)
from drpruning.report import compare_strategies, open_run, summary_table, write_report
from drpruning.report.figures.plots import Plots
from tests.report.synthetic import BASE, DOMAINS, RATIO, synthetic, write_run


class Page(HTMLParser):
    """What a browser would make of the page: its tags, its attributes, its text, its table rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.elements.append((tag, attrs))
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in {"meta", "br", "input"}:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))
        elif self.open[-1:] != ["style"]:
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script draws."""
        found: dict[str, Any] = json.loads(next(text for attributes, text in self.scripts if "id" in attributes))
        return found

    def stage(self, name: str, run: int = 0) -> dict[str, Any]:
        """Return the numbers of a stage."""
        found: dict[str, Any] = next(each for each in self.data["runs"][run]["stages"] if each["name"] == name)
        return found

    def shown_sections(self) -> set[str]:
        """Return the sections with text, without the script: those with figures only are shown by it."""
        links = [dict(attributes) for tag, attributes in self.elements if tag == "section"]
        return {str(each["id"]) for each in links if "hidden" not in each}

    def figures(self) -> list[str]:
        """Figures that are drawn without the script."""
        return [value for tag, key, value in self.attributes if tag == "svg" and key == "aria-label"]


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder).read_text())
    assert page.open == []
    ids = {value for _, key, value in page.attributes if key == "id"}
    values = " ".join(value for _, key, value in page.attributes if key in {"style", "href", "clip-path"})
    assert set(re.findall(r"url\(#([^)]*)\)", values)) <= ids
    assert not re.search(r"(?<!\()#[0-9a-f]{6}\b", values), "a colour was left without its variable"
    return page


def test_summary_table_has_the_numbers_of_the_records(run: Path) -> None:
    summary = summary_table(open_run(run).records)
    python = summary.rows[0]
    assert [row.name for row in summary.rows] == DOMAINS
    # By hand: base 2.41, left 0.29, right after pruning 2.41 + 2.2 * 0.29 + 0.4 = 3.448.
    assert (python.base, python.pruned, python.recovered) == pytest.approx((2.41, 3.448, 2.70))
    assert python.excess == pytest.approx(0.29)
    assert python.recovery == pytest.approx(2.70 - 3.448)
    assert python.excess_pruned + python.recovery == pytest.approx(python.excess)
    assert summary.worst is not None
    assert summary.worst.name == "licences"
    assert summary.mean.base == pytest.approx((2.41 + 1.87 + 2.98 + 2.77 + 1.42 + 2.63 + 0.91) / 7)
    weighted = 0.67 * 2.41 + 0.15 * 1.87 + 0.045 * (2.98 + 2.77 + 1.42) + 0.025 * 2.63 + 0.02 * 0.91
    assert summary.ratio_weighted.base == pytest.approx(weighted)


def test_comparison_shows_where_the_constant_mixture_is_better(run: Path) -> None:
    opened = open_run(run)
    compared = compare_strategies(
        {opened.label: opened.records, **{other.label: other.records for other in opened.others}}
    )
    robust, constant = compared.rows
    assert (robust.name, constant.name) == ("drpruning", "constant")
    assert (robust.worst_domain, constant.worst_domain) == ("licences", "licences")
    assert (robust.worst_excess, constant.worst_excess) == pytest.approx((0.34, 0.92))
    assert constant.mean - robust.mean == pytest.approx((0.21 + 0.24 + 0.48 + 0.46 + 0.51 + 0.63 + 0.92 - 1.83) / 7)
    assert robust.ratio_weighted - constant.ratio_weighted == pytest.approx(
        0.67 * 0.08 - 0.15 * 0.02 - 0.045 * (0.22 + 0.21 + 0.32) - 0.025 * 0.35 - 0.02 * 0.58
    )


def test_comparison_takes_the_base_of_the_first_run_where_one_lacks_it() -> None:
    constant = [r for r in synthetic("constant") if not (isinstance(r, ModelMeasured) and r.model == "base")]
    compared = compare_strategies(
        {"drpruning": synthetic(), "constant": constant, "unfinished": synthetic("constant")[:2]}
    )
    assert compared.rows[1].worst_excess == pytest.approx(0.92)
    assert math.isnan(compared.rows[2].worst_excess)
    assert math.isnan(compared.rows[2].mean)


def test_a_mean_with_a_missing_domain_is_not_a_number() -> None:
    records: list[Record] = [
        RunStarted(
            name="x", recipe_hash="", strategy="constant", seed=1, domains=["a", "b"], reference_ratio={"a": 1.0}
        ),
        ModelMeasured(model="base", parameters=1, shape={}, losses={"a": 1.0, "b": 3.0}),
        ModelMeasured(model="pruned", parameters=1, shape={}, losses={"a": 2.0, "b": math.nan}),
    ]
    summary = summary_table(records)
    assert summary.mean.base == 2.0
    assert math.isnan(summary.mean.pruned)
    assert math.isnan(summary.ratio_weighted.base)
    assert math.isnan(summary.rows[0].recovery)


@pytest.mark.parametrize("has_validation", [True, False])
def test_the_page_has_the_amount_of_text_behind_the_losses(has_validation: bool, tmp_path: Path) -> None:
    """Guard against a curve on 4,096 tokens above the base's line on 16,384, where the table has it below."""
    curves, tables = dict.fromkeys(DOMAINS, 4096), dict.fromkeys(DOMAINS, 16384)
    on_curves = {name: loss + 0.4 for name, loss in BASE.items()} if has_validation else None
    records = [
        replace(record, eval_tokens=curves, final_eval_tokens=tables)
        if isinstance(record, RunStarted)
        else replace(record, evaluation_losses=on_curves)
        if isinstance(record, ModelMeasured)
        else record
        for record in synthetic()
    ]
    write_run(tmp_path / "run", records)
    page = Page(write_report(tmp_path / "run").read_text())
    text = page.words
    assert (
        "Curves and the line of the base are measured on 4,096 validation tokens of each domain, the tables on 16,384 "
        "test tokens of each domain."
    ) in text
    both = "the worst excess is 0.000 (python) here, +0.340 (licences) there"
    assert (both in text) == has_validation
    assert text.count("Measured on 16,384 test tokens of each domain.") == 2  # the figure of the headline, the table
    drawn = page.data["runs"][0]["base"]
    assert drawn == pytest.approx(list((on_curves or BASE).values()))
    figure = Plots(open_run(tmp_path / "run")).losses()
    assert figure is not None
    lines = [line.get_ydata() for line in figure.axes[0].lines]
    assert any(list(line) == pytest.approx([(on_curves or BASE)[DOMAINS[0]]] * 2) for line in lines if len(line) == 2)


def test_runs_on_different_corpora_are_compared_only_on_request(tmp_path: Path) -> None:
    for strategy, corpus in (("drpruning", "a"), ("constant", "b")):
        records = [
            replace(record, environment={"corpus": corpus * 64}) if isinstance(record, RunStarted) else record
            for record in synthetic(strategy)
        ]
        write_run(tmp_path / strategy, records)
    both = [str(tmp_path / "drpruning"), str(tmp_path / "constant")]
    for mode in ([], ["--json"], ["--figures", str(tmp_path / "figures")]):
        with pytest.raises(CorpusError, match=rf"corpus is {'a' * 16}, that of .*constant's is {'b' * 16}") as caught:
            CliRunner().invoke(report, [*both, *mode], catch_exceptions=False)
        assert "--other-corpus" in str(caught.value.next_step)
    assert CliRunner().invoke(report, [both[0]]).exit_code == 0
    shown = CliRunner().invoke(report, [*both, "--other-corpus", "--out", str(tmp_path / "both.html")])
    assert shown.exit_code == 0, shown.output
    text = Page((tmp_path / "both.html").read_text()).words
    assert "These runs were measured on different corpora: their losses do not compare." in text
    assert "With drpruning instead of constant" not in text


def test_page_is_whole_and_needs_nothing_from_outside(run: Path) -> None:
    path = write_report(run)
    html = path.read_text()
    page = Page(html)
    assert path == run / "report.html"
    assert path.stat().st_size < 3_000_000
    assert not [entry for entry in run.iterdir() if entry.suffix == ".tmp"]
    assert page.open == []
    assert not [value for _, key, value in page.attributes if key in {"src", "href"} and not value.startswith("#")]
    assert "@import" not in html
    (data, _), (_, script) = page.scripts
    assert data["type"] == "application/json"
    policy = next(value for _, key, value in page.attributes if key == "content" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"url\((?!#)", html)


def test_page_has_every_figure_and_ids_do_not_clash(run: Path) -> None:
    page = page_of(run)
    for part in ("heads kept", "FFN units kept", "hidden dimensions kept", "Loss above the base"):
        assert [label for label in page.figures() if part in label], part
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_the_data_of_the_figures_are_the_numbers_of_the_records(run: Path) -> None:
    page = page_of(run)
    data, prune = page.data, page.stage("prune")
    assert data["domains"] == DOMAINS
    assert data["kinds"] == ["layer", "head", "intermediate", "hidden"]
    assert data["runs"][0]["base"] == list(BASE.values())
    assert (prune["tokens"], prune["steps"]) == (150 * 2048, 150)
    assert [run["label"] for run in data["runs"]] == ["drpruning", "constant"]
    evaluated = [each for each in synthetic() if isinstance(each, Evaluated) and each.stage == "prune"]
    shown = prune["evaluations"]
    assert shown["step"] == [each.step for each in evaluated]
    for table in ("losses", "weights", "reference_ratio", "excess_loss", "reference_loss"):
        for at, name in enumerate(DOMAINS):
            assert shown[table][at] == pytest.approx([getattr(each, table)[name] for each in evaluated], rel=1e-4)
    assert shown["divergence"] == pytest.approx([each.divergence for each in evaluated], rel=1e-4)
    assert shown["predicted_loss"] == [None] * len(DOMAINS)
    taken = [each for each in synthetic() if isinstance(each, StepTaken) and each.stage == "prune"]
    assert prune["taken"]["loss"]["mean"] == pytest.approx([each.loss for each in taken], rel=1e-4)
    assert prune["taken"]["expected"][1] == pytest.approx([each.expected["head"] for each in taken], rel=1e-4)  # type: ignore[index]
    assert prune["taken"]["linear"][0] == pytest.approx([each.multipliers["layer"][0] for each in taken], rel=1e-4)  # type: ignore[index]
    assert prune["taken"]["utilisation"] is None
    assert page.stage("continue", run=1)["incidents"] == [[100, "resumed"]]


def test_predictions_bands_and_what_the_machine_did_reach_the_page(tmp_path: Path) -> None:
    records = synthetic()
    for at, record in enumerate(records):
        if isinstance(record, Evaluated) and record.stage == "continue" and record.step >= 100:
            loss = {"python": 2.7, "cpp": 2.1}
            records[at] = replace(record, predicted_loss=loss, predicted_band={"python": [2.6, 2.8], "cpp": [2.0, 2.4]})
        if isinstance(record, StepTaken):
            records[at] = replace(
                record,
                utilisation=0.4,
                loader_wait=0.001,
                memory=3 * 2**30,
                domain_losses={"cpp": 2.5},
                skipped=record.step == 7,
            )
    page = page_of(write_run(tmp_path / "run", records))
    shown, taken = page.stage("continue")["evaluations"], page.stage("continue")["taken"]
    assert (shown["predicted_loss"][0][-1], shown["predicted_low"][0][-1], shown["predicted_high"][0][-1]) == (
        2.7,
        2.6,
        2.8,
    )
    assert shown["predicted_loss"][1][0] is None
    assert shown["predicted_loss"][2] is None
    assert taken["memory"]["mean"] == [3.0] * 250
    assert (taken["utilisation"]["mean"][0], taken["loader_wait"]["mean"][0]) == (0.4, 0.001)
    assert taken["domain_losses"][1][0] == 2.5
    assert "2 steps were skipped" in page.words


def test_benchmarks_are_a_table_of_models(tmp_path: Path) -> None:
    def score(model: str, value: float, error: float, step: int | None = None) -> TaskMeasured:
        stage = None if step is None else "continue"
        return TaskMeasured(
            model=model, task="arc", metrics={"acc": value}, errors={"acc": error}, samples=400, stage=stage, step=step
        )

    records = [*synthetic(), score("base", 0.5, 0.02), score("small", 0.1, 0.01), score("small", 0.4, 0.02)]
    page = page_of(write_run(tmp_path / "run", [*records, score("small", 0.3, 0.02, step=100)]))
    assert ["task", "metric", "samples", "base", "small", "small, continue step 100"] in page.rows
    assert ["arc", "acc", "400", "0.500±0.020", "0.400±0.020", "0.300±0.020"] in page.rows


def test_page_tables_show_the_numbers(run: Path) -> None:
    page = page_of(run)
    assert ["python", "2.410", "+1.038", "\u22120.748", "2.700", "+0.290"] in page.rows
    table = next(rows for rows in (page.rows[at:] for at, row in enumerate(page.rows) if row[0] == "method"))
    assert table[0] == ["method", *DOMAINS, "mean", "ratio-weighted mean", "worst excess", "tokens", "FLOPs"]
    assert (table[1][0], table[1][1], *table[1][-3:]) == ("unpruned", "2.410", NONE, NONE, NONE)
    assert (table[2][0], table[2][1], *table[2][-3:]) == ("drpruning", "2.700", "+0.340", "819k", "10.8 TFLOP")
    assert (table[3][0], table[3][1], table[3][-3]) == ("constant", "2.620", "+0.920")
    assert (table[4][0], table[4][1], table[4][-3]) == ("drpruning \u2212 constant", "+0.080", "\u22120.580")
    assert "the worst excess is 0.580 lower" in page.words
    assert "resumed" in page.words
    assert "seed: 17" in page.words


def test_nothing_from_a_run_is_executed_or_read_as_markup(tmp_path: Path) -> None:
    hostile = [
        "</script><img src=x onerror=alert(1)>", "$\\frac{", '"><svg onload=alert(1)>', "_hidden",
        "a\x1b[31m\x00\ud800b", "\u8a9e\u8a00" * 40, "{{ 7*7 }}",
    ]  # fmt: skip
    records = synthetic(domains=hostile)
    records.append(Incident(what="<b>", detail="<script>alert(1)</script>"))
    page = page_of(write_run(tmp_path / "<i>run", records, recipe="</pre><script>alert(1)</script>"))
    assert not {"img", "b>"} & set(page.tags)
    assert len(page.scripts) == 2
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert "</script><img src=x onerror=alert(1)>" in page.words
    assert "$\\frac{" in page.words
    assert "{{ 7*7 }}" in page.words
    assert "\x1b" not in page.words
    assert page.data["domains"][3] == "_hidden"
    assert page.data["domains"][0] == "</script><img src=x onerror=alert(1)>"


def test_an_empty_run_has_a_note(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "empty", [], recipe=None))
    assert "This run has recorded nothing yet." in page.words
    assert page.figures() == []
    hidden = {value for tag, key, value in page.attributes if tag == "section" and key == "id"} - page.shown_sections()
    assert hidden >= {"outcome", "strategies", "kept", "tasks", "incidents", "recipe"}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 100, 170, 340])
def test_run_in_progress_shows_what_there_is(tmp_path: Path, count: int) -> None:
    page = page_of(write_run(tmp_path / "run", synthetic()[:count]))
    assert "This run has not ended" in page.words


def test_unreadable_lines_do_not_take_the_others_with_them(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text()
    garbage = [
        "",
        "{",
        "[]",
        "null",
        '{"kind": ["step"]}',
        '{"kind": "step", "loss": "low"}',
        "\x00\xff",
        "[" * 100_000,
    ]
    unknown = json.dumps({"kind": "from_the_future", "value": 1})
    newer = json.dumps({"kind": "incident", "what": "newer", "detail": "has a field more", "colour": "red"})
    metrics.write_text("\n".join([*garbage, unknown, newer, whole]) + '{"kind": "step", "stage": "conti')
    page = page_of(run)
    assert ["python", "2.410", "+1.038", "\u22120.748", "2.700", "+0.290"] in page.rows
    assert "has a field more" in page.words
    assert "6 lines of metrics.jsonl could not be read" in page.words


def test_losses_that_are_not_numbers_leave_gaps(tmp_path: Path) -> None:
    nothing = dict.fromkeys(DOMAINS, math.nan)
    records: list[Record] = [
        synthetic()[0],
        ModelMeasured(model="base", parameters=0, shape={}, losses=nothing),
        StepTaken(
            stage="prune", step=1, tokens=10, loss=math.nan, learning_rate=0.0, grad_norm=math.inf,
            tokens_per_second=0.0, expected={"layer": math.nan, "odd kind": 0.5},
            scheduled={}, multipliers={"layer": []},
        ),
        Evaluated(stage="prune", step=1, tokens=10, parameters=1.0, losses=nothing, weights=nothing,
                  reference_ratio=nothing, excess_loss=nothing, divergence=math.nan),
        Kept(source={}, target={}, layers=[], hidden=[], heads=[[]], intermediate=[]),
        RunEnded(seconds=math.nan),
    ]  # fmt: skip
    page = page_of(write_run(tmp_path / "run", records))
    assert ["python", *[NONE] * 5] in page.rows
    assert page.data["kinds"] == ["layer", "odd kind"]
    assert page.stage("prune")["taken"]["loss"] is None
    assert page.stage("prune")["evaluations"]["losses"] == [None] * len(DOMAINS)


def test_numbers_too_large_to_draw_are_still_in_the_tables(tmp_path: Path) -> None:
    huge = dict.fromkeys(DOMAINS, 1e308)
    started = synthetic()[0]
    records = [
        started,
        *(ModelMeasured(model=name, parameters=1, shape={}, losses=huge) for name in ("base", "pruned")),
    ]
    for step, sign in ((1, 1), (2, -1)):
        losses = {name: sign * loss for name, loss in huge.items()}
        records.append(
            Evaluated(
                stage="prune", step=step, tokens=step, parameters=1.0, losses=losses, weights=losses,
                reference_ratio=losses, excess_loss=losses, divergence=1e308,
            )
        )  # fmt: skip
    page = page_of(write_run(tmp_path / "run", records))
    assert next(row for row in page.rows if row[0] == "python")[1] == f"{1e308:.3f}"
    assert page.stage("prune")["evaluations"]["losses"] == [None] * len(DOMAINS)


def test_a_record_that_claims_an_impossible_size_is_not_drawn(tmp_path: Path) -> None:
    kept = Kept(source={"layers": 10**9}, target={}, layers=[10**9], hidden=[1], heads=[[1]], intermediate=[[10**12]])
    page = page_of(write_run(tmp_path / "run", [kept]))
    assert "kept" not in page.shown_sections()


def test_the_cost_by_stage_adds_up(run: Path) -> None:
    """Check that the sums are those of the rows; the headline has the same numbers."""
    page = page_of(run)
    at = page.rows.index(["stage", "steps", "tokens", "time", "FLOPs"])
    assert page.rows[at + 1 : at + 4] == [
        ["prune", "150", "307,200", "46 s", "3.07 TFLOP"],
        ["continue", "250", "512,000", "1 min 18 s", "7.68 TFLOP"],
        ["total", "400", "819,200", "2 min 4 s", "10.8 TFLOP"],
    ]
    assert "819k tokens, 2 min 4 s and 10.8 TFLOP" in page.words


def test_no_percentage_of_the_page_is_above_100(run: Path) -> None:
    found = [float(each) for each in re.findall(r"([\d.]+)%", page_of(run).words)]
    assert found
    assert max(found) <= 100


def test_sections_without_content_are_left_out(run: Path, tmp_path: Path) -> None:
    assert {"outcome", "strategies", "kept", "incidents", "recipe"} <= page_of(run).shown_sections()
    quiet = [record for record in synthetic() if not isinstance(record, Incident)]
    alone = page_of(write_run(tmp_path / "alone", quiet))
    assert not {"strategies", "tasks", "incidents"} & alone.shown_sections()
    assert "#tasks" not in [
        dict(attributes).get("href")
        for tag, attributes in alone.elements
        if tag == "a" and "hidden" not in dict(attributes)
    ]


def test_bounds_that_held_and_mean_mixtures_are_shown(tmp_path: Path) -> None:
    records = synthetic()
    evaluated = [at for at, record in enumerate(records) if isinstance(record, Evaluated)]
    for at in evaluated[-3:]:
        records[at] = replace(records[at], at_bound=["python"], average_weights=RATIO)
    page = page_of(write_run(tmp_path / "run", records))
    assert f"python was held by its bounds at 3 of {len(evaluated)} evaluations." in page.words
    assert "Mean mixture of the stage: python 67.0%, cpp 15.0%" in page.words


def test_an_earlier_report_stays_until_the_new_one_is_complete(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_report(run, run / "other" / "page.html")
    before = out.read_bytes()

    def full(*_: object, **__: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(run, out)
    assert out.read_bytes() == before


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


@pytest.mark.parametrize("make", ["nothing", "file", "other folder"])
def test_what_is_not_a_run_folder_is_refused(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "run"
    if make == "file":
        folder.write_text("")
    elif make == "other folder":
        folder.mkdir()
    with pytest.raises(
        StateError, match={"nothing": "does not exist", "file": "is a file"}.get(make, "not a run folder")
    ):
        write_report(folder)


def test_command_prints_the_path(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(report, [str(run), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0
    assert result.output.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


def test_terminal_prints_both_tables(run: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    print_tables(console, run)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["python", "2.410", "+1.038", "\u22120.748", "2.700", "+0.290"] in lines
    assert ["worst", "excess", "+0.340", "+0.920"] in lines
    assert ["ratio-weighted", "mean", "2.574", "2.578"] in lines


def test_strategies_that_do_not_fit_side_by_side_fill_several_tables(run: Path) -> None:
    for at in range(7):
        records = synthetic("constant")
        records[0] = replace(records[0], strategy=f"strategy_{at}")
        write_run(run / "compare" / f"strategy_{at}", records)
    console = Console(file=io.StringIO(), width=72)
    print_tables(console, run)
    printed = console.file.getvalue()
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 72
    heads = [line.split() for line in printed.splitlines() if line.split()[:1] == ["drpruning"]]
    assert [name for head in heads for name in head[1:]] == ["constant", *(f"strategy_{at}" for at in range(7))]
    console = Console(file=io.StringIO(), width=20)  # narrower than any table: names are wrapped, and each is there
    print_tables(console, run)
    narrow = console.file.getvalue()
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 20
    assert all(name in narrow for name in ("constant", *(f"strategy_{at}" for at in range(7))))


def test_terminal_prints_names_unchanged(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    names = ["[red]x[/red]", "a\x1b[31mb", *DOMAINS[2:]]
    print_tables(console, write_run(tmp_path / "run", synthetic(domains=names)))
    assert "[red]x[/red]" in console.file.getvalue()
    assert "\x1b[31m" not in console.file.getvalue()
    print_tables(console, write_run(tmp_path / "empty", []))
    assert "No model has been measured yet." in console.file.getvalue()


def test_reading_a_run_loads_neither_torch_nor_matplotlib(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from drpruning.report import open_run, summary_table, write_report\n"
        "summary_table(open_run(Path(sys.argv[1])).records)\n"
        "assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "write_report(Path(sys.argv[1])); assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


def test_folders_of_one_name_go_by_where_they_part(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / method / "seed-17" for method in ("paper", "wide")]
    for folder in folders:
        write_run(folder, synthetic())
    opened = open_run(*folders)
    assert [opened.label, *(other.label for other in opened.others)] == ["paper", "wide"]


def test_folders_of_several_seeds_keep_the_seed(tmp_path: Path) -> None:
    folders = [tmp_path / method / f"seed-{seed}" for method in ("paper", "wide") for seed in (17, 18)]
    for folder in folders:
        write_run(folder, synthetic())
    opened = open_run(*folders)
    labels = [opened.label, *(other.label for other in opened.others)]
    assert labels == ["paper/seed-17", "paper/seed-18", "wide/seed-17", "wide/seed-18"]


def test_runs_go_by_strategy_or_by_folder_where_that_would_be_ambiguous(run: Path) -> None:
    assert [open_run(run).label, *(other.label for other in open_run(run).others)] == ["drpruning", "constant"]
    write_run(run / "compare" / "quickstart", synthetic())
    opened = open_run(run)
    assert opened.label == "quickstart"
    assert [other.label for other in opened.others] == ["compare/constant", "compare/quickstart"]
    page = page_of(run)
    rows = {row[0]: row[-3] for row in page.rows if len(row) > 2}
    assert (rows["quickstart"], rows["compare/constant"], rows["compare/quickstart"]) == ("+0.340", "+0.920", "+0.340")
