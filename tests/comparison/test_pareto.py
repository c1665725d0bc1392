"""The trade of worst excess against weighted mean: the static front, places of names, the page and the files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from drpruning.comparison.export_tables import html_page
from drpruning.comparison.methods import Method
from drpruning.comparison.metrics import WEIGHTED, WORST, RunMetrics
from drpruning.comparison.pareto import pareto_of, write_pareto
from drpruning.comparison.tables import make_tables
from drpruning.report.pareto import MethodPoint, leader_end, pareto_plot, place_labels, static_front
from tests.comparison.conftest import Sampled


def test_points_are_the_metrics_and_lines_the_intervals_of_the_difference(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(1), seeds=3, effect=-0.2)
    plot = pareto_of(results, "constant")
    assert plot is not None
    moving, constant = plot.points  # static methods are drawn last
    assert (moving.name, moving.static, constant.name, constant.static) == ("moving", False, "constant", True)
    metrics = RunMetrics(results)
    assert (moving.x, moving.y) == (metrics.average(WEIGHTED, "moving"), metrics.average(WORST, "moving"))
    difference = metrics.difference(WORST, "moving", "constant")
    assert difference is not None
    assert moving.y_ends[1] - moving.y_ends[0] == pytest.approx(2 * difference.half_width)
    assert math.isnan(constant.x_ends[0])
    assert [key.text for key in plot.keys] == ["mixture moves", "static mixture", "95% interval"]


def test_methods_that_do_not_compare_are_named_and_not_drawn(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(1), seeds=2)
    runs = [*results.runs, *(run.model_copy(update={"method": "scratch"}) for run in results.of("moving"))]
    methods = {**results.methods, "scratch": Method(strategy="constant", scratch=True)}
    plot = pareto_of(results.model_copy(update={"runs": runs, "methods": methods}), "constant")
    assert plot is not None
    assert [point.name for point in plot.points] == ["moving", "constant"]
    assert "Not shown: scratch (" in plot.note
    assert pareto_of(results.model_copy(update={"runs": results.of("moving")}), "moving") is None


def test_the_front_has_the_static_methods_that_no_other_static_method_beats() -> None:
    places = {"a": (1.0, 3.0), "b": (2.0, 1.0), "c": (2.5, 2.0), "moves": (0.5, 0.5)}
    plot = pareto_plot(MethodPoint(name, *place, static=name != "moves") for name, place in places.items())
    assert plot is not None
    assert plot.front == static_front(list(places.values())[:3]) == ((1.0, 3.0), (2.0, 1.0))
    assert "static front" in [key.text for key in plot.keys]


def test_names_do_not_cover_each_other_where_there_is_room() -> None:
    marks = [(100.0, 100.0), (104.0, 100.0), (100.0, 106.0), (295.0, 100.0)]
    centres = place_labels(marks, [40.0] * 4, 10.0, (300, 200))
    for at, (x, y) in enumerate(centres):
        assert 20 <= x <= 280
        assert all(abs(x - p) >= 40 or abs(y - q) >= 10 for p, q in centres[:at])


def test_a_line_leads_from_a_mark_to_a_name_that_is_not_next_to_it() -> None:
    marks = [(100.0 + 4 * at, 100.0) for at in range(6)]
    centres = place_labels(marks, [60.0] * 6, 10.0, (400, 300))
    ends = [leader_end(mark, centre, 60.0, 10.0) for mark, centre in zip(marks, centres, strict=True)]
    assert ends[0] is None
    led = [(mark, end) for mark, end in zip(marks, ends, strict=True) if end]
    assert led
    assert all(10 < math.dist(mark, end) < 60 for mark, end in led)


def test_the_page_and_the_files_have_the_figure(sampled: Sampled, tmp_path: Path) -> None:
    results = sampled(np.random.default_rng(1), seeds=2, effect=-0.2)
    results = results.model_copy(update={"primary": ["worst"], "first_primary": ["worst"]})
    plot = pareto_of(results, "constant")
    assert plot is not None
    page = html_page(results, make_tables(results, ["constant"]), plot)
    places = [page.index(text) for text in ("Primary endpoints", plot.title, "Held-out loss, nats")]
    assert places == sorted(places)
    assert page.count("<svg") == 1
    files = write_pareto(plot, tmp_path)
    assert [file.name for file in files] == ["compare.png", "compare.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    drawing = files[1].read_text()
    assert all(text in drawing for text in ("moving", "constant", plot.x_axis, plot.y_axis))
