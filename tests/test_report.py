"""The report: its numbers are right, and whatever a run folder holds, the page is whole and nothing in it runs."""

import io
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from drpruning.cli.outcome import print_tables
from drpruning.cli.report import command
from drpruning.errors import StateError
from drpruning.records import (
    Evaluated,
    Incident,
    JsonlSink,
    Kept,
    ModelMeasured,
    Record,
    RunEnded,
    RunStarted,
    StageEnded,
    StageStarted,
    StepTaken,
)
from drpruning.report import comparison, open_run, summary_table, write_report
from drpruning.report.words import NONE

DOMAINS = ["python", "cpp", "math", "ml_docs", "stubs", "readme", "licences"]
RATIO = dict(zip(DOMAINS, [0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02], strict=True))
BASE = dict(zip(DOMAINS, [2.41, 1.87, 2.98, 2.77, 1.42, 2.63, 0.91], strict=True))
SOURCE = {"layers": 6, "hidden": 128, "heads": 8, "kv_heads": 4, "intermediate": 384}
TARGET = {"layers": 4, "hidden": 96, "heads": 4, "kv_heads": 2, "intermediate": 256}
LEFT = {
    "drpruning": [0.29, 0.22, 0.26, 0.25, 0.19, 0.28, 0.34],
    "constant": [0.21, 0.24, 0.48, 0.46, 0.51, 0.63, 0.92],
}
TOKENS = 2048


