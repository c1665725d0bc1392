"""What the records say of a step: by domain, against the arithmetic, and in the progress line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.config import ArchitectureConfig, RunConfig
from drpruning.errors import ConfigError
from drpruning.flops import peak_flops, peak_of_gpu
from drpruning.formatting import duration
from drpruning.progress import STEP_LINE_SECONDS, ProgressLine
from drpruning.pruning import Target, parameter_count
from drpruning.pruning.model_flops import flops_per_token
from drpruning.records import Incident, StepTaken, read_records
from drpruning.train.base_model import model_config
from drpruning.train.metrics import losses_by_domain
from drpruning.train.run import train

Recipe = Callable[..., RunConfig]


def test_the_count_is_that_of_torch_for_what_the_weights_do() -> None:
    """torch counts every product; attention apart, since it counts the whole square."""
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=100, attn_implementation="eager",
    )  # fmt: skip
    model, length = LlamaForCausalLM(config), 16
    tokens = torch.zeros((2, length), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    ours = flops_per_token(config, Target.of(config).sizes(), length) * tokens.numel()
    half_of_the_square = 6 * 3 * 4 * 8 * length * tokens.numel()
    # the rotary angles are an outer product of 1 by 4 by 16, forward only
    assert counter.get_total_flops() - half_of_the_square - ours == pytest.approx(0, abs=2 * 4 * length * 2)


def test_weights_that_multiply_are_all_but_the_embedding() -> None:
    config = LlamaConfig()
    count = parameter_count(config) - config.vocab_size * config.hidden_size  # the norms' gains do not multiply
    assert flops_per_token(config, Target.of(config).sizes(), 0) == pytest.approx(6 * count, rel=1e-4)


def test_the_peak_is_the_setting_or_that_of_the_gpu() -> None:
    assert peak_flops(torch.device("cpu"), "bfloat16") is None
    assert peak_flops(torch.device("cpu"), "float32", 0.5) == 0.5e12
    assert peak_of_gpu("NVIDIA H100 PCIe") == 756e12
    assert peak_of_gpu("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of_gpu("NVIDIA H200") == 989e12
    assert peak_of_gpu("NVIDIA A1000") is None


def test_domains_without_rows_are_left_out() -> None:
    losses, counts = losses_by_domain(torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([2, 0, 2]), ["a", "b", "c"])
    assert losses == {"a": 2.0, "c": 2.5}
    assert counts == {"a": 1, "c": 2}


def test_a_step_records_the_losses_of_its_domains(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe(training={"peak_tflops": 1e-3}), tmp_path / "run")
    steps = [each for each in read_records(tmp_path / "run" / "metrics.jsonl") if isinstance(each, StepTaken)]
    assert len(steps) == 24
    for step in steps:
        assert step.domain_losses is not None
        assert step.domain_tokens is not None
        assert sum(step.domain_tokens.values()) == 8 * 32
        mean = sum(step.domain_losses[name] * count for name, count in step.domain_tokens.items()) / (8 * 32)
        assert mean == pytest.approx(step.loss, rel=1e-5)
        assert step.memory is not None
        assert step.memory > 50e6
        assert step.loader_wait is not None
        assert 0 <= step.loader_wait < 256 / step.tokens_per_second
        assert step.utilisation is not None
    # the same model, so utilisation is in proportion to the speed
    pretraining = [step for step in steps if step.stage == "pretrain"]
    ratios = [step.utilisation / step.tokens_per_second for step in pretraining if step.utilisation]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-2)


def step(**changes: Any) -> StepTaken:
    body = {
        "stage": "continue", "step": 5, "tokens": 500, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 1.0,
        "tokens_per_second": 1234.0, "domain_losses": {"web": 2.0, "code": 3.0}, "utilisation": 0.456,
    }  # fmt: skip
    return StepTaken(**{**body, **changes})


def test_the_progress_line_shows_a_stage_that_a_resumed_run_is_in_the_middle_of() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with ProgressLine(console, {"continue": 10}) as line:
        line.write(step())
        (task,) = line.progress.tasks
        assert (task.completed, task.total) == (5, 10)
        assert task.fields["numbers"] == "loss 2.500, 1,234 tokens/s, MFU 46%, worst code 3.00"


def test_without_a_terminal_a_line_of_steps_is_printed_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("drpruning.progress.time.monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=120)
    with ProgressLine(console, {"continue": 10}) as line:
        for number in (1, 2, 3, 4):
            clock[0] += STEP_LINE_SECONDS / 2
            line.write(step(step=number, tokens=100 * number, tokens_per_second=10.0))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [text.split(",")[0].strip() for text in lines] == [
        "continue pretraining: step 2 of 10", "continue pretraining: step 4 of 10"
    ]  # fmt: skip
    assert lines[-1].endswith(f"worst code 3.00, {duration(60.0)} left")


def test_the_progress_line_reads_no_markup_in_records() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=120)
    with ProgressLine(console, {"continue": 10}) as line:
        line.write(Incident(what="damaged [b]", detail="of [/data/run], rows [first] to [last]"))
        line.write(step(domain_losses={"[/web]": 3.0}))
        line.progress.refresh()
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "damaged [b]: of [/data/run], rows [first] to [last]" in printed
    assert "worst [/web] 3.00" in printed


def test_a_shape_that_transformers_refuses_is_an_error_of_the_recipe() -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture: .*30.*4"):
        model_config(ArchitectureConfig(layers=2, hidden=30, heads=4, intermediate=8), 100)
