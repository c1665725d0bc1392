"""Importance on several ranks is that of one process, and is measured as a training step runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from drpruning.config import TrainingConfig
from drpruning.export.repair import RepairedModule, repair
from drpruning.planning.memory_tracker import MemoryTracker
from drpruning.planning.recipe import plan_recipe
from drpruning.progress import target_statement
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.domain_importance import CombinedScores, combine
from drpruning.pruning.importance import Measures, RankRows, importance
from drpruning.records import Evaluated, Kept, ModelMeasured, StageEnded, StepTaken, read_records
from drpruning.report.verdicts import verdicts
from drpruning.train import calibration
from drpruning.train.distributed.fsdp import device_mesh, shard_model
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.loop import Interrupted
from drpruning.train.losses import token_losses
from drpruning.train.model_runtime import prepare
from drpruning.train.run import train
from tests.rounding import assert_same_up_to_rounding
from tests.train.conftest import Recipe
from tests.train.processes import on_ranks

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROWS, LENGTH = 3, 24
PRODUCTS = 10
"""Between masks and loss and back: float32 are only masks, their gradients and what is summed; at most this number
follow each other, over at most ROWS * LENGTH numbers."""


def masked_model(**shape: int) -> MaskedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SHAPE, **shape}), dtype=torch.float64)
    return MaskedModel(model, Target(layers=2, hidden=24, heads=2, kv_heads=1, intermediate=32))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(64, (ROWS, LENGTH), generator=generator) for _ in range(2)]


def mean_loss(masked: MaskedModel, tokens: Tensor) -> Tensor:
    return token_losses(masked, tokens).mean()


def scores_on_rank(measure: Any) -> dict[str, Tensor]:
    """Return the scores of a sharded model from this rank's rows: the last of four ranks has none of three rows."""
    ranks = Ranks(rank=distributed.get_rank(), world_size=distributed.get_world_size())
    masked = masked_model()
    shard_model(masked, device_mesh("cpu", ranks.world_size, ranks.world_size), "float32")
    prepare(masked, TrainingConfig(activation_checkpointing="full"))
    own = []
    for batch in batches():
        part = batch.tensor_split(ranks.world_size)[ranks.rank]
        own.append(RankRows(part if len(part) else batch[:1], len(part) / ROWS))
    found = importance(masked, own, measure, loss=mean_loss, total=ranks.sum)
    assert all(parameter.requires_grad for parameter in masked.parameters())
    return found


@pytest.mark.parametrize(("measure", "world_size"), [("taylor", 2), ("taylor", 4), ("activation", 2)])
def test_ranks_have_the_scores_of_one_process(measure: Any, world_size: int) -> None:
    expected = importance(masked_model(), batches(), measure)
    found = on_ranks(scores_on_rank, world_size, measure)
    for scores in found:
        assert_same_up_to_rounding(scores, expected, products=PRODUCTS, inner=ROWS * LENGTH)
        assert all(torch.equal(scores[kind], found[0][kind]) for kind in scores)


def test_blocks_are_computed_twice_and_weights_have_no_gradients() -> None:
    """Check that neither the activations of many blocks nor gradients of their weights are kept."""
    peaks = {}
    for kind in ("none", "full"):
        masked = masked_model(num_hidden_layers=12)
        prepare(masked, TrainingConfig(activation_checkpointing=kind))
        with MemoryTracker() as live, live.phase("scores", "working"):
            importance(masked, batches()[:1], "taylor", loss=mean_loss)
        peaks[kind] = live.peaks["scores"].total
        assert all(parameter.grad is None and parameter.requires_grad for parameter in masked.parameters())
    assert peaks["full"] < 0.5 * peaks["none"]


