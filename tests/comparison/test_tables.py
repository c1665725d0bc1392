"""The pages: every table in each format, nothing of a name or a reason taken for markup."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from drpruning.cli.compare import fit_to_terminal
from drpruning.comparison.difference_table import difference_cell
from drpruning.comparison.export_tables import html_page, latex_tables, markdown_page
from drpruning.comparison.metrics import WORST, RunMetrics
from drpruning.comparison.tables import compared_with, make_tables, results_verdict
from drpruning.comparison.verdict import verdict
from drpruning.formatting import NONE
from drpruning.intervals import Difference
from drpruning.tables import Table
from tests.comparison.conftest import Sampled


class Balanced(HTMLParser):
    """Notes the tags that are open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _has_numbers(table: Table) -> bool:
    return any(np.isfinite(cell.value) for row in table.rows for cell in row.cells)


def test_all_formats_have_all_tables(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(8), seeds=3, effect=-0.4)
    results = results.model_copy(update={"failed": {"moving, seed 9": "1 < 2 & worse"}})
    tables = make_tables(results, ["constant"])
    page, text, tex = html_page(results, tables), markdown_page(results, tables), latex_tables(results, tables)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "1 &lt; 2 &amp; worse" in page
    assert "://" not in page
    assert page.count("<script") == 1  # it sorts tables, and the policy permits no other
    policy = re.search(r"script-src '(sha256-[^']+)'", page)
    assert policy is not None
    script = page.partition("<script>")[2].partition("</script>")[0]
    assert policy[1] == "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.count('class="methods sortable"') == sum(_has_numbers(table) for table in tables)
    for table in tables:
        assert f"## {table.title}" in text
        assert table.title.split(",")[0] in page
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == len(tables)
    assert r"50\% | of\_all" in tex
    assert r"50% \| of_all" in text


def test_pages_say_on_how_much_text_losses_are_measured(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(8), seeds=2, effect=-0.4)
    assert "measured on" not in markdown_page(results, [])
    update = {"eval_tokens": {"web": 4096}, "final_eval_tokens": {"web": 16384}}
    text = markdown_page(results.model_copy(update=update), [])
    assert "Losses are measured on 16,384 test tokens of each domain; strategies, and" in text
    assert "another's loss, on 4,096 validation tokens of each domain." in text


def test_the_rows_hold_the_numbers(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(9), seeds=3, effect=-0.4)
    tables = {table.title: table for table in make_tables(results, ["constant"])}
    losses = tables["Held-out loss, nats per token"]
    mean = np.mean([run.recovered["web"] for run in results.of("moving")])
    row = next(row for row in losses.rows if row.texts[0] == "moving")
    assert row.texts[1:3] == ["3", f"{mean:.3f}"]
    differences = tables["Paired differences to constant, nats per token"]
    assert [row.texts[0] for row in differences.rows] == ["moving"]
    assert re.fullmatch("−0\\.\\d{3} \\[−0\\.\\d{3}, −0\\.\\d{3}\\]", differences.rows[0].texts[2])
    assert differences.rows[0].cells[2].best
    assert differences.rows[0].cells[3].best
    mixture = tables["Mixture trained on, continue stage"]
    assert mixture.rows[-1].texts == ["moving", "70%", "30%"]
    assert "Mixture trained on, prune stage" not in tables


def test_better_and_worse_are_marked_and_the_note_counts_comparisons(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(9), seeds=3, effect=0.4, documents=60)
    losses, _, differences = make_tables(results, ["constant"])[:3]
    assert [cell.worse for cell in differences.rows[0].cells] == [False, False, True, True, True, True, True]
    assert not any(cell.best or cell.worse for cell in losses.rows[1].cells)
    assert [cell.worse for cell in losses.rows[2].cells] == [False, False, True, True, True, True]
    assert "5 comparisons, of which 0.3 would exclude zero by chance" in differences.note
    assert "5 do, and 5 of them pass Benjamini-Hochberg at 5%." in differences.note
    assert "Warning" not in differences.note
    better = make_tables(sampled(np.random.default_rng(9), seeds=3, effect=-0.4), ["constant"])[2]
    assert all(cell.best for cell in better.rows[0].cells[2:])
    assert "too narrow: worst excess (20 groups of documents in" in better.note
    assert "web (20 groups of documents in web); code (20 groups of documents in code)" in better.note


