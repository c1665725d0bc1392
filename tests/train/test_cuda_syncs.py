"""No step of a stage synchronises with the device, and the counter finds steps that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drpruning.config import RunConfig
from drpruning.pruning.sizes import expected_sparsity
from drpruning.records import StepTaken, read_records
from drpruning.train import loop
from drpruning.train.model_runtime import ModelRuntime
from drpruning.train.optimizers import LowPrecisionAdamW
from drpruning.train.run import train
from drpruning.train.state import StageState
from tests.train.cuda_syncs import CudaSyncs
from tests.train.test_run import Recipe

SHORT = {"steps": 2, "eval_every": 2}
STAGES: dict[str, Any] = {"pretrain": SHORT, "prune": {"steps": 5, "eval_every": 4}, "continue": SHORT}
STEPS = 9
NARROW = {"dtype": "bfloat16", "weight_format": "bfloat16+low16", "optimizer_state_format": "int8"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow": {"training": NARROW},
    "masking": {"prune": {"skip_pruned_units": False}},
    "distilling": {"prune": {"distill": {"teacher": "self", "hidden_weight": 0.5, "top_k": 8}}},
    "documents, full": {"data": {"document_mask": True}, "training": {"activation_checkpointing": "full"}},
    "narrow, documents, selective": {
        "data": {"document_mask": True},
        "training": {**NARROW, "activation_checkpointing": "selective", "deterministic": True},
    },
}


def laid_out(recipe: Recipe, layout: dict[str, Any]) -> RunConfig:
    """Return the recipe of all stages with the sections of ``layout``."""
    return recipe(**{**STAGES, **layout, "prune": {**STAGES["prune"], **layout.get("prune", {})}})


def counted(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> CudaSyncs:
    """Train, and count the synchronisations of all steps."""
    waits, real = CudaSyncs(), loop.train_step

    def step(stage: StageState, *given: Any) -> None:
        with waits.in_step():
            if isinstance(stage.optimizer, LowPrecisionAdamW):  # counts its steps on the host
                waits.note_host(state["step"] for state in stage.optimizer.state.values())
            real(stage, *given)

    monkeypatch.setattr(loop, "train_step", step)
    train(config, folder)
    return waits


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_no_step_waits_for_the_device(
    layout: dict[str, Any], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = counted(laid_out(recipe, layout), tmp_path / "run", monkeypatch)
    assert not waits.found
    assert waits.step == STEPS
    records = [each for each in read_records(tmp_path / "run" / "metrics.jsonl") if isinstance(each, StepTaken)]
    assert len(records) == STEPS  # in the order of events, though each was written a step late
    assert [each.step for each in records if each.stage == "prune"] == [1, 2, 3, 4, 5]


def test_inputs_of_flex_attention_do_not_wait_and_those_of_flash_attention_wait_once() -> None:
    """Count synchronisations: a block mask is built on the device; FlashAttention needs the number of documents."""
    tokens = torch.randint(0, 5, (3, 100))
    for attention, found in (("sdpa", 0), ("flex_attention", 0), ("flash_attention_2", 1)):
        waits = CudaSyncs()
        with waits.in_step():
            ModelRuntime(end_token=0, attention=attention).inputs(tokens)
        assert len(waits.found) == found, waits.found
    assert "nonzero" in waits.found[0]


def test_a_step_that_reads_a_number_is_found(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.forward_backward

    def reading(stage: Any, context: Any, tokens: Any) -> Any:
        metrics = real(stage, context, tokens)
        float(metrics["loss"])
        if stage.masked is not None:
            expected_sparsity(stage.masked)
            stage.masked._active = (), stage.masked._active[1]  # as without a lookahead
        return metrics

    monkeypatch.setattr(loop, "forward_backward", reading)
    found = counted(recipe(**STAGES), tmp_path / "run", monkeypatch).found
    assert sum("_local_scalar_dense" in each or "__float__" in each for each in found) >= STEPS
    assert sum("tolist of (4,)" in each for each in found) == STAGES["prune"]["steps"]


def test_all_that_waits_on_a_gpu_is_found_on_a_cpu() -> None:
    values, device = torch.rand(4), torch.device("cpu")
    for waiting in (
        lambda: values.sum().item(),
        lambda: bool(values.sum() > 0),
        values.tolist,
        values.cpu,
        values.nonzero,
        lambda: values[values > 0.5],
        lambda: values[[0, 2]],
        lambda: torch.tensor([1.0], device=device),
        lambda: torch.rand(3).to(device),
    ):
        waits = CudaSyncs()
        with waits.in_step():
            waiting()
        assert waits.found
    waits = CudaSyncs()
    with waits.in_step():
        torch.tensor([1, 2]).tolist()
        torch.rand(3).numpy()
        (values.sum() + torch.rand(4).to(device, non_blocking=True)).clamp(min=0)[1:]
    assert not waits.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_no_step_waits_for_a_gpu(
    layout: dict[str, Any], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.train_step

    def step(*given: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            real(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "train_step", step)
    train(laid_out(recipe, {**layout, "training": {**layout.get("training", {}), "device": "cuda"}}), tmp_path / "run")