@pytest.mark.parametrize("measure", ["taylor", "activation"])
def test_a_stage_starts_from_importance_once(
    measure: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the scores with chunked losses and activation checkpointing are those of the plain model."""
    calls: list[str] = []

    def compared(masked: MaskedModel, rows: Iterator[RankRows], measure: Any, **more: Any) -> dict[str, Tensor]:
        own = list(rows)
        found = importance(masked, own, measure, **more)
        # Three blocks of seven products and the output layer, three times: forward and both ways back
        expected = importance(masked, [each.tokens for each in own[:2]], measure)
        first = importance(masked, own[:2], measure, **more)
        assert_same_up_to_rounding(first, expected, products=3 * 22, inner=280)
        calls.append(measure)
        return found

    monkeypatch.setattr(calibration, "importance", compared)
    short = {stage: {"steps": 2} for stage in ("pretrain", "continue")}
    config = recipe(
        prune={"steps": 2, "gate_init": measure, "calibration": {"tokens": 2048}},
        training={"activation_checkpointing": "full", "cross_entropy_chunk": 64},
        **short,
    )
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", stop=iter([False, False, True]).__next__)
    train(config, tmp_path / "run", resume=True)
    assert calls == [measure]
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    base = next(record for record in records if isinstance(record, ModelMeasured))
    ended = next(record for record in records if isinstance(record, StageEnded) and record.stage == "prune")
    planned = plan_recipe(config, AutoConfig.from_pretrained(base.path)).stages[1].flops
    assert ended.flops["importance"] == planned.importance > 0


def test_a_stage_combines_the_scores_of_its_domains(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that each domain is scored on rows of that domain, and that the gates start from the combined scores."""
    rows_of: list[list[Tensor]] = []
    combined: list[dict[str, Tensor]] = []

    def recorded(masked: MaskedModel, rows: Iterator[RankRows], measure: Any, **more: Any) -> dict[str, Tensor]:
        own = list(rows)
        rows_of.append([each.tokens for each in own])
        assert measure == Measures(depth="activation", width="taylor")
        return importance(masked, own, measure, **more)

    def observed(scores: Any, ratio: Any, removed: Any, combination: Any, **more: Any) -> CombinedScores:
        found = combine(scores, ratio, removed, combination, **more)
        assert (list(scores), combination, more["rho"]) == (list(ratio), "worst_case", 0.5)
        combined.append(found.scores)
        return found

    def stopped(masked: MaskedModel, scores: dict[str, Tensor]) -> None:
        assert scores is combined[0]
        raise StopIteration

    monkeypatch.setattr(calibration, "importance", recorded)
    monkeypatch.setattr(calibration, "combine", observed)
    monkeypatch.setattr(MaskedModel, "init_from_importance", stopped)
    config = recipe(
        prune={
            "steps": 2,
            "gate_init": {"depth": "activation", "width": "taylor"},
            "calibration": {"tokens": 2048, "rows": "even", "combine": "worst_case", "rho": 0.5},
        },
        pretrain={"steps": 2},
    )
    with pytest.raises(StopIteration):
        train(config, tmp_path / "run")
    assert len(rows_of) == len(config.domains)
    first = [each[0] for each in rows_of]
    assert not any(torch.equal(first[0], other) for other in first[1:])


def test_a_one_shot_cut_keeps_the_units_of_the_highest_importance(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Tensor] = []

    def recorded(*arguments: Any, **more: Any) -> dict[str, Tensor]:
        scores = importance(*arguments, **more)
        found.append(scores["hidden"].flatten())
        return scores

    monkeypatch.setattr(calibration, "importance", recorded)
    short = {stage: {"steps": 2} for stage in ("pretrain", "continue")}
    config = recipe(prune={"steps": 1, "gate_init": "activation", "calibration": {"tokens": 2048}}, **short)
    train(config, tmp_path / "run")
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    (kept,) = (each for each in records if isinstance(each, Kept))
    (scores,) = found
    assert kept.hidden == sorted(scores.topk(kept.target["hidden"]).indices.tolist())
    assert len(kept.hidden) < len(scores)
    assert target_statement(kept).startswith("cut by importance; the extracted model has layers=")
    assert [verdict.name for verdict in verdicts(records)] == ["finite"]
    (step,) = (each for each in records if isinstance(each, StepTaken) and each.stage == "prune")
    assert step.expected is None
    assert step.multipliers is None


def test_a_repaired_model_is_the_same_after_a_resume(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[dict[str, RepairedModule]] = []

    def recorded(*arguments: Any, **more: Any) -> dict[str, RepairedModule]:
        errors.append(repair(*arguments, **more))
        return errors[-1]

    monkeypatch.setattr(calibration, "repair", recorded)
    short = {stage: {"steps": 2} for stage in ("pretrain", "continue")}
    config = recipe(prune={"steps": 2, "repair": 0.01, "calibration": {"tokens": 2048}}, **short)
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", stop=iter([False, True]).__next__)
    train(config, tmp_path / "run", resume=True)
    whole, resumed = (load_file(tmp_path / name / "pruned" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    assert errors[0] == errors[1]
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    base = next(record for record in records if isinstance(record, ModelMeasured))
    ended = next(record for record in records if isinstance(record, StageEnded) and record.stage == "prune")
    planned = plan_recipe(config, AutoConfig.from_pretrained(base.path)).stages[1].flops
    assert ended.flops["repair"] == planned.repair > 0
    assert all(each.after <= (1 + 1e-9) * each.before for each in errors[0].values())
    assert any(each.after < 0.9 * each.before for each in errors[0].values())


@pytest.mark.parametrize("gates", ["hard_concrete", "deterministic"])
def test_a_one_shot_cut_starts_and_is_repaired_from_the_unpruned_model(
    gates: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check it where the warm-up rounds to zero steps: deterministic masks are at the target from the first step on."""
    errors: list[dict[str, RepairedModule]] = []

    def recorded(reference: Any, *arguments: Any, **more: Any) -> dict[str, RepairedModule]:
        rows = torch.arange(32)[None]
        unpruned = AutoModelForCausalLM.from_pretrained(base_folder(tmp_path / "run"))
        assert torch.equal(reference(rows).logits, unpruned(rows).logits)
        errors.append(repair(reference, *arguments, **more))
        return errors[-1]

    monkeypatch.setattr(calibration, "repair", recorded)
    cut = {"steps": 1, "eval_every": 1, "gates": gates, "gate_init": "taylor", "gate_learning_rate": "auto"}
    cut |= {"repair": 0.01, "sparsity_warmup_fraction": 0.2, "calibration": {"tokens": 2048}}
    config = recipe(prune=cut, pretrain={"steps": 2}, **{"continue": {"steps": 1}})
    train(config, tmp_path / "run")
    assert any(each.after < 0.9 * each.before for each in errors[0].values())
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    base = next(record for record in records if isinstance(record, ModelMeasured))
    first = next(record for record in records if isinstance(record, Evaluated) and record.stage == "prune")
    assert first.losses == base.evaluation_losses
    assert first.parameters == base.parameters
    ended = next(record for record in records if isinstance(record, StageEnded) and record.stage == "prune")
    planned = plan_recipe(config, AutoConfig.from_pretrained(base.path)).stages[1].flops
    assert ended.flops["importance"] == planned.importance > 0


def base_folder(run: Path) -> str:
    records = read_records(run / "metrics.jsonl")
    path = next(record.path for record in records if isinstance(record, ModelMeasured))
    assert path is not None
    return path
