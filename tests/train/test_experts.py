"""A recipe prunes a mixture of experts to a model that transformers loads, in one process or several."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, OlmoeConfig

from drpruning.pruning import Target
from drpruning.pruning.extract import KeptUnits
from drpruning.records import Kept, read_records
from drpruning.report import write_report
from drpruning.run_folder import RunFolder
from drpruning.train.run import train
from tests.train.distributed.test_ranks import assert_alike, run_with

SIZES = {"layers": 2, "hidden": 24, "heads": 3, "kv_heads": 3, "intermediate": 16, "experts": 3}


def olmoe_recipe(recipe, tmp_path: Path, **prune):
    source = OlmoeConfig(
        vocab_size=280, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24, num_experts=6,
        num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(source).save_pretrained(tmp_path / "source")
    return recipe(
        model={"source": str(tmp_path / "source"), "architecture": None},
        pretrain=None,
        prune={"target": SIZES, **prune},
        mixture={"strategy": "constant", "reference_loss": None},
    )


def test_a_recipe_prunes_experts(recipe, tmp_path: Path):
    config = olmoe_recipe(recipe, tmp_path, gate_init={"depth": "activation", "width": "taylor"})
    train(config, tmp_path / "run")
    (kept,) = (record for record in read_records(tmp_path / "run" / "metrics.jsonl") if isinstance(record, Kept))
    assert [len(experts) for experts in kept.experts] == [3, 3]
    assert [len(units) for units in kept.intermediate] == [3 * 16, 3 * 16]
    pruned = RunFolder(tmp_path / "run").pruned
    assert KeptUnits.read(pruned).experts == kept.experts
    model = AutoModelForCausalLM.from_pretrained(pruned)
    assert Target.of(model.config) == Target(**SIZES)
    assert "3 of 6 experts kept" in write_report(tmp_path / "run").read_text()


def test_experts_train_alike_in_two_processes(recipe, tmp_path: Path):
    config = olmoe_recipe(recipe, tmp_path, steps=4, eval_every=2)
    train(config, tmp_path / "one")
    run_with(2, config, tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two")
