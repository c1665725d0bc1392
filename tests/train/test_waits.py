"""No step of a stage waits for the device, and what counts that does count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drpruning.config import RunConfig
from drpruning.pruning.sizes import expected_sparsity
from drpruning.records import StepTaken, read_records
from drpruning.train import loop
from drpruning.train.execution import Execution
from drpruning.train.optimizer import NarrowAdamW
from drpruning.train.run import train
from drpruning.train.state import StageState
from tests.train.test_run import Recipe
from tests.train.waits import Waits

SHORT = {"steps": 2, "evaluate_every": 2}
STAGES: dict[str, Any] = {"pretrain": SHORT, "prune": {"steps": 5, "evaluate_every": 4}, "continue": SHORT}
STEPS = 9
NARROW = {"dtype": "bfloat16", "weights": "bfloat16+low16", "moments": "int8"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow": {"training": NARROW},
    "masking": {"prune": {"skip_closed": False}},
    "distilling": {"prune": {"distill": {"teacher": "itself", "hidden": 0.5, "top_k": 8}}},
    "documents, full": {"data": {"document_mask": True}, "training": {"activation_checkpointing": "full"}},
    "narrow, documents, selective": {
        "data": {"document_mask": True},
        "training": {**NARROW, "activation_checkpointing": "selective", "deterministic": True},
    },
}


def laid_out(recipe: Recipe, layout: dict[str, Any]) -> RunConfig:
    """The recipe of all stages with the sections of ``layout``."""
    return recipe(**{**STAGES, **layout, "prune": {**STAGES["prune"], **layout.get("prune", {})}})


def counted(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Trains and counts the waits of all steps."""
    waits, real = Waits(), loop.take_step

    def step(stage: StageState, *given: Any) -> bool:
        with waits.in_step():
            if isinstance(stage.optimizer, NarrowAdamW):  # counts its steps on the host
                waits.note_host(state["step"] for state in stage.optimizer.state.values())
            return real(stage, *given)

    monkeypatch.setattr(loop, "take_step", step)
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
    """A block mask is made on the device; the number of documents' ends is what the host must know."""
    tokens = torch.randint(0, 5, (3, 100))
    for attention, found in (("sdpa", 0), ("flex_attention", 0), ("flash_attention_2", 1)):
        waits = Waits()
        with waits.in_step():
            Execution(end_token=0, attention=attention).inputs(tokens)
        assert len(waits.found) == found, waits.found
    assert "nonzero" in waits.found[0]


def test_a_step_that_reads_a_number_is_found(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.backward

    def reading(stage: Any, engine: Any, meter: Any, batch: Any) -> Any:
        means, norm = real(stage, engine, meter, batch)
        float(means[0])
        if stage.masked is not None:
            expected_sparsity(stage.masked)
            stage.masked._active = (), stage.masked._active[1]  # as without a lookahead
        return means, norm

    monkeypatch.setattr(loop, "backward", reading)
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
        waits = Waits()
        with waits.in_step():
            waiting()
        assert waits.found
    waits = Waits()
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
    real = loop.take_step

    def step(*given: Any) -> bool:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return real(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "take_step", step)
    train(laid_out(recipe, {**layout, "training": {**layout.get("training", {}), "device": "cuda"}}), tmp_path / "run")
