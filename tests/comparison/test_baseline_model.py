"""Finished models as rows: measured on the runs' text, whatever their tokenizer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import PreTrainedTokenizerFast

from drpruning.cli import group
from drpruning.comparison.baseline_model import measure_baseline
from drpruning.comparison.methods import Method, choose_methods, read_methods
from drpruning.comparison.results import collect
from drpruning.comparison.runs import Comparison
from drpruning.comparison.scheduler import ScheduleResult, run_jobs
from drpruning.comparison.tables import make_tables
from drpruning.errors import ConfigError
from drpruning.evaluation.held_out_text import held_out_text
from drpruning.prepare.recipe_corpus import open_corpus
from drpruning.prepare.tokenize.tokenizer import END_TOKEN, train_tokenizer
from drpruning.recipes import load_recipe
from tests.evaluation.conftest import tiny_model

Outcomes = tuple[ScheduleResult, list[tuple[str, str]]]


def test_a_run_s_own_model_as_a_row_is_that_run(comparison: Comparison, progress: Outcomes) -> None:
    assert progress[0].failed
    export = comparison.folder / "runs" / "constant" / "seed-17" / "export"
    methods = {"constant": comparison.methods["constant"], "same": Method(model=str(export))}
    both = replace(comparison, methods=methods)
    both.check()
    outcomes = []
    done = run_jobs(
        both, parallel=1, on_end=lambda job, outcome, _: outcomes.append((job.label, outcome)), stop=lambda: False
    )
    assert not done.failed
    assert outcomes.count(("same", "finished")) == 1  # once for both seeds
    results = collect(both, {})
    trained, same = results.of("constant"), results.of("same")
    assert [run.seed for run in same] == [17, 18]
    for run in same:
        assert run.recovered == pytest.approx(trained[0].recovered, abs=1e-5)
        for domain, documents in run.documents.items():
            assert documents.tokens == trained[0].documents[domain].tokens
            assert documents.nats == pytest.approx(trained[0].documents[domain].nats, abs=1e-3)
    assert same[0].parameters == trained[0].parameters
    tables = {table.title: table for table in make_tables(results, ["constant"])}
    rows = {row.texts[0]: row.texts for row in tables["Cost"].rows}
    assert "0 s" not in rows["same"]
    assert [row.texts[0] for row in tables["What each row is"].rows] == ["constant", "same"]
    assert str(export) in tables["What each row is"].rows[1].texts[2]


def test_another_model_of_the_same_name_is_measured_again(comparison: Comparison, progress: Outcomes) -> None:
    assert progress[0].failed
    for method in ("constant", "moving"):
        export = comparison.folder / "runs" / method / "seed-17" / "export"
        one = replace(comparison, methods={"m": Method(model=str(export))}, folder=comparison.folder / "renamed")
        outcomes = []
        run_jobs(
            one,
            parallel=1,
            on_end=lambda job, outcome, _, outcomes=outcomes: outcomes.append(outcome),
            stop=lambda: False,
        )
        assert outcomes == ["finished"]


def test_a_model_with_another_tokenizer_is_measured_in_the_corpus_s_tokens(recipe_file: Path, tmp_path: Path) -> None:
    """Make all logits equal: each of its tokens costs the logarithm of its vocabulary, at every position."""
    config = load_recipe(str(recipe_file), [])
    corpus = open_corpus(config)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["some other text, 1 2 3"] * 20, 270, name="other").backend,
        eos_token=END_TOKEN,
    )
    vocabulary = len(tokenizer)
    model = tiny_model("gpt2", vocabulary=vocabulary)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    found = measure_baseline(str(tmp_path / "other"), config, corpus)
    assert found["ids"] == "own"
    seq_len = config.data.seq_len
    for domain in config.domains:
        rows = corpus.held_out_rows(domain, seq_len, config.training.final_eval_tokens)
        theirs = held_out_text(corpus, domain, max_tokens=rows.size, row_len=seq_len, tokenizer=tokenizer).documents
        ours = held_out_text(corpus, domain, max_tokens=rows.size, row_len=seq_len).documents
        assert sum(map(len, ours)) == rows.size
        assert sum(found["documents"][domain]["tokens"]) == rows.size - len(rows)
        first = found["documents"][domain]
        expected = len(theirs[0]) * math.log(vocabulary) * first["tokens"][0] / len(ours[0])
        assert first["nats"][0] == pytest.approx(expected, rel=1e-5)
        assert found["losses"][domain] == pytest.approx(sum(first["nats"]) / sum(first["tokens"]))
        assert np.isfinite(first["nats"]).all()


def test_its_losses_can_be_references(comparison: Comparison, progress: Outcomes, tmp_path: Path) -> None:
    assert progress[0].failed
    folder = tmp_path / "out"
    methods = {"small": Method(model="m"), "sheared": Method(strategy="sheared", references="small")}
    one = replace(comparison, methods=methods, folder=folder)
    job = next(each for each in one.jobs() if each.name == "sheared")
    assert {each.name for each in one.waits_for(job)} == {"small"}
    losses = {"sums": 1.0, "words": 2.0, "records": 3.0}
    (folder / "models" / "small").mkdir(parents=True)
    (folder / "models" / "small" / "model.json").write_text(json.dumps({"model": "m", "losses": losses}))
    assert one.references(job) == losses
    assert one.jobs()[0].finished
    (folder / "models" / "small" / "model.json").write_text('{"model": "m", "losses": {"sums": NaN}}')
    assert not one.jobs()[0].finished  # measured again, which fails


def test_wrong_models(recipe_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("methods: {a: {model: x, strategy: cvar}}")
    with pytest.raises(ConfigError, match="strategy has no effect"):
        read_methods(str(file))
    with pytest.raises(ConfigError, match="'constant', which exists already"):
        choose_methods(["constant"], [], ["hub/constant"])
    assert list(choose_methods(["constant"], [], ["hub/a b", str(tmp_path)])) == ["constant", "a-b", tmp_path.name]
    words = ["compare", str(recipe_file), "--strategies", "scratch", "--seeds", "1", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(group, [*words, "--model", str(tmp_path / "nowhere")])
    assert found.exit_code == 1, found.output
    assert "nowhere" in found.stderr
    assert "cannot be loaded" in found.stderr
    assert "scratch" in found.stdout
