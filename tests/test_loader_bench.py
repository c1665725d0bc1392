"""The benchmark of loaders: a contender replies, a missing one is reported, the page keeps its other text."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "benches" / "loader"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return import_module


def request(name: str, data: Path, workers: int, *requests: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(BENCH / "contender.py"), name, str(data), "2048", str(workers)]
    text = "".join(request + "\n" for request in requests)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_our_contender_replies_and_an_unknown_one_reports_the_missing_module(bench: Any, tmp_path: Path) -> None:
    tokens = bench("tokens")
    tokens.write_tokens(tmp_path, 1 << 18)
    requests = ("prepare", "start", "mixture 30", "resume 5", "rate 0.01")
    prepared, started, mixed, resumed, run = request("drpruning_sampler", tmp_path, 0, *requests)
    assert prepared == {}
    assert started["first"] > 0
    assert mixed["off"] < 1
    assert resumed["bytes"] < 1024
    assert run["rate"] > 0
    (run,) = request("drpruning_sampler", tmp_path, 2, "start", "rate 0.01")[1:]
    assert run["rate"] > 0
    assert request("unknown_loader", tmp_path, 0, "prepare") == [{"missing": "No module named 'peers.unknown_loader'"}]


def test_the_page_lists_contenders_that_were_not_measured(bench: Any, tmp_path: Path) -> None:
    page = bench("results_page")
    names = {"mmap": "C", "drpruning_sampler": "drpruning", "grain": "grain"}
    result = page.Result(names=names, machine="a machine", date="2026-01-01", tokens=1, rounds=1, seconds=1.0)
    result.rates = {(2048, 0): {"mmap": 1e6, "drpruning_sampler": 9e5}}
    result.versions = {"drpruning_sampler": "1.0"}
    result.once = {"drpruning_sampler": {"off": 0.5, "first": 0.001, "seconds": None, "bytes": 300}}
    result.absent = {"grain": "No module named 'grain'"}
    readme = tmp_path / "README.md"
    readme.write_text("# Benchmarks\n\nBefore.\n")
    for _ in range(2):  # the second time in place of the first
        page.write_page(readme, result)
    text = readme.read_text()
    assert text.startswith("# Benchmarks\n\nBefore.\n\n" + page.BEGIN)
    assert text.count(page.BEGIN) == text.count(page.END) == 1
    assert "| drpruning | 900 (90%) |" in text
    assert "| grain | not measured |" in text
    assert "grain (No module named 'grain')" in text
    assert "| drpruning | 0.5 | 1.0 | - | 300 |" in text
    assert (tmp_path / page.PLOT).read_bytes().startswith(b"\x89PNG")
    readme.write_text(text + "\nAfter.\n")
    page.write_page(readme, result)
    assert readme.read_text() == text + "\nAfter.\n"
