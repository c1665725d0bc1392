"""The lookahead predicts a superset of the next step's active units, one step early."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.learning_rates import max_adam_step

from .conftest import build
from .test_masked_model import TARGET, scattered

RATE, BETAS = 0.1, (0.9, 0.95)


class Run:
    """A short pruning run, with or without the lookahead."""

    def __init__(self, masked: MaskedModel, *, ahead: bool, rates: Callable[[int], float] = lambda step: RATE) -> None:
        self.masked, self.ahead, self.rates = masked.train(), ahead, rates
        groups = masked.parameter_groups()
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups["weights"], "lr": 1e-3},
                {"params": groups["gates"], "lr": RATE},
                {"params": groups["multipliers"], "lr": 0.05, "maximize": True},
            ],
            betas=BETAS,
            weight_decay=0.0,
            eps=1e-5,  # else a gradient of nothing but rounding moves a weight by a whole step
        )

    def step(self, number: int) -> float:
        """Take a step and return its loss."""
        generator, next_generator = (torch.Generator().manual_seed(step) for step in (number, number + 1))
        rate = self.optimizer.param_groups[1]["lr"] = self.rates(number)
        ahead = {"next_generator": next_generator, "max_gate_step": max_adam_step(rate, BETAS)} if self.ahead else {}
        self.masked.sample_masks(generator, **ahead)
        assert self.masked.num_missed_units() == 0
        self.needed = sum(int((mask != 0).sum()) for mask in self.masked.masks().values())
        tokens = torch.randint(50, (2, 10), generator=generator)
        loss = self.masked(tokens, labels=tokens).loss
        (loss + self.masked.constraint(number)).backward()
        self.optimizer.step()
        self.masked.clamp_gates()
        self.optimizer.zero_grad()
        return loss.item()

    def state(self):
        return copy.deepcopy((self.masked.state_dict(), self.optimizer.state_dict()))

    def load(self, state) -> None:
        self.masked.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])


def half_pruned(dtype=torch.float32) -> MaskedModel:
    masked = scattered(MaskedModel(build("llama-grouped").to(dtype), TARGET, warmup_steps=10), seed=2)
    for gate in masked.gates.values():
        gate.data -= 1.5
    return masked


def test_a_run_with_lookahead_ends_as_the_masked_run():
    masked = half_pruned(torch.double)
    masking = copy.deepcopy(masked)
    masking.skip_pruned_units = False
    runs = [Run(masked, ahead=True), Run(masking, ahead=False)]
    closed = 0
    for step in range(60):
        losses = [run.step(step) for run in runs]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        closed += masked.applied.active.hidden is not None
    assert closed > 50
    for (name, ours), theirs in zip(masked.named_parameters(), masking.parameters(), strict=True):
        tolerance = 1e-4 if name.startswith("model") else 5e-3  # gates are float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_a_step_with_lookahead_never_reads_its_own_masks(monkeypatch):
    from drpruning.pruning import masked_modules

    run = Run(half_pruned(), ahead=True)
    monkeypatch.setattr(masked_modules, "find_active_units", lambda *_, **__: pytest.fail("a step read its own masks"))
    for step in range(3):
        run.step(step)


@pytest.mark.parametrize("rates", [lambda step: RATE, lambda step: 1.0 * 0.5**step, lambda step: 0.05 * 2.0**step])
def test_a_resumed_run_skips_the_same_units_bit_for_bit(rates):
    """Use constant, falling and rising rates: each prediction has the bound of its step."""
    first = Run(half_pruned(), ahead=True, rates=rates)
    for step in range(4):
        first.step(step)
    second = Run(half_pruned(), ahead=True, rates=rates)
    second.step(17)  # makes another prediction, which is invalid once the state is loaded
    second.load(first.state())
    for step in range(4, 8):
        assert first.step(step) == second.step(step)
        for axis, mine in first.masked.applied.active.in_block(1).items():
            assert torch.equal(mine, second.masked.applied.active.in_block(1)[axis])
    for ours, theirs in zip(first.masked.parameters(), second.masked.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_lookahead_is_a_tight_superset():
    run = Run(half_pruned(), ahead=True)
    run.step(0)
    needed = predicted = 0
    for step in range(1, 10):
        active_set = run.masked.lookahead.predicted
        run.step(step)
        needed += run.needed
        predicted += sum(int(rows.sum()) for rows in active_set.active.values())
    assert needed < predicted < 1.1 * needed


def test_a_gate_that_moves_farther_than_its_bound_is_noticed():
    masked = half_pruned()
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2, 2, 3)]
    masked.sample_masks(seeds[0], next_generator=seeds[1], max_gate_step=0.1)
    with torch.no_grad():
        masked.gates["hidden"].add_(3.0)
    masked.sample_masks(seeds[2], next_generator=seeds[3], max_gate_step=0.1)
    assert masked.num_missed_units() > 0


def test_initialised_gates_and_another_dtype_reset_the_lookahead():
    masked = half_pruned()
    noise = [torch.Generator().manual_seed(seed) for seed in range(4)]
    masked.sample_masks(noise[0], next_generator=torch.Generator().manual_seed(1), max_gate_step=0.1)
    masked.init_from_importance({"hidden": torch.rand(32)}, spread=9.0)
    masked.sample_masks(noise[1], next_generator=torch.Generator().manual_seed(2), max_gate_step=0.1)
    assert masked.num_missed_units() == 0
    masked.bfloat16()
    assert all(gate.dtype == torch.float32 for gate in masked.lookahead.buffers())
    masked.sample_masks(noise[2])  # without the lookahead: the prediction is reset
    assert all(gate.isinf().all() for gate in masked.lookahead.buffers())


def test_protected_units_are_predicted_active(tokens):
    from drpruning.pruning.target import Protected

    masked = MaskedModel(build("llama"), Target(layers=3), protected=Protected(layers=[0])).train()
    masked.gates["layer"].data -= 30
    for step in range(2):
        noise, next_generator = (torch.Generator().manual_seed(seed) for seed in (step, step + 1))
        masked.sample_masks(noise, next_generator=next_generator, max_gate_step=0.1)
        masked(tokens)
    assert masked.applied.active.skipped_blocks == {1, 2, 3}
    assert masked.num_missed_units() == 0


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.0, 0.9), (0.5, 0.3)])
def test_the_bound_of_adam_holds_and_can_be_reached(betas):
    """Test gradients that make Cauchy-Schwarz an equality, and random ones."""
    first, second = betas
    bound = max_adam_step(0.1, betas)
    steps = 200

    def moves(gradients):
        number = nn.Parameter(torch.zeros((), dtype=torch.double))
        optimizer = torch.optim.Adam([number], lr=0.1, betas=betas, eps=1e-300)
        found = []
        for gradient in gradients:
            before = number.item()
            number.grad = torch.tensor(gradient, dtype=torch.double)
            optimizer.step()
            found.append(abs(number.item() - before))
        return found

    worst = moves(
        [(first / second) ** (steps - 1 - step) if first else float(step == steps - 1) for step in range(steps)]
    )
    assert worst[-1] <= bound * (1 + 1e-9)
    full = math.sqrt((1 - second**steps) * (1 - (first**2 / second) ** steps)) / (1 - first**steps)
    assert worst[-1] == pytest.approx(bound * full, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 5.0):
        noise = torch.exp(scale * torch.randn(steps, generator=generator)) * torch.randn(steps, generator=generator)
        assert max(moves(noise.tolist())) <= bound * (1 + 1e-9)
    assert max_adam_step(0.1, (0.9, 0.8)) is None