def test_a_marked_difference_that_is_one_of_many_has_a_dagger() -> None:
    cells = [difference_cell(Difference(-2.5, 1.0), passed=passed) for passed in (True, False)]
    assert [cell.interval[-1] for cell in cells] == ["]", "†"]
    assert difference_cell(Difference(-1.0, 1.0), passed=False).interval[-1] == "]"


def test_primary_endpoints_come_first_and_a_change_is_named(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(9), seeds=3, effect=-0.4)
    declared = results.model_copy(update={"primary": ["mean", "web"], "first_primary": ["mean", "web"]})
    table = make_tables(declared, ["constant"])[0]
    assert table.title == "Primary endpoints, differences to constant, nats per token"
    assert table.columns == ["method", "seeds", "plain mean", "web"]
    assert table.note.startswith("Declared before the first run.")
    assert "2 comparisons" in table.note
    changed = make_tables(declared.model_copy(update={"primary": ["worst"]}), ["constant"])[0]
    assert changed.columns[2] == "worst excess"
    assert changed.note.startswith(
        "Warning: the primary endpoints were changed after the first run: before it mean, web"
    )
    removed = make_tables(declared.model_copy(update={"primary": []}), ["constant"])[0]
    assert "before it mean, web, now none" in removed.note
    assert make_tables(results, ["constant"])[0].title.startswith("Held-out")


@pytest.mark.parametrize(
    ("effect", "sentence"),
    [
        (-0.4, r"moving is ahead of constant in the worst excess: −0\.\d{3} \[−0\.\d{3}, −0\.\d{3}\] nats per token\."),
        (0.4, r"constant is ahead of moving in the worst excess: −0\.\d{3} \[−0\.\d{3}, −0\.\d{3}\] nats per token\."),
        (0.0, r"No method is ahead of constant in the worst excess, the plain mean or the ratio-weighted mean\."),
    ],
)
def test_the_verdict_is_the_first_line_of_the_pages(effect: float, sentence: str, sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(9), seeds=3, effect=effect)
    found = results_verdict(results, ["constant"], RunMetrics(results))
    assert re.match(sentence, found), found
    page, text = html_page(results, [], None, found), markdown_page(results, [], found)
    assert page.index(f"<p><strong>{found}</strong></p>") < page.index("methods with 3 seeds")
    assert text.splitlines()[2].replace("\\", "") == found


def test_the_verdict_is_on_the_declared_endpoints_and_names_the_best_of_several(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(9), seeds=3, effect=-0.4)
    further = [run.model_copy(update={"method": "again"}) for run in results.of("moving")]
    methods = {**results.methods, "again": results.methods["moving"]}
    update = {"runs": [*results.runs, *further], "methods": methods, "primary": ["web"], "first_primary": ["web"]}
    several = results.model_copy(update=update)
    found = results_verdict(several, ["constant"], RunMetrics(several))
    assert re.fullmatch(
        r"moving is ahead of constant in the domain web: −0\.\d{3} \[.*\] nats per token; 2 methods are ahead of it\.",
        found,
    )
    nearest = results_verdict(several, ["moving"], RunMetrics(several))
    assert nearest.startswith("No method is ahead of moving in the domain web")
    alone = results.model_copy(update={"runs": results.of("constant")})
    assert results_verdict(alone, ["constant"], RunMetrics(alone)) == ""


