"""The GPU benchmark on small models on the CPU: figures agree, a case that fails costs no other, pieces add up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
import warnings
import zipfile
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click
import pytest
from click.testing import CliRunner

BENCH = Path(__file__).parents[1] / "benches" / "gpu"
PRUNED = "7B to 2.7B"
STEPS = [
    f"prune {PRUNED}, masks open",
    f"prune {PRUNED}, without masks",
    f"prune {PRUNED}, masks at the target, skipped",
    f"prune {PRUNED}, masks at the target, computed",
    "continue 1.3B, 4 rows, a checkpoint",
]
OTHERS = [
    f"phases of prune {PRUNED}, saved and resumed, bfloat16 moments",
    f"phases of prune {PRUNED}, start to export",
    "compiled run of prune and continue, full checkpointing",
    "stopped and resumed, not deterministic",
    "miniature of llama2-7b-to-1.3b",
    "optimizer's step, bfloat16+low16 weights, int8 moments",
    "loader, 32 rows",
]
MACHINE = {"card": "x", "card_bytes": None, "cuda": "13.0", "torch": "2.11.0", "transformers": "5.17.0", "numpy": "2.5"}
MACHINE |= {"drpruning": "0.1.0", "python": "3.12.3", "tiny": False}


@pytest.fixture(scope="module")
def modules() -> Any:
    """Import the scripts, by name."""
    names = sorted(path.stem for path in BENCH.glob("*.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield {name: import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def bench(modules: dict[str, Any]) -> Any:
    return modules["bench"]


@pytest.fixture(scope="module")
def cases(modules: dict[str, Any]) -> Any:
    return modules["cases"]


@pytest.fixture(scope="module")
def corpus(modules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    domains = modules["cases"].config_of(modules["cases"].cases(PRUNED)[0], folder, tiny=True).domains
    modules["random_corpus"].write_corpus(folder, domains, 512, 2**13, document=48)
    return folder


@pytest.fixture(scope="module")
def results(modules: dict[str, Any], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of ``--tiny`` by name, measured in this process."""
    measured = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The .grad attribute of a Tensor that is not a leaf"
        )  # torch's compiler
        patch.setenv("DRPRUNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        for case in modules["cases"].cases(PRUNED):
            if case.name in (*STEPS, *OTHERS):
                found = modules["bench"].measure(case, corpus, tmp_path_factory.mktemp("run"), tiny=True)
                measured[case.name] = case.to_dict() | {"outcome": "measured", **json.loads(json.dumps(found))}
    assert len(measured) == len(STEPS) + len(OTHERS)
    return measured


def test_every_case_is_a_recipe_and_has_known_targets(modules: dict[str, Any], cases: Any) -> None:
    for pruned in cases.SOURCES:
        found = cases.cases(pruned)
        assert len({case.name for case in found}) == len(found)
        for case in found:
            assert case.seconds <= 530  # fits into a call of 9 minutes
            assert set(case.targets) <= set(modules["table"].FIGURES)
            assert cases.Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case
            if cases.unknown_setting(case) is not None:
                continue
            config = cases.config_of(case, Path("corpus"), tiny=False)
            if case.kind == "steps":
                assert config.data.seq_len == 4096
                assert config.training.dtype == "bfloat16"
                assert config.stage(case.stage).batch_size == cases.BATCH
                assert (case.masks != "none") == (case.stage == "prune")


def test_a_setting_that_this_version_lacks_is_named(cases: Any) -> None:
    settings = {"training.compile": True, "training.of_the_future": 1}
    assert cases.unknown_setting(cases.Case("x", "steps", 1, settings=settings)) == "of_the_future"
    assert cases.unknown_setting(cases.Case("x", "steps", 1, settings={"training.compile": True})) is None


def test_steps_are_counted_and_their_quantities_agree(modules: dict[str, Any], results: dict[str, Any]) -> None:
    for each in (results[name] for name in STEPS):
        assert each["steps"] == modules["steps"].LEAST
        assert each["tokens_per_step"] == 4 * 64
        low, high = each["step_seconds_quartiles"]
        assert 0 < low <= each["step_seconds"] <= high
        assert 0 < each["loader_wait_share"] < 1
        peak = 1e12 * modules["cases"].TINY["training.peak_tflops"]
        used = each["tokens_per_second"] * each["flops_per_token"] / peak
        assert each["utilisation"] == pytest.approx(used, rel=0.02, abs=1e-4)  # kept to four places
        assert each["memory_bytes"] > (each["planned_bytes"] or 0)  # resident: with torch and all
        if "checkpoint" not in each:
            assert each["waits_per_step"] > 0
            assert 0 < each["product_share"] < 1
            assert each["attention_kernels"]
    assert sum(results[name]["planned_bytes"] is not None for name in STEPS) == 2


def test_skipping_counts_the_arithmetic_of_what_is_open(results: dict[str, Any]) -> None:
    opened, bare, skipped, computed = (results[name]["flops_per_token"] for name in STEPS[:4])
    assert skipped < computed == opened == bare


def test_the_cost_of_a_checkpoint_is_measured(results: dict[str, Any]) -> None:
    each = results["continue 1.3B, 4 rows, a checkpoint"]
    parameters = 512 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    assert each["checkpoint"]["bytes"] > 12 * parameters  # float32 weights, the embedding tied, and both moments
    assert each["checkpoint"]["complete_after"] > 0
    expected = each["checkpoint"]["all_steps_longer_by"] / (500 * each["step_seconds"])
    assert each["checkpoint_share"] == pytest.approx(expected)


def test_a_prune_stage_has_all_its_phases(results: dict[str, Any]) -> None:
    resumed, whole = (results[name]["phases"] for name in OTHERS[:2])
    assert resumed.keys() == {
        "first step", "step", "checkpoint staged", "checkpoint written", "resume", "step after resuming",
    }  # fmt: skip
    assert whole.keys() == {
        "importance", "model placed, optimizer made", "evaluation", "first step", "step", "step, units closed",
        "end of the stage", "export", "evaluation of the base model", "evaluation of the pruned model", "whole stage",
    }  # fmt: skip
    assert whole["step, units closed"]["times"] == 3
    assert all(phase["seconds"] >= 0 for phase in (*resumed.values(), *whole.values()))
    assert whole["whole stage"]["seconds"] > whole["export"]["seconds"]
    assert whole["step"]["planned_bytes"] > 0
    assert results[OTHERS[0]]["checkpoint_bytes"] > 0


def test_a_phase_in_another_counts_in_both(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake the allocator with a list: the last number is allocated, the largest since a reset is the peak."""
    import torch

    history = [10]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: history[-1])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: max(history))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: history.__setitem__(slice(None), history[-1:]))
    phases = modules["phases"].Phases(on_gpu=True)
    history += [99, 10]  # before
    with phases.phase("outer"):
        history += [30, 20]
        with phases.phase("inner"):
            history += [50, 15]
        history.append(40)
    found = {
        name: [phase[f"{key}_bytes"] for key in ("before", "peak", "after")] for name, phase in phases.found.items()
    }
    assert found == {"inner": [20, 50, 15], "outer": [10, 50, 40]}


def test_whole_runs_say_what_was_compiled_and_what_differs(results: dict[str, Any]) -> None:
    compiled, stopped, miniature = (results[name] for name in OTHERS[2:5])
    assert list(compiled["graphs_by_stage"]) == ["prune", "continue"]
    assert compiled["graphs_by_stage"]["prune"] > 0
    assert compiled["graph_breaks"] == 0
    assert compiled["recompile_limit_hits"] == len(compiled["hits"]) == 0
    assert compiled["stages_not_compiled"] == 0
    assert stopped["steps"] == 10
    assert {name: stopped[name] for name in stopped if "differing" in name} == {
        "differing_steps": 0,
        "first_differing_step": None,
        "differing_weights": 0,
        "repeated_differing_steps": 0,
        "repeated_differing_weights": 0,
    }
    assert miniature["steps"] == 18
    assert miniature["verdicts"].keys() == {"targets", "cut", "finite"}


def test_a_limit_of_recompilations_is_read_from_the_log(modules: dict[str, Any]) -> None:
    import logging

    graphs, logger = modules["whole_runs"].Graphs(), logging.getLogger("torch._dynamo.convert_frame")
    with graphs.watching():
        logger.warning("torch._dynamo hit config.%s (%s)\n   function: %s", "recompile_limit", 8, "'forward' (x.py:1)")
        logger.warning("another warning")
    logger.warning("torch._dynamo hit config.recompile_limit (8)")
    assert graphs.hits == ["torch._dynamo hit config.recompile_limit (8) function: 'forward' (x.py:1)"]


def test_parts_are_measured_in_bytes_and_tokens(results: dict[str, Any]) -> None:
    optimizer, loader = (results[name] for name in OTHERS[5:])
    moved = optimizer["bytes_per_number"] * optimizer["parameters"] / optimizer["step_seconds"]
    assert optimizer["bytes_per_second"] == pytest.approx(moved)
    assert optimizer["bytes_per_number"] == pytest.approx(8 + 2 + 4 * (1 + 4 / 128), rel=0.05)
    assert loader["tokens_per_second"] == pytest.approx(4 * 64 / loader["batch_seconds"])


def test_synchronisations_are_counted_by_their_lines(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Emit the warnings of CUDA's debug mode."""
    import torch

    modes = list[str]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    watch, before = modules["steps"].Watch(0.0, None), warnings.showwarning
    watch._debug()
    for _ in range(2):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    warnings.warn("another warning", stacklevel=1)
    watch._debugging.close()
    assert list(watch.synchronisations.values()) == [2]
    assert next(iter(watch.synchronisations)).startswith("test_gpu_bench.py:")
    assert modes == ["warn", "default"]
    assert warnings.showwarning is before


def test_ratios_are_those_of_the_steps(modules: dict[str, Any], results: dict[str, Any]) -> None:
    derived = modules["table"].derived(list(results.values()))
    opened, bare, skipped = (results[name]["step_seconds"] for name in STEPS[:3])
    assert derived["masks_step_ratio"] == pytest.approx(opened / bare)
    lasting = 1000 * 0.2 * (opened + skipped) / 2 + 1000 * 0.8 * skipped
    assert derived["pruning_mean_tokens_per_second"] == pytest.approx(1000 * 4 * 64 / lasting)
    assert set(modules["table"].derived([]).values()) == {None}


def test_targets_that_are_missed_come_first_in_the_table(modules: dict[str, Any], results: dict[str, Any]) -> None:
    body = {"machine": MACHINE, "started": "2026-11-30", "cases": list(results.values())}
    body["derived"] = modules["table"].derived(body["cases"])
    text = modules["table"].table(body)
    assert f"- missed: prune {PRUNED}, masks open: MFU " in text
    assert "at least 40.0%" in text
    assert "## Phases of a prune stage" in text
    assert "## Not measured" not in text
    check = modules["table"].Check("loader_wait_share", "at most", 0.01, 0.02)
    assert (check.met, str(check)) == (False, "loader wait 2.0%, at most 1.0%")
    assert modules["table"].Check("graph_breaks", "at most", 0, None).met is None
    tiny = modules["table"].table({**body, "machine": {**MACHINE, "tiny": True}})
    assert "MFU" not in tiny.partition("## Steps")[0]  # a target of GPU runs only
    body["cases"].append({"name": "x", "outcome": "out of memory", "error": "tried\n20 GiB", "targets": {}, "kind": ""})
    assert "| x | out of memory: tried 20 GiB |" in modules["table"].table(body)


def test_plots_have_a_bar_for_each_case_and_a_tick_for_each_mark(
    modules: dict[str, Any], results: dict[str, Any], tmp_path: Path
) -> None:
    on_gpu = json.loads(json.dumps(list(results.values())))
    for each in on_gpu:
        each.update({"allocated_bytes": 2**31} if each["kind"] == "steps" else {})
        for phase in each.get("phases", {}).values():
            phase["peak_bytes"] = 2**30
    assert modules["plots"].write_plots({"cases": on_gpu}, tmp_path) == ["utilisation.svg", "memory.svg"]
    for name, bars in (("utilisation", 5), ("memory", 5 + 6 + 11)):
        root = ET.parse(tmp_path / f"{name}.svg").getroot()  # noqa: S314 - written a moment ago
        rows = [each for each in root if each.get("height") == "14"]
        assert len(rows) == bars
        assert all(0 < float(row.get("width", 0)) <= 420 for row in rows)
    assert modules["plots"].write_plots({"cases": []}, tmp_path) == []


class Machine:
    """Cases that take the time of a clock, in place of real ones."""

    def __init__(self, bench: Any, cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.tried = 0.0, list[str]()
        self.outcome = "measured"
        self.cases = [cases.Case(f"case {at}", "loader", seconds) for at, seconds in enumerate((300, 200, 100))]
        monkeypatch.setattr(bench, "cases", lambda pruned: self.cases)
        monkeypatch.setattr(bench, "config_of", cases.config_of)
        monkeypatch.setattr(bench, "run_case", self._run)
        monkeypatch.setattr(bench, "describe_in_subprocess", lambda: dict(MACHINE))
        monkeypatch.setattr(bench.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(bench, "write_corpus", lambda folder, *_, **__: (folder / "corpus.json").touch())

    def _run(self, case: Any, corpus: Path, work: Path, patience: float, *, tiny: bool) -> dict[str, Any]:
        self.tried.append(case.name)
        if self.outcome == "gone":
            raise SystemExit(143)
        self.now += 0.8 * case.seconds
        figures = {"tokens_per_second": 1.0, "batch_seconds": 1.0}
        return {**case.to_dict(), "outcome": self.outcome, "process_seconds": 0.8 * case.seconds, **figures}


def test_a_case_starts_only_when_its_estimate_fits(
    bench: Any, cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(bench, cases, monkeypatch)
    command = ["--minutes", "6", "--out", str(tmp_path / "gpu.json"), "--work", str(tmp_path)]
    first = CliRunner().invoke(bench.main, command)
    assert machine.tried == ["case 0", "case 2"]  # 300 s, then 110 s are left
    assert "2 of 3 cases have a result; rerun the same command" in first.output
    second = CliRunner().invoke(bench.main, command)
    assert machine.tried == ["case 0", "case 2", "case 1"]
    assert "3 of 3 cases have a result; complete" in second.output
    body = json.loads((tmp_path / "gpu.json").read_text())
    assert [each["name"] for each in body["cases"]] == ["case 0", "case 1", "case 2"]
    before = (tmp_path / "gpu.json").read_bytes()
    assert CliRunner().invoke(bench.main, command).exit_code == 0
    assert (tmp_path / "gpu.json").read_bytes() == before


def test_failures_are_results_and_a_machine_that_went_away_is_not(
    bench: Any, cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, command = (
        Machine(bench, cases, monkeypatch),
        ["--out", str(tmp_path / "gpu.json"), "--work", str(tmp_path)],
    )
    command += ["--only", "case 1"]
    for tries in (1, 2, 2):
        machine.outcome = "gone"
        CliRunner().invoke(bench.main, command)
        assert machine.tried == ["case 1"] * tries
    machine.outcome = "out of memory"
    CliRunner().invoke(bench.main, [*command, "--again"])
    assert len(machine.tried) == 3
    CliRunner().invoke(bench.main, command)
    assert len(machine.tried) == 3
    machine.outcome = "measured"
    CliRunner().invoke(bench.main, [*command, "--again"])
    CliRunner().invoke(bench.main, [*command, "--again"])
    assert len(machine.tried) == 4


def test_results_continue_on_another_machine_of_the_same_kind(bench: Any, tmp_path: Path) -> None:
    """Regression: the kernel's name once had to be equal, so a second machine could not continue."""
    path = tmp_path / "gpu.json"
    assert bench.describe(tiny=True).keys() == MACHINE.keys()
    results = bench.Results(path, dict(MACHINE))
    case = bench.cases(PRUNED)[0]
    results.end({**case.to_dict(), "outcome": "failed", "on": "Linux-6.18.44"})
    assert bench.Results(path, dict(MACHINE)).is_over(case, again=False)
    with pytest.raises(click.ClickException, match=r"has torch 2\.11\.0, this machine 2\.12\.0"):
        bench.Results(path, {**MACHINE, "torch": "2.12.0"})


def test_a_case_finds_the_packages_of_a_relative_path(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: cases run in other folders, where the documented PYTHONPATH=gpu/site led nowhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os\nprint('found', flush=True)\nos._exit(0)")
    monkeypatch.setenv("PYTHONPATH", "site")
    result = bench.run_case(bench.cases(PRUNED)[0], tmp_path, tmp_path, 60.0, tiny=True)
    assert result["log"][0] == "found"


def test_a_case_that_hangs_is_given_up(bench: Any, tmp_path: Path) -> None:
    result = bench.run_case(bench.cases(PRUNED)[0], tmp_path, tmp_path, 0.05, tiny=True)
    assert result["outcome"].startswith("not done after")


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_without_a_gpu_it_is_an_error(bench: Any) -> None:
    with pytest.raises(click.ClickException, match="no GPU here"):
        bench.describe(tiny=False)


def test_the_archive_has_what_an_image_lacks(modules: dict[str, Any], tmp_path: Path) -> None:
    archive, unpack = modules["archive"], modules["unpack"]
    carried = archive.carried("3.12")
    assert {"pydantic", "pydantic-core", "annotated-types", "typing-inspection"} <= carried.keys()
    assert not {"torch", "numpy", "transformers", "matplotlib", "tensorboard", "drpruning"} & carried.keys()
    wheels = [archive.wheel_of(name, tmp_path) for name in ("annotated-types", "drpruning")]
    absent = tmp_path / "not_anywhere-1.0-py3-none-any.whl"
    with zipfile.ZipFile(absent, "w") as wheel:
        wheel.writestr("not_anywhere.py", "")
    for name in ("one", "two"):
        size = archive.write_archive(tmp_path / f"{name}.pyz", [*wheels, absent])
    assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()
    assert size == (tmp_path / "one.pyz").stat().st_size < archive.LARGEST
    taken = unpack.unpack(tmp_path / "one.pyz", tmp_path / "there")
    assert [each.split()[0] for each in taken] == ["drpruning", "not_anywhere"]  # annotated-types is installed here
    assert (tmp_path / "there" / "site" / "drpruning" / "recipes" / "quickstart.yaml").is_file()
    assert {path.name for path in BENCH.glob("*.py")} == {path.name for path in (tmp_path / "there/bench").iterdir()}


def test_an_archive_that_is_too_large_is_refused(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules["archive"], "LARGEST", 1000)
    with pytest.raises(SystemExit, match=r"0\.\d MiB, expected at most"):
        modules["archive"].write_archive(tmp_path / "x.pyz", [])
    assert not (tmp_path / "x.pyz").exists()


@pytest.mark.slow
def test_rehearsal_on_a_machine_that_has_torch_and_transformers_alone(modules: dict[str, Any], tmp_path: Path) -> None:
    """Archive, unpacking, an interrupted call, its continuation, table and plots: without what an image lacks."""
    archive = modules["archive"]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    carried = [name for name in archive.carried(here) if name != "scipy"]  # large, and in such an image
    venv.create(tmp_path / "machine", symlinks=True)
    (site,) = tmp_path.glob("machine/lib/python*/site-packages")
    for name in archive.closure((*archive.IMAGE, "scipy"), here).keys() - set(carried):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    pyz = tmp_path / "gpu-bench.pyz"
    archive.write_archive(pyz, [archive.wheel_of(name, tmp_path) for name in (*carried, "drpruning")])
    there, python = tmp_path / "gpu", str(tmp_path / "machine" / "bin" / "python")
    clean = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    clean |= {"HOME": str(tmp_path), "PYTHONPATH": str(there / "site")}
    before = subprocess.run([python, "-c", "import pydantic"], env=clean, capture_output=True, text=True, check=False)
    assert "No module named 'pydantic'" in before.stderr
    subprocess.run([python, str(pyz), str(there)], env=clean, check=True, capture_output=True)

    out = tmp_path / "gpu.json"
    command = [python, str(there / "bench" / "bench.py"), "--tiny", "--out", str(out), "--work", str(tmp_path / "work")]
    command += ["--only", "continue 1.3B, 2 rows", "--only", "step, bfloat16 weights", "--only", "loader"]
    process = subprocess.Popen(command, env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not out.is_file() or '"measured"' not in out.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait()
    body = json.loads(out.read_text())
    assert body["cases"][0]["outcome"] == "measured"
    assert sum(each["outcome"] == "measured" for each in body["cases"]) < 4
    shutil.rmtree(tmp_path / "work")  # another machine has none of it
    again = subprocess.run([*command, "--minutes", "20"], env=clean, capture_output=True, text=True, check=False)
    assert "4 of 4 cases have a result; complete" in again.stderr, again.stderr
    assert [each["outcome"] for each in json.loads(out.read_text())["cases"]] == ["measured"] * 4
    subprocess.run([*command, "--report", str(tmp_path / "results")], env=clean, check=True, capture_output=True)
    assert "| loader, 32 rows |" in (tmp_path / "results" / "table.md").read_text()
    assert (tmp_path / "results" / "utilisation.svg").is_file()
