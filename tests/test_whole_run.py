"""The bench of a whole run, but for the run: its model loads, its recipe fits, and it sees where two runs differ."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "benches" / "whole_run.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("whole_run", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["whole_run"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shape(bench: Any) -> Any:
    return bench.Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=96, vocabulary=512)


def test_the_model_loads_and_the_recipe_halves_it(bench: Any, shape: Any, tmp_path: Path) -> None:
    from drpruning.hf.models import load
    from drpruning.planning.recipe import plan_recipe

    bench.write_model(tmp_path, shape)
    weights = load(tmp_path).state_dict()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 + 3  # blocks; embedding, last norm, output layer
    assert weights["model.layers.1.mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.1)  # of 6,144 numbers
    assert weights["model.norm.weight"].tolist() == [1.0] * 64
    planned = plan_recipe(bench.recipe(tmp_path, shape, ranks=2, seq_len=32))
    assert planned.source_parameters == sum(weight.numel() for weight in weights.values())
    assert planned.target_parameters is not None
    assert 0.4 < planned.target_parameters / planned.source_parameters < 0.6


def test_equal_runs_differ_in_times_only(bench: Any, tmp_path: Path) -> None:
    step = {"kind": "step_taken", "stage": "prune", "step": 1, "loss": 1.5, "loader_wait": 0.1}
    incident = {"kind": "incident", "what": "resumed"}
    runs = {
        "one": [step, {**step, "step": 2}],
        "two": [step, incident, {**step, "step": 2, "loader_wait": 9.0}],
        "other": [step, {**step, "step": 2, "loss": 1.5000000000000002}],
        "short": [step],
    }
    for name, bodies in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(body) + "\n" for body in bodies))
    found = {name: bench.differences(bench.records(tmp_path / "one"), bench.records(tmp_path / name)) for name in runs}
    assert found["one"] == found["two"] == []
    assert found["other"] == ["step_taken prune 2: loss 1.5, and 1.5000000000000002"]
    assert found["short"] == ["2 records, and 1"]


HOLDS_64_MIB = "import sys; sys.stdin.readline(); held = b'x' * 2**26; sys.stdin.readline()"


def test_memory_is_that_of_the_phase_above_what_was_there_before(bench: Any, tmp_path: Path) -> None:
    """Watch a process that does nothing else: this one may release memory of earlier tests meanwhile."""
    watched, done = bench.Watched(), threading.Event()
    place = tmp_path / "0"
    with subprocess.Popen([sys.executable, "-c", HOLDS_64_MIB], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        place.write_bytes(bench._line(process.pid, ""))
        watcher = threading.Thread(target=bench.watch, args=(tmp_path, 1, watched, done))
        watcher.start()
        try:
            until(lambda: 0 in watched.base)
            place.write_bytes(bench._line(process.pid, "step 3 of the continue stage"))
            process.stdin.write(b"\n")
            process.stdin.flush()
            until(lambda: watched.peaks.get("continue step", 0) >= 2**25)
        finally:
            done.set()
            watcher.join()
            process.kill()
    assert list(watched.peaks) == ["continue step"]
    assert watched.of_ranks == {0: watched.peaks["continue step"]}


def until(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