def test_the_verdict_names_a_method_that_is_ahead_and_not_a_lower_one_that_is_not(
    sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = sampled(np.random.default_rng(9), seeds=3)
    differences = {"moving": Difference(-0.5, 0.6), "clear": Difference(-0.1, 0.01)}
    metrics = RunMetrics(
        results.model_copy(update={"methods": {**results.methods, "clear": results.methods["moving"]}})
    )
    monkeypatch.setattr(metrics, "difference", lambda _, method, other: differences.get(method))
    assert verdict(metrics, [WORST], "constant") == (
        "clear is ahead of constant in the worst excess: −0.100 [−0.120, −0.080] nats per token."
    )


def test_a_method_is_compared_with_once_and_one_without_runs_not_at_all(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(10), seeds=2)
    titles = [table.title for table in make_tables(results, ["constant", "moving", "constant"])]
    assert len(titles) == len(set(titles))
    assert compared_with(results, ["constant", "moving", "constant"]) == ["constant", "moving"]
    alone = results.model_copy(update={"runs": results.of("constant")})
    assert compared_with(alone, ["moving"]) == ["constant"]
    cost = next(table for table in make_tables(alone, ["moving"]) if table.title == "Cost")
    assert cost.columns[-1] == "tokens to constant's plain mean"


def test_a_loss_above_the_range_of_a_perplexity_is_not_shown(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(10), seeds=2)
    broken = {"web": 800.0, "code": 40.0}
    runs = [run.model_copy(update={"recovered": broken}) if run.method == "moving" else run for run in results.runs]
    tables = {table.title: table for table in make_tables(results.model_copy(update={"runs": runs}), ["constant"])}
    constant, moving = tables["Perplexity per token"].rows
    assert NONE not in constant.texts
    assert moving.texts == ["moving", "2", NONE, "2.4e+17", NONE]


def test_a_method_without_runs_has_no_row(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(10), seeds=2)
    results = results.model_copy(update={"runs": results.of("constant")})
    for table in make_tables(results, ["constant"])[:-1]:
        assert all(row.texts[0] != "moving" for row in table.rows)


def test_accuracy_is_shown_where_it_was_measured(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(12), seeds=2)
    own = {"acc": 0.2, "acc_norm": 0.3, "acc_mutual_info": 0.4}
    tasks = {"web": {"acc": 0.25, "acc_norm": 0.5}, "code": {"acc": 0.75}, "drpruning_web": own}
    results = results.model_copy(update={"runs": [run.model_copy(update={"tasks": tasks}) for run in results.runs]})
    table = next(table for table in make_tables(results, ["constant"]) if table.title == "Accuracy, %")
    assert table.rows[0].texts == ["constant", "2", "50.00", "75.00", "40.00", "55.00"]


def test_the_terminal_gets_the_columns_that_fit_the_summary_first(sampled: Sampled) -> None:
    tables = make_tables(sampled(np.random.default_rng(13), seeds=2), ["constant"])
    losses, differences = tables[0], next(table for table in tables if table.title.startswith("Paired"))
    assert fit_to_terminal(losses, 200) == losses
    assert fit_to_terminal(losses, 60).columns == ["method", "seeds", "web", "plain mean", "ratio-weighted mean"]
    assert fit_to_terminal(differences, 80).columns[:4] == [
        "method",
        "seeds",
        "worst excess",
        "plain mean",
    ]


def test_seeds_without_the_base_s_documents_are_named(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(14), seeds=3)
    assert results.omitted_seeds() == ""
    documents = {seed: found for seed, found in results.base_documents.items() if seed != 1}
    omitted = results.model_copy(update={"base_documents": documents})
    sentence = "Excess, differences and marks leave out seed 1: expected bases/seed-1.json, found none."
    assert omitted.omitted_seeds() == sentence
    tables = make_tables(omitted, ["constant"])
    assert sentence in html_page(omitted, tables)
    excess = next(table for table in tables if table.title.startswith("Excess"))
    assert [row.texts[1] for row in excess.rows] == ["2", "2"]
    alone = results.model_copy(update={"base": {}, "base_documents": {}})
    assert alone.omitted_seeds().endswith("leave out seed 0, 1, 2: no run measured the unpruned model.")


def test_tokens_to_the_loss_of_a_method_without_evaluations_are_not_a_loss_that_was_not_reached(
    sampled: Sampled,
) -> None:
    results = sampled(np.random.default_rng(14), seeds=2)
    runs = [run.model_copy(update={"points": []}) if run.method == "constant" else run for run in results.runs]
    cost = next(
        table for table in make_tables(results.model_copy(update={"runs": runs}), ["constant"]) if table.title == "Cost"
    )
    assert [row.texts[-1] for row in cost.rows] == [NONE, NONE]
