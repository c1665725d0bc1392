"""The page's fixed figures: marks are where their values are, and text is escaped."""

import math
import re
from xml.etree import ElementTree as ET

import pytest

from drpruning.records import Kept
from drpruning.report.diagrams import CellMap, DotPlot, Dots, Key, mask_maps
from drpruning.report.page.svg import cell_map_svg, dot_plot_svg, nice_ticks


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - drawn a moment ago


def texts(svg: str) -> dict[str, tuple[float, float]]:
    """Return the position of each text of a drawing."""
    return {
        "".join(element.itertext()): (float(element.attrib["x"]), float(element.attrib["y"]))
        for element in parse(svg).iter("text")
    }


def plot(*series: tuple[str, tuple[float, ...]], zero_line: bool = False) -> DotPlot:
    dots = tuple(Dots(Key(shape, "var(--accent)", shape), values) for shape, values in series)
    rows = tuple(f"domain {index}" for index in range(len(series[0][1])))
    return DotPlot("name", "title", "description", "nats", rows, dots, (), zero_line=zero_line)


def test_dots_are_on_the_scale_of_the_ticks() -> None:
    svg = dot_plot_svg(plot(("dot", (1.0, 2.5)), ("ring", (3.0, math.nan))))
    places = texts(svg)
    left, right = places["1"][0], places["3"][0]
    circles = [element.attrib for element in parse(svg).iter("circle")]
    assert len(circles) == 3  # the value that is not a number has no mark
    expected = [left, right, left + 0.75 * (right - left)]
    assert sorted(float(each["cx"]) for each in circles) == pytest.approx(sorted(expected), abs=0.02)
    rows = {float(each["cy"]) for each in circles}
    assert rows == {places[name][1] - 3.5 for name in ("domain 0", "domain 1")}


def test_a_zero_line_is_within_the_axis() -> None:
    svg = dot_plot_svg(plot(("dot", (0.5, 0.9)), zero_line=True))
    assert "0" in texts(svg)


def test_every_shape_of_a_legend_has_a_mark_and_one_value_alone_can_be_drawn() -> None:
    shapes = ("tick", "dot", "ring", "square", "diamond", "triangle", "cross")
    drawn = [dot_plot_svg(plot((shape, (2.0,)))) for shape in shapes]
    assert len({re.sub(r"\s+", " ", each) for each in drawn}) == len(shapes)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3e-9, 2e-9), (1e11, 9e11), (2.0, 2.0000001)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low <= tick <= high for tick in ticks)


def test_cells_show_which_units_are_kept() -> None:
    kept = Kept(
        source={"layers": 3, "kv_heads": 2, "heads": 4, "intermediate": 4, "hidden": 4},
        target={}, layers=[0, 2], hidden=[0, 1, 3], heads=[[0], [1]], intermediate=[[0, 1], [2, 3]],
    )  # fmt: skip
    heads, units, hidden = mask_maps(kept)
    assert heads.shares == {(0, 0): 1.0, (0, 1): 0.0, (2, 0): 0.0, (2, 1): 1.0}
    assert heads.crosses == (1,)
    assert [units.shares[2, row] for row in range(4)] == [0.0, 0.0, 1.0, 1.0]
    assert sum(hidden.shares.values()) == 3
    svg = cell_map_svg(heads)
    outlines = [element.attrib for element in parse(svg).iter("path")]
    assert [each["d"].count("M") for each in outlines if each["d"].endswith("z")] == [2, 2]
    assert texts(svg)["1/2"][0] in {texts(svg)["0"][0], texts(svg)["2"][0]}


def test_text_is_escaped() -> None:
    svg = cell_map_svg(CellMap("name", "t", 'a "<script>', 1, 1, {(0, 0): 1.0}, "</svg><script>", y_label="<b>"))
    root = parse(svg)
    assert root.attrib["aria-label"] == 'a "<script>'
    assert {"</svg><script>", "<b>"} <= set(texts(svg))
