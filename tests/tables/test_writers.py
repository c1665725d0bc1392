"""One table through every writer: text is escaped, better is bold, worse in italics, the interval follows."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from drpruning.formatting import signed
from drpruning.tables import Cell, Row, Table
from drpruning.tables.html import table_html
from drpruning.tables.latex import table_latex
from drpruning.tables.markdown import table_markdown
from drpruning.tables.terminal import choose_columns, print_table, split_columns

ODD = "[b]50% | <i> a_b\x1b[31m"


def example() -> Table:
    rows = [
        Row.of(ODD, Cell("2.000", 2.0, "± 0.100†", worse=True), Cell.of(0.5, signed)),
        Row.of("plain", Cell("1.000", 1.0, "± 0.200", best=True), Cell.of(0.5, signed)),
    ]
    mean = Row.of("mean", "1.500", "", kind="summary")
    return Table(["name", "loss", "excess"], [*rows, mean], title="A & B", note="Lower is better.")


def printed(table: Table, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_table(console, table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def test_the_terminal_prints_markup_and_terminal_codes_as_text() -> None:
    lines = printed(example())
    assert lines[0] == "A & B"
    assert lines[2].startswith("[b]50% | <i> a_b\N{REPLACEMENT CHARACTER}[31m")
    assert lines[2].endswith("2.000 ± 0.100†  +0.500")
    assert lines[-1].split() == ["mean", "1.500"]


def test_html_escapes_and_shows_the_interval_below_the_value() -> None:
    text = table_html(example(), "methods")
    assert 'aria-label="A &amp; B"' in text
    assert "50% | &lt;i&gt; a_b" in text
    assert "<td><b>1.000</b><small>± 0.200</small></td>" in text
    assert "<td><em>2.000</em><small>± 0.100†</small></td>" in text
    assert "<caption>Lower is better.</caption>" in text


def test_cells_of_a_sortable_table_have_their_numbers() -> None:
    text = table_html(replace(example(), sortable=True), "methods")
    assert '<table class="methods sortable">' in text
    assert '<td data-value="2.0"><em>2.000</em>' in text
    assert '<tr class="summary">' in text
    assert text.count("data-value") == 4
    assert "data-value" not in table_html(example())


def test_markdown_escapes_what_ends_a_cell() -> None:
    head, line, odd, plain, _, _, note = table_markdown(example()).splitlines()
    assert head == "| name | loss | excess |"
    assert line == "| --- | ---: | ---: |"
    assert "50% \\| <i>" in odd
    assert "| *2.000 ± 0.100†* |" in odd
    assert plain == "| plain | **1.000 ± 0.200** | +0.500 |"
    assert note == "Lower is better."


def test_latex_escapes_special_characters() -> None:
    text = table_latex(example())
    assert r"\caption{A \& B. Lower is better.}" in text
    assert r"50\% | <i> a\_b" in text
    assert r"\textit{2.000 ± 0.100$^\dagger$}" in text
    assert r"plain & \textbf{1.000 ± 0.200} & +0.500 \\" in text


def test_the_terminal_marks_better_and_worse_by_style() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    print_table(console, example())
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[3;31m2.000 ± 0.100†" in text
    assert "\x1b[1m 1.000 ± 0.200" in text


@pytest.mark.parametrize("width", [10, 30, 80])
def test_a_wide_table_is_split_and_each_column_is_in_one_part(width: int) -> None:
    names = [f"column {at}" for at in range(6)]
    table = Table(["name", *names], [Row.of("row", *map(str, range(6)))])
    parts = list(split_columns(table, width, repeated=1))
    assert [name for part in parts for name in part.columns[1:]] == names
    assert all(part.columns[0] == "name" for part in parts)
    if width > 20:
        assert all(len(line) <= width for part in parts for line in printed(part, width))


def test_important_columns_are_chosen_first_and_keep_their_order() -> None:
    table = Table(["name", "a" * 20, "b" * 20, "mean"], [Row.of("row", "1", "2", "3")])
    assert choose_columns(table, 60, [0, 3]).columns == ["name", "a" * 20, "b" * 20, "mean"]
    assert choose_columns(table, 40, [0, 3]).columns == ["name", "a" * 20, "mean"]


@pytest.mark.parametrize("width", [24, 40, 80])
def test_no_title_and_no_number_is_cut_whatever_the_width(width: int) -> None:
    names = ["documents", "validation\ndocuments", "test\ntokens", "meaning", "tokens"]
    numbers = ["1,234,567,890", "65,432", "12,345,678", "a sentence of several words " * 4, "42"]
    for name in ("web", "\N{CJK UNIFIED IDEOGRAPH-8A9E}" * 5, "a_name_" * 20):
        table = Table(["domain", *names], [Row.of(name, *numbers)], text_columns=("meaning",))
        lines = printed(table, width)
        text = "\n".join(lines)
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert all(number in text for number in (*numbers[:3], numbers[4]))
        assert "".join(text.split()).count("words") == 4
        assert all(word in text for title in names for word in title.split())
