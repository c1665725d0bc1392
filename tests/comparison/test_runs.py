"""A real comparison, small: pairs are pairs, a failure is one run's, nothing is run twice."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.comparison.export_tables import describe
from drpruning.comparison.methods import Method, choose_methods
from drpruning.comparison.results import collect, read_results, write_results
from drpruning.comparison.runs import DOCUMENTS, Comparison, Job
from drpruning.comparison.scheduler import ScheduleResult, run_jobs
from drpruning.comparison.tables import make_tables
from drpruning.config import ContinueConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError, ExitCode, StateError
from drpruning.files import locked
from drpruning.formatting import flops_in_words
from drpruning.records import BUDGET, Evaluated, Incident, ModelMeasured, StageEnded
from drpruning.run_folder import RunFolder
from tests.comparison.conftest import METHODS

Outcomes = tuple[ScheduleResult, list[tuple[str, str]]]


def job(comparison: Comparison, name: str, seed: int = 17) -> Job:
    return next(each for each in comparison.jobs() if (each.name, each.seed) == (name, seed))


def test_one_that_fails_loses_no_other(comparison: Comparison, progress: Outcomes) -> None:
    done, outcomes = progress
    assert {(each.name, each.seed) for each in done.failed} == {("explodes", 17), ("explodes", 18)}
    assert all("SolverError" in reason and "not finite" in reason for reason in done.failed.values())
    assert sorted(outcomes) == sorted(
        (each.label, "failed" if each.name == "explodes" else "finished") for each in comparison.jobs()
    )
    results = collect(comparison, done.failed)
    assert {(run.method, run.seed) for run in results.runs} == {
        (name, seed) for name in ("constant", "mean", "moving", "wrong", "sheared", "scratch") for seed in (17, 18)
    }
    assert list(results.failed) == ["explodes, seed 17", "explodes, seed 18"]


def test_nothing_is_run_twice_and_what_has_failed_is_tried_again(comparison: Comparison, progress: Outcomes) -> None:
    assert progress[0].failed
    times = {each: (each.folder / "metrics.jsonl").stat().st_mtime_ns for each in comparison.jobs() if each.finished}
    again = Comparison(
        comparison.recipe,
        comparison.overrides,
        {name: method for name, method in comparison.methods.items() if name != "explodes"},
        comparison.seeds,
        comparison.folder,
    )
    outcomes = []
    run_jobs(
        again, parallel=1, on_end=lambda each, outcome, _: outcomes.append((each.label, outcome)), stop=lambda: False
    )
    assert outcomes == [(each.label, "existing") for each in again.jobs()]
    assert times == {each: (each.folder / "metrics.jsonl").stat().st_mtime_ns for each in times}


def test_references_of_an_unfinished_run_are_refused(
    comparison: Comparison, progress: Outcomes, tmp_path: Path
) -> None:
    assert progress[0].failed
    copied = replace(comparison, folder=tmp_path / "out")
    shutil.copytree(comparison.folder / "runs" / "scratch", copied.folder / "runs" / "scratch")
    sheared = job(copied, "sheared")
    assert copied.references(sheared) == comparison.references(job(comparison, "sheared"))
    metrics = job(copied, "scratch").folder / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines(keepends=True) if '"run_ended"' not in line]
    metrics.write_text("".join(kept))  # killed before its end, with evaluations of its last stage
    with pytest.raises(StateError, match="takes reference losses from scratch, seed 17, which is not finished"):
        copied.references(sheared)


def test_runs_on_another_corpus_are_not_put_into_the_same_table(
    comparison: Comparison, progress: Outcomes, corpus_folder: Path, tmp_path: Path
) -> None:
    assert progress[0].failed
    copied = replace(comparison, folder=tmp_path / "out", methods={"constant": comparison.methods["constant"]})
    shutil.copytree(comparison.folder / "runs" / "constant", copied.folder / "runs" / "constant")
    first, second = copied.jobs()
    ours = Corpus.open(corpus_folder)
    copied.check_corpus(ours)
    assert set(copied.recorded_corpora().values()) == {ours.fingerprint}
    records = (second.folder / "metrics.jsonl").read_text()
    (second.folder / "metrics.jsonl").write_text(records.replace(ours.fingerprint, "0" * 64))
    with pytest.raises(CorpusError, match=f"{first.label}'s corpus is {ours.fingerprint[:16]}, that of {second.label}"):
        collect(copied, {})
    with pytest.raises(CorpusError, match=f"fingerprint is {'0' * 16}, that of .* is {ours.fingerprint[:16]}"):
        copied.check_corpus(ours)
    (second.folder / DOCUMENTS).unlink()  # a run that is left
    arguments = ["compare", copied.recipe, "--strategies", "constant", "--seeds", "2", "--out", str(copied.folder)]
    with pytest.raises(CorpusError, match=r"constant, seed 18 in .*out belongs to another corpus"):
        CliRunner().invoke(group, arguments, catch_exceptions=False)


def copied_runs(comparison: Comparison, folder: Path, *methods: str) -> Comparison:
    """Return a comparison of some methods with copies of their finished runs."""
    shutil.copytree(comparison.folder / "bases", folder / "bases")
    for name in methods:
        shutil.copytree(comparison.folder / "runs" / name, folder / "runs" / name)
    return replace(comparison, folder=folder, methods={name: comparison.methods[name] for name in methods})


def test_runs_of_other_settings_are_refused(comparison: Comparison, progress: Outcomes, tmp_path: Path) -> None:
    assert progress[0].failed
    comparison.check()
    copied = copied_runs(comparison, tmp_path / "out", "constant", "moving", "mean", "wrong", "scratch", "sheared")
    copied.check()
    replace(copied, seeds=[17, 18, 19]).check()
    replace(copied, methods={**copied.methods, "more": Method(strategy="cvar")}).check()
    constant = replace(copied, methods={"constant": copied.methods["constant"]}, overrides=["mixture.delta=0.3"])
    constant.check()  # a setting that the strategy does not read
    replace(copied, methods={name: copied.methods[name] for name in ("sheared", "scratch")}).check()
    with pytest.raises(
        StateError, match=r"^the run constant, seed 17 was made with continue\.batch_size=8, now 4"
    ) as found:
        replace(copied, overrides=["continue.batch_size=4"]).check()
    assert found.value.next_step == f"Give another --out, or remove {copied.folder / 'runs' / 'constant' / 'seed-17'}."
    for name, change, message in (
        (
            "moving",
            {"strategy": "group_dro", "set": {}},
            "mixture.strategy='drpruning', now 'group_dro'",
        ),
        ("moving", {"set": {"mixture.delta": 0.4}}, "mixture.delta=0.5, now 0.4"),
        ("wrong", {"shift": {"sums": 0.4}}, "mixture.reference_loss.sums="),
        ("mean", {"average_of": "wrong"}, "data.reference_ratio."),
        ("sheared", {"references": "moving"}, "mixture.reference_loss."),
    ):
        methods = {**copied.methods, name: copied.methods[name].model_copy(update=change)}
        with pytest.raises(StateError, match=re.escape(f"the run {name}, seed 17 was made with {message}")):
            replace(copied, methods=methods).check()
    for name in ("moving", "scratch", "constant"):  # the numbers that other runs take from these are not known
        for seed in (17, 18):
            (job(copied, name, seed).folder / DOCUMENTS).unlink()
    copied.check()
    with pytest.raises(StateError, match=r"the run constant, seed 17 was made with mixture\.delta=None, now 0\.3"):
        constant.check()  # it would not resume
    with pytest.raises(
        StateError, match=r"the run sheared, seed 17 was made with mixture\.strategy='sheared', now 'cvar'"
    ):
        replace(copied, methods={**copied.methods, "sheared": Method(strategy="cvar", references="scratch")}).check()


def test_a_finished_run_may_name_its_corpus_otherwise(
    comparison: Comparison, progress: Outcomes, corpus_folder: Path, tmp_path: Path
) -> None:
    assert progress[0].failed
    copied = copied_runs(comparison, tmp_path / "out", "constant")
    assert not copied.names_other_corpus()
    moved = replace(copied, overrides=[f"data.corpus={corpus_folder.parent / '.' / 'moved'}"])
    moved.check()
    assert moved.names_other_corpus()
    (job(moved, "constant", 18).folder / DOCUMENTS).unlink()
    with pytest.raises(StateError, match=r"the run constant, seed 18 was made with data\.corpus="):
        moved.check()


def test_another_number_of_jobs_keeps_the_threads_of_the_runs(
    comparison: Comparison, progress: Outcomes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress[0].failed
    body = yaml.safe_load(Path(comparison.recipe).read_text())
    body["training"]["threads"] = "auto"
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(body))
    copied = copied_runs(comparison, tmp_path / "out", "constant")
    (job(copied, "constant", 18).folder / DOCUMENTS).unlink()
    threads = int(body_of(job(copied, "constant"))["training"]["threads"])
    assert replace(copied, recipe=str(tmp_path / "auto.yaml"), folder=tmp_path / "none").stored_threads is None
    later = replace(
        copied,
        recipe=str(tmp_path / "auto.yaml"),
        threads=threads + 7,
        seeds=[17, 18, 19],
        methods={**copied.methods, "more": Method(strategy="constant", set={"training.threads": threads + 1})},
    )
    later.check()
    found = {(each.name, each.seed): later.config(each, None).training.threads for each in later.jobs()}
    assert found == {(name, seed): threads + (name == "more") for name in ("constant", "more") for seed in (17, 18, 19)}

    monkeypatch.setattr(os, "cpu_count", lambda: 2 * (threads + 7))
    monkeypatch.setattr("drpruning.comparison.scheduler.run_jobs", lambda *_, **__: ScheduleResult())
    words = ["compare", later.recipe, "--strategies", "constant", "--seeds", "2", "--out", str(later.folder)]
    shown = CliRunner().invoke(group, [*words, "--jobs", "2"], catch_exceptions=False)
    assert f"training.threads is {threads}, as in the runs of {later.folder}; by --jobs 2" in shown.stderr
    assert f"it would be {threads + 7}" in shown.stderr


def test_a_method_without_a_finished_run_is_replaced_and_named(
    comparison: Comparison, progress: Outcomes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress[0].failed
    copied = copied_runs(comparison, tmp_path / "out", "constant", "moving")
    file = job(copied, "moving", 18).folder / DOCUMENTS
    documents = json.loads(file.read_text())
    documents["words"]["nats"][0] = float("nan")
    file.write_text(json.dumps(documents))
    results = collect(copied, {})
    reason = "its final model has a loss in the domain 'words' that is not finite"
    assert results.failed == {"moving, seed 18": reason}
    assert read_results(write_results(results, tmp_path)) == results

    monkeypatch.setattr("drpruning.comparison.scheduler.run_jobs", lambda *_, **__: ScheduleResult())
    (copied.folder.parent / "methods.yaml").write_text(METHODS)
    words = ["compare", copied.recipe, "--strategies", "constant,moving,cvar", "--seeds", "2", "--against", "cvar"]
    words += ["--methods", str(copied.folder.parent / "methods.yaml"), "--out", str(copied.folder)]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(group, words)
    assert shown.exit_code == ExitCode.FAILED, shown.exception
    assert f"moving, seed 18 is not in the tables: {reason}" in shown.stderr
    assert "cvar: no finished run; differences are to constant" in shown.stderr
    assert "Paired differences to constant" in shown.stdout
    assert "leave out" not in shown.stderr

    base = copied.folder / "bases" / "seed-17.json"
    base.write_bytes(base.read_bytes()[:100])
    with pytest.raises(StateError, match=r"bases/seed-17\.json: expected JSON"):
        CliRunner().invoke(group, words, catch_exceptions=False)

    shutil.rmtree(copied.folder / "bases")
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(group, words)
    assert "Paired differences" not in shown.stdout
    omitted = (
        "leave out seed 17, 18: expected bases/seed-17.json, bases/seed-18.json, found none. Copy the folder bases"
    )
    assert omitted in shown.stderr


def body_of(each: Job) -> dict[str, Any]:
    return RunFolder(each.folder).read_recipe()


def test_shifted_references_come_from_a_method_that_waits_for_none(comparison: Comparison, tmp_path: Path) -> None:
    shifted = Method(strategy="drpruning", references="base", shift={"sums": 0.5})
    methods = {"wrong": shifted, "mean": Method(strategy="constant", average_of="wrong"), "plain": Method()}
    first = replace(comparison, methods=methods, folder=tmp_path / "out")
    first.check()
    assert {each.name for each in first.waits_for(job(first, "wrong"))} == {"plain"}
    with pytest.raises(ConfigError, match="'plain' waits for those of the first method 'wrong', which reads plain"):
        replace(first, equal="flops").check()
    for alone in ({"wrong": shifted}, {"s": Method(scratch=True, shift={"sums": 0.5})}):
        with pytest.raises(
            ConfigError, match=f"method '{next(iter(alone))}' shifts the unpruned model's losses, and no"
        ):
            replace(first, methods=alone).check()


def test_runs_that_wait_for_each_other_are_an_error_and_not_a_wait(comparison: Comparison, tmp_path: Path) -> None:
    methods = {"a": Method(references="b"), "b": Method(references="a")}
    cycle = replace(comparison, methods=methods, folder=tmp_path / "out")
    with pytest.raises(StateError, match="no run can start: a, seed 17 waits for b, seed 17"):
        run_jobs(cycle, parallel=1, on_end=lambda *_: None, stop=lambda: False)


def test_pairs_have_the_same_base_and_the_same_tokens(comparison: Comparison, progress: Outcomes) -> None:
    assert progress[0].failed
    results = collect(comparison, {})
    for seed in (17, 18):
        tokens = set()
        for name in ("constant", "mean", "moving", "wrong", "sheared"):
            records = job(comparison, name, seed).records()
            base = next(each for each in records if isinstance(each, ModelMeasured) and each.model == "base")
            assert base.losses == results.base[seed]
            tokens.add(
                sum(each.tokens for each in records if isinstance(each, StageEnded) and each.stage != "pretrain")
            )
        alone = job(comparison, "scratch", seed).records()
        tokens.add(sum(each.tokens for each in alone if isinstance(each, StageEnded)))
        assert len(tokens) == 1
    assert results.base[17] == results.base[18]  # pretrain.seed


def test_references_come_from_the_source_in_the_method(comparison: Comparison, progress: Outcomes) -> None:
    assert progress[0].failed

    def evaluations(name: str) -> list[Evaluated]:
        return [
            each
            for each in job(comparison, name).records()
            if isinstance(each, Evaluated) and each.stage in ("prune", "continue")
        ]

    assert evaluations("sheared")[0].reference_loss == evaluations("scratch")[-1].losses
    base = evaluations("constant")[0].reference_loss
    wrong = evaluations("wrong")[0].reference_loss
    assert base is not None
    assert wrong is not None
    assert {domain: wrong[domain] - base[domain] for domain in base} == pytest.approx(
        {"sums": 0.5, "words": 0.0, "records": 0.0}
    )


def test_an_average_keeps_what_the_other_run_drew(comparison: Comparison, progress: Outcomes) -> None:
    assert progress[0].failed
    results = collect(comparison, {})
    for seed in (17, 18):
        drawn = next(run.drawn for run in results.of("moving") if run.seed == seed)
        ratio = {domain: tokens / sum(drawn.values()) for domain, tokens in drawn.items()}
        evaluations = [each for each in job(comparison, "mean", seed).records() if isinstance(each, Evaluated)]
        assert all(each.weights == ratio for each in evaluations if each.stage != "pretrain")
    assert results.reference_ratio == {"sums": 0.7, "words": 0.2, "records": 0.1}  # not that of the average

    over_seeds = comparison.methods["mean"].model_copy(update={"average_over": "seeds"})
    both = replace(comparison, methods={**comparison.methods, "mean": over_seeds})
    each_seed = [comparison.average(job(comparison, "mean", seed)) for seed in (17, 18)]
    mean = {domain: (each_seed[0][domain] + each_seed[1][domain]) / 2 for domain in each_seed[0]}
    assert both.average(job(both, "mean", 18)) == pytest.approx(mean)
    assert {source.seed for source in both.waits_for(job(both, "mean", 18))} == {17, 18}
    replace(both, seeds=[17]).check()  # the average of one seed is the same
    more = replace(both, seeds=[17, 18, 19])
    with pytest.raises(ConfigError, match=r"averages 'moving' over all seeds, and its run of seed 17 averaged other"):
        more.check()
    with pytest.raises(StateError, match="averages the mixture of moving, seed 19, which is not finished"):
        more.average(job(more, "mean", 19))


def test_documents_add_up_to_the_measured_losses(comparison: Comparison, progress: Outcomes) -> None:
    assert progress[0].failed
    results = collect(comparison, {})
    for measured, documents in (
        (results.of("moving")[0].recovered, results.of("moving")[0].documents),
        (results.base[17], results.base_documents[17]),
    ):
        for domain, loss in measured.items():
            assert sum(documents[domain].nats) / sum(documents[domain].tokens) == pytest.approx(loss, abs=1e-5)
        assert max(len(found.tokens) for found in documents.values()) > 1


def test_methods_without_a_base_can_be_read_alone(comparison: Comparison, progress: Outcomes) -> None:
    alone = replace(comparison, methods={"scratch": comparison.methods["scratch"]})
    results = collect(alone, {})
    assert results.base == results.base_documents == {}
    titles = [table.title for table in make_tables(results, ["scratch"])]
    assert "Held-out loss, nats per token" in titles
    assert "Excess over the unpruned model, nats per token" not in titles


def test_results_come_back_from_their_file(comparison: Comparison, progress: Outcomes, tmp_path: Path) -> None:
    results = collect(comparison, progress[0].failed)
    file = write_results(results, tmp_path)
    assert read_results(file) == results
    first = file.read_bytes()
    write_results(read_results(file), tmp_path)
    assert file.read_bytes() == first
    body = json.loads(first) | {"format": 99}
    file.write_text(json.dumps(body))
    with pytest.raises(StateError, match="format 99"):
        read_results(file)
    for wrong in (b"{}", first[:100], gzip.compress(first)):
        file.write_bytes(wrong)
        with pytest.raises(StateError, match="no results"):
            read_results(file)


def test_the_command_prints_tables_and_writes_pages(comparison: Comparison, progress: Outcomes) -> None:
    assert progress[0].failed
    words = ["compare", comparison.recipe, "--strategies", "constant,sheared", "--seeds", "2"]
    words += ["--out", str(comparison.folder)]
    found = CliRunner(env={"COLUMNS": "200"}).invoke(group, words)
    assert found.exit_code == 0, found.output
    assert "[6/6]" in found.stderr
    assert "Paired differences to constant" in found.stdout
    for ending in ("md", "html", "tex"):
        assert "sheared" in (comparison.folder / f"compare.{ending}").read_text()
    assert [run.method for run in read_results(comparison.folder / "results.json").of("scratch")] == ["scratch"] * 2
    assert CliRunner().invoke(group, [*words, "--json"]).stdout == (comparison.folder / "results.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "constant,drprunning"], "Did you mean drpruning"),
        (["--strategies", ","], "names no method"),
        (["--strategies", "constant", "--against", "drpruning"], "not compared"),
        (["--methods", "nowhere.yaml"], "nowhere.yaml"),
        (["--strategies", "constant", "--set", "mixture.roh=1"], "mixture.roh"),
    ],
)
def test_wrong_input_is_found_before_anything_runs(arguments: list[str], message: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(group, ["compare", "quickstart", "--out", str(tmp_path / "out"), *arguments])
    assert message in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_an_impossible_target_of_a_later_method_is_found_before_anything_runs(tmp_path: Path) -> None:
    methods = {"constant": {"strategy": "constant"}, "drpruning": {}}
    too_deep = {"what": "more layers than there are", "set": {"prune.target.layers": 7}}
    (tmp_path / "mine.yaml").write_text(json.dumps({"methods": {**methods, "deep": too_deep}}))
    words = ["compare", "quickstart", "--methods", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(group, words)
    assert isinstance(found.exception, ConfigError)
    assert found.exception.message.startswith("method 'deep': target layers=7 is larger than the source's 6")
    assert not (tmp_path / "out").exists()
    only = choose_methods(["constant"], [])
    with pytest.raises(ConfigError, match="method 'constant': target"):
        Comparison("quickstart", ["prune.target.heads=3"], only, [17], tmp_path / "out").check()


def test_primary_endpoints_are_stored_before_the_first_run_only(comparison: Comparison, tmp_path: Path) -> None:
    first = replace(comparison, folder=tmp_path / "out", primary=["worst"])
    first.check()
    first.declare_primary()
    later = replace(first, primary=["worst", "sums"])
    later.declare_primary()
    assert later.first_primary() == ["worst"]
    started = replace(comparison, folder=tmp_path / "started", primary=["mean"])
    started.jobs()[0].folder.mkdir(parents=True)
    started.declare_primary()
    assert started.first_primary() == []
    with pytest.raises(ConfigError, match="primary names 'sum'; expected worst, mean, weighted or a domain"):
        replace(first, primary=["sum"]).check()


@pytest.fixture
def long_comparison(recipe_file: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a comparison in ``out`` whose only run trains for hours; yield its process when the run has started."""
    command = [sys.executable, "-m", "drpruning", "compare", str(recipe_file), "--strategies", "constant"]
    command += ["--seeds", "1", "--set", "continue.steps=100000", "--set", "continue.eval_every=50000"]
    command += ["--out", str(tmp_path / "out")]
    environment = {**os.environ, "DRPRUNING_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        metrics = tmp_path / "out" / "runs" / "constant" / "seed-17" / "metrics.jsonl"
        while '"continue"' not in (metrics.read_text() if metrics.is_file() else ""):
            assert process.poll() is None
            time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_signal_to_the_process_group_interrupts(long_comparison: subprocess.Popen[str]) -> None:
    # as schedulers and timeout do, all processes of the command are signalled at once
    os.killpg(long_comparison.pid, signal.SIGTERM)
    _, errors = long_comparison.communicate()
    assert long_comparison.returncode == ExitCode.RESUMABLE
    assert "[0/1] constant, seed 17: interrupted; can be resumed" in errors


def test_the_runs_of_a_killed_comparison_stop_and_are_saved(
    long_comparison: subprocess.Popen[str], tmp_path: Path
) -> None:
    long_comparison.kill()
    long_comparison.communicate(timeout=300)  # until the fork server has ended, which does so after the runs
    run = tmp_path / "out" / "runs" / "constant" / "seed-17"
    with locked(run):
        assert list(run.glob("checkpoints/*/complete.json"))


DISTILLED = """
methods:
  constant: {strategy: constant}
  distilled:
    strategy: constant
    set: {continue.distill: {weight: 0.5}}
  mean: {average_of: distilled}
"""


@pytest.fixture
def same_flops(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "methods.yaml").write_text(DISTILLED)
    methods = choose_methods([], [str(tmp_path / "methods.yaml")])
    overrides = ["continue.steps=12", "continue.eval_every=3", "prune.distill={teacher: self}"]
    return Comparison(str(recipe_file), overrides, methods, [17], tmp_path / "out", equal="flops")


def test_with_equal_flops_a_distilled_method_gets_fewer_steps(same_flops: Comparison, tmp_path: Path) -> None:
    same_flops.check()
    interrupted = chain([False] * 30, repeat(True))  # some runs, or parts of them, wait for the second call
    run_jobs(same_flops, parallel=1, on_end=lambda *_: None, stop=lambda: next(interrupted))
    failed = run_jobs(same_flops, parallel=1, on_end=lambda *_: None, stop=lambda: False).failed
    results = collect(same_flops, failed)
    assert not failed
    runs = {run.method: run for run in results.runs}
    first, distilled = runs["constant"], runs["distilled"]
    tokens = {name: sum(run.drawn.values()) for name, run in runs.items()}
    step = (distilled.flops["training"] + distilled.flops["teacher"]) / (tokens["distilled"] / (8 * 32))
    assert first.charged_flops is not None
    assert first.continue_steps == 12
    for run in runs.values():
        assert run.charged_flops == pytest.approx(first.charged_flops, abs=step)
        assert run.charged_flops == pytest.approx(sum(run.flops.values()) - run.flops["evaluation"])
    assert distilled.continue_steps is not None
    assert 4 < distilled.continue_steps < 8  # the teacher's pass costs nearly as much as a step of the student
    assert tokens["distilled"] == (4 + distilled.continue_steps) * 8 * 32
    assert runs["mean"].continue_steps in {11, 12, 13}  # its masks differ, so that other units are skipped
    records = job(same_flops, "distilled").records()
    evaluated = [each.step for each in records if isinstance(each, Evaluated) and each.stage == "continue"]
    assert len(evaluated) in {4, 5}  # every third step of 12 were five
    assert [each.detail for each in records if isinstance(each, Incident) and each.what == BUDGET] == [
        f"{flops_in_words(first.charged_flops)} charged: steps 12 to {distilled.continue_steps}, eval_every 3 to "
        f"{evaluated[1]}"
    ]
    cost = next(table for table in make_tables(results, ["constant"]) if table.title == "Cost")
    assert cost.columns[2:5] == ["tokens", "charged FLOPs", "steps of continue"]
    assert [row.cells[4].text for row in cost.rows] == [str(run.continue_steps) for run in runs.values()]
    assert "charges the FLOPs of constant with the same seed" in describe(results)

    same_flops.check()
    replace(same_flops, seeds=[17, 18]).check()
    with pytest.raises(StateError, match=r"the run constant, seed 17 was made with continue\.steps=12, now 11"):
        replace(same_flops, overrides=["continue.steps=11", *same_flops.overrides[1:]]).check()
    with pytest.raises(ConfigError, match=r"distilled, seed 17 has a budget of .*; expected equal tokens"):
        replace(same_flops, equal="tokens").check()
    reordered = dict(reversed(same_flops.methods.items()))
    with pytest.raises(ConfigError, match=r"with equal FLOPs, 'distilled' waits for .* 'mean', which reads distilled"):
        replace(same_flops, methods=reordered, folder=tmp_path / "other").check()


def test_a_budget_that_the_stages_before_have_spent_is_an_error() -> None:
    stage = ContinueConfig(steps=10, batch_size=1, learning_rate=1e-3, eval_every=5, charged_flops=3e9)
    assert stage.within_budget(1e9, 5e7).steps == 40
    with pytest.raises(ConfigError, match=r"is 3 GFLOP, and the stages before have charged 3\.2 GFLOP"):
        stage.within_budget(3.2e9, 1e8)


OTHER_PROCESS = """
import signal, time
from drpruning.comparison.scheduler import _fork_server

if __name__ == "__main__":
    process = _fork_server().Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join(120)
    code = process.exitcode
    process.kill()
    assert code == -signal.SIGTERM, code
"""


def test_other_processes_of_the_fork_server_can_be_terminated(tmp_path: Path) -> None:
    """Terminate a process as a pool does, which then waits for its end."""
    script = tmp_path / "program.py"
    script.write_text(OTHER_PROCESS)
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