def synthetic(strategy: str = "drpruning", domains: list[str] = DOMAINS) -> list[Record]:
    """A run as the quickstart would leave it: losses jump in pruning, fall in recovery, weights follow the excess."""
    rng = random.Random(strategy)
    renamed = dict(zip(DOMAINS, domains, strict=True))
    excess = dict(zip(DOMAINS, LEFT[strategy], strict=True))
    after = {name: BASE[name] + 2.2 * excess[name] + 0.4 + 0.2 * at for at, name in enumerate(DOMAINS)}
    final = {name: BASE[name] + excess[name] for name in DOMAINS}

    def named(losses: dict[str, float]) -> dict[str, float]:
        return {renamed[name]: value for name, value in losses.items()}

    def model(name: str, parameters: int, shape: dict[str, int], losses: dict[str, float]) -> ModelMeasured:
        return ModelMeasured(model=name, parameters=parameters, shape=shape, losses=named(losses))

    records: list[Record] = [
        RunStarted(
            name="quickstart",
            recipe_hash="3f9ac2d1",
            strategy=strategy,
            seed=17,
            domains=domains,
            reference_ratio=named(RATIO),
            rho=0.1 if strategy == "drpruning" else None,
            environment={"python": "3.11.9", "torch": "2.6.0", "threads": "2", "platform": "Linux x86_64"},
        ),
        model("base", 1_838_000, SOURCE, BASE),
    ]
    ratio = dict(RATIO)
    for stage, steps in (("prune", 150), ("continue", 250)):
        records.append(
            StageStarted(
                stage=stage, steps=steps, tokens_per_step=TOKENS, parameters=1_838_000, shape=SOURCE, target=TARGET
            )
        )
        for step in range(steps + 1):
            at = step / steps
            if stage == "prune":
                rise = {name: (after[name] - BASE[name]) * (1 - math.exp(-4 * at)) for name in DOMAINS}
                losses = {name: BASE[name] + rise[name] + 0.25 * math.sin(math.pi * at) for name in DOMAINS}
            else:
                losses = {
                    name: final[name] + (after[name] - final[name]) * math.exp(-4.5 * at) * (1 - at) for name in DOMAINS
                }
            if step:
                ramp = min(1.0, at / 0.5)
                goal = {"layer": 2 / 6, "head": 0.5, "intermediate": 1 / 3, "hidden": 0.25}
                masks = stage == "prune"
                records.append(
                    StepTaken(
                        stage=stage,
                        step=step,
                        tokens=step * TOKENS,
                        loss=sum(RATIO[name] * losses[name] for name in DOMAINS) + rng.gauss(0, 0.06),
                        learning_rate=1e-3 * (1 - at),
                        grad_norm=1.0 + rng.random(),
                        tokens_per_second=6800 + rng.gauss(0, 250) - (700 if masks else 0),
                        expected={
                            kind: max(
                                0.0, value * ramp * (0.93 + 0.07 * at) - 0.12 * value * math.sin(9 * at) * (1 - at)
                            )
                            for kind, value in goal.items()
                        }
                        if masks
                        else None,
                        wanted={kind: value * ramp for kind, value in goal.items()} if masks else None,
                        multipliers={
                            kind: [0.4 * math.sin(4 * at) * (1 + value), 10 + 2 * at * value]
                            for kind, value in goal.items()
                        }
                        if masks
                        else None,
                    )
                )
            if step % 10 == 0:
                over = {name: losses[name] - BASE[name] for name in DOMAINS}
                middle = sum(over.values()) / len(over)
                lean = {name: ratio[name] * math.exp(4 * (over[name] - middle)) for name in DOMAINS}
                q = {name: value / sum(lean.values()) for name, value in lean.items()}
                far = 0.5 * sum((q[name] - ratio[name]) ** 2 / ratio[name] for name in DOMAINS)
                back = min(1.0, math.sqrt(0.1 / far)) if far else 1.0
                if strategy == "constant":
                    back = 0.0
                q = {name: ratio[name] + back * (q[name] - ratio[name]) for name in DOMAINS}
                moved = {
                    name: min(2 * RATIO[name], max(RATIO[name] / 2, 0.9 * ratio[name] + 0.1 * q[name]))
                    for name in DOMAINS
                }
                ratio = {name: value / sum(moved.values()) for name, value in moved.items()}
                records.append(
                    Evaluated(
                        stage=stage,
                        step=step,
                        tokens=step * TOKENS,
                        parameters=1_500_000.0,
                        losses=named(losses),
                        weights=named(q),
                        reference_ratio=named(ratio),
                        reference_loss=named({name: BASE[name] + 0.1 * (1 - at) for name in DOMAINS}),
                        excess_loss=named(over),
                        divergence=back**2 * far,
                    )
                )
        records.append(StageEnded(stage=stage, steps=steps, tokens=steps * TOKENS, seconds=steps * 0.31))
        if stage == "prune":
            records.append(
                Kept(
                    source=SOURCE,
                    target=TARGET,
                    layers=[0, 1, 3, 5],
                    hidden=sorted(rng.sample(range(128), 96)),
                    heads=[sorted(rng.sample(range(4), 2)) for _ in range(4)],
                    intermediate=[sorted(rng.sample(range(384), 256)) for _ in range(4)],
                    target_met=dict.fromkeys(TARGET, True),
                )
            )
            records.append(model("pruned", 947_000, TARGET, after))
    records += [
        Incident(what="resumed", detail="went on from checkpoint 100", stage="continue", step=100),
        model("recovered", 947_000, TARGET, final),
        RunEnded(seconds=124.0),
    ]
    return records


def write_run(folder: Path, records: list[Record], recipe: str | None = "name: quickstart\nseed: 17\n") -> Path:
    folder.mkdir(parents=True)
    sink = JsonlSink(folder / "metrics.jsonl")
    for record in records:
        sink.write(record)
    sink.close()
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "quickstart", synthetic())
    write_run(folder / "compare" / "constant", synthetic("constant"))
    return folder


class Page(HTMLParser):
    """What a browser would make of the page: its tags, its attributes, its text, its table rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in {"meta", "br"}:
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
        if self.open[-1:] != ["style"]:
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def figures(self) -> list[str]:
        return [value for tag, key, value in self.attributes if tag == "svg" and key == "aria-label"]


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder).read_text())
    assert page.open == []
    ids = {value for _, key, value in page.attributes if key == "id"}
    values = " ".join(value for _, key, value in page.attributes if key in {"style", "href", "clip-path"})
    assert set(re.findall(r"url\(#([^)]*)\)", values)) <= ids
    assert not re.search(r"(?<!\()#\S*0[1-6]0[0-9a-f]{3}\b", values), "a colour was left without its variable"
    return page


def test_summary_table_has_the_numbers_of_the_records(run: Path) -> None:
    summary = summary_table(open_run(run).records)
    python = summary.rows[0]
    assert [row.name for row in summary.rows] == DOMAINS
    # By hand: base 2.41, left 0.29, right after pruning 2.41 + 2.2 * 0.29 + 0.4 = 3.448.
    assert (python.base, python.pruned, python.recovered) == pytest.approx((2.41, 3.448, 2.70))
    assert python.excess == pytest.approx(0.29)
    assert python.gap_closed == pytest.approx((3.448 - 2.70) / (3.448 - 2.41))
    assert summary.worst is not None
    assert summary.worst.name == "licences"
    assert summary.mean.base == pytest.approx((2.41 + 1.87 + 2.98 + 2.77 + 1.42 + 2.63 + 0.91) / 7)
    weighted = 0.67 * 2.41 + 0.15 * 1.87 + 0.045 * (2.98 + 2.77 + 1.42) + 0.025 * 2.63 + 0.02 * 0.91
    assert summary.ratio_weighted.base == pytest.approx(weighted)


def test_comparison_shows_where_the_constant_mixture_is_better(run: Path) -> None:
    opened = open_run(run)
    compared = comparison({opened.label: opened.records, **{other.label: other.records for other in opened.others}})
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
    compared = comparison({"drpruning": synthetic(), "constant": constant, "unfinished": synthetic("constant")[:2]})
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
    assert math.isnan(summary.rows[0].gap_closed)


def test_page_is_whole_and_needs_nothing_from_outside(run: Path) -> None:
    path = write_report(run)
    html = path.read_text()
    page = Page(html)
    assert path == run / "report.html"
    assert path.stat().st_size < 3_000_000
    assert not [entry for entry in run.iterdir() if entry.suffix == ".tmp"]
    assert page.open == []
    assert "script" not in page.tags
    assert not [value for _, key, value in page.attributes if key in {"src", "href"} and not value.startswith("#")]
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_page_has_every_figure_and_ids_do_not_clash(run: Path) -> None:
    page = page_of(run)
    figures = page.figures()
    assert sum("Held-out loss of" in label for label in figures) == len(DOMAINS)
    assert sum("sparsity of kind" in label for label in figures) == 4
    for part in (
        "Weights sampled", "Reference ratio", "Excess loss", "Divergence", "Linear multipliers", "heads kept",
        "FFN units kept", "hidden dimensions kept", "Training loss", "Speed", "Loss above the base",
    ):  # fmt: skip
        assert [label for label in figures if part in label], part
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_page_tables_show_the_numbers(run: Path) -> None:
    page = page_of(run)
    assert ["python", "2.410", "3.448", "2.700", "72%", "+0.290"] in page.rows
    assert ["Worst excess", "+0.340", "+0.920"] in page.rows
    assert ["python", "2.700", "2.620"] in page.rows
    assert "every dimension of the target met" in page.words
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
    assert not {"script", "img", "b>"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert "</script><img src=x onerror=alert(1)>" in page.words
    assert "$\\frac{" in page.words
    assert "{{ 7*7 }}" in page.words
    assert "\x1b" not in page.words
    assert any(label == "Held-out loss of _hidden over tokens, in nats per token" for label in page.figures())


def test_empty_run_says_so(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "empty", [], recipe=None))
    assert "This run has recorded nothing yet." in page.words
    assert "No optimizer step has been recorded yet." in page.words
    assert page.figures() == []


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
    assert ["python", "2.410", "3.448", "2.700", "72%", "+0.290"] in page.rows
    assert "has a field more" in page.words


def test_losses_that_are_not_numbers_leave_gaps(tmp_path: Path) -> None:
    nothing = dict.fromkeys(DOMAINS, math.nan)
    records: list[Record] = [
        synthetic()[0],
        ModelMeasured(model="base", parameters=0, shape={}, losses=nothing),
        StepTaken(
            stage="prune", step=1, tokens=10, loss=math.nan, learning_rate=0.0, grad_norm=math.inf,
            tokens_per_second=0.0, expected={"layer": math.nan, "odd kind": 0.5}, wanted={}, multipliers={"layer": []},
        ),
        Evaluated(stage="prune", step=1, tokens=10, parameters=1.0, losses=nothing, weights=nothing,
                  reference_ratio=nothing, excess_loss=nothing, divergence=math.nan),
        Kept(source={}, target={}, layers=[], hidden=[], heads=[[]], intermediate=[]),
        RunEnded(seconds=math.nan),
    ]  # fmt: skip
    page = page_of(write_run(tmp_path / "run", records))
    assert ["python", *[NONE] * 5] in page.rows
    assert "odd kind" in page.words


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
    assert page.rows[1][0] == "python"
    assert page.rows[1][1] == f"{1e308:.3f}"
    assert not [label for label in page.figures() if "Held-out" in label]


def test_a_record_that_claims_an_impossible_size_is_not_drawn(tmp_path: Path) -> None:
    kept = Kept(source={"layers": 10**9}, target={}, layers=[10**9], hidden=[1], heads=[[1]], intermediate=[[10**12]])
    page = page_of(write_run(tmp_path / "run", [kept]))
    assert "holds no indices that can be drawn" in page.words


def test_many_domains_share_colours_but_not_strokes(tmp_path: Path) -> None:
    names = [f"domain {index}" for index in range(20)]
    losses = {name: 2.0 + index / 10 for index, name in enumerate(names)}
    share = dict.fromkeys(names, 0.05)
    records: list[Record] = [
        RunStarted(name="many", recipe_hash="", strategy="drpruning", seed=1, domains=names, reference_ratio=share),
        *(
            Evaluated(stage="continue", step=step, tokens=step * 10**9, parameters=1.0, losses=losses, weights=share,
                      reference_ratio=share, excess_loss=losses)
            for step in range(3)
        ),
    ]  # fmt: skip
    page = page_of(write_run(tmp_path / "run", records))
    assert sum("Held-out loss of" in label for label in page.figures()) == 20
    assert "pattern" in page.tags
    assert "billion tokens" in page.words


def test_bounds_that_held_and_mean_mixtures_are_told(tmp_path: Path) -> None:
    records = synthetic()
    evaluated = [at for at, record in enumerate(records) if isinstance(record, Evaluated)]
    for at in evaluated[-3:]:
        records[at] = replace(records[at], bounded=["python"], average_weights=RATIO)
    page = page_of(write_run(tmp_path / "run", records))
    assert f"python was held by its bounds at 3 of {len(evaluated)} evaluations." in page.words
    assert "Mean mixture of the stage: python 67.0%, cpp 15.0%" in page.words


def test_an_earlier_report_stays_until_the_new_one_is_complete(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_report(run, run / "elsewhere" / "page.html")
    before = out.read_bytes()

    def full(*_: object, **__: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
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
    result = CliRunner().invoke(command, [str(run), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0
    assert result.output.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


def test_terminal_prints_both_tables(run: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    print_tables(console, run)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["python", "2.410", "3.448", "2.700", "72%", "+0.290"] in lines
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
    console = Console(file=io.StringIO(), width=20)  # narrower than any table: still each is there
    print_tables(console, run)
    assert sum(line.startswith("plain") for line in console.file.getvalue().splitlines()) == 8


def test_terminal_prints_names_as_they_are(tmp_path: Path) -> None:
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
        "write_report(Path(sys.argv[1])); assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, timeout=120)


def test_runs_go_by_strategy_or_by_folder_where_that_would_be_ambiguous(run: Path) -> None:
    assert [open_run(run).label, *(other.label for other in open_run(run).others)] == ["drpruning", "constant"]
    write_run(run / "compare" / "quickstart", synthetic())
    opened = open_run(run)
    assert opened.label == "quickstart"
    assert [other.label for other in opened.others] == ["compare/constant", "compare/quickstart"]
    page = page_of(run)
    assert ["Worst excess", "+0.340", "+0.920", "+0.340"] in page.rows
