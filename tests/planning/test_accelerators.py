"""The assumed utilisation, the same in every command of `plan`."""

import json
import re

import pytest
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.planning.accelerators import find_accelerator, peak_flops, utilisation
from drpruning.planning.recipe import plan_recipe
from drpruning.recipes import load_recipe


def test_recomputation_and_distillation_lower_utilisation() -> None:
    shares = {
        setting: utilisation(load_recipe("quickstart", [setting]), "continue")
        for setting in (
            "training.activation_checkpointing=none",
            "training.activation_checkpointing=selective",
            "training.activation_checkpointing=full",
            "continue.distill={weight: 0.5}",
            "continue.distill={weight: 0.5, stored: teachers/large}",
            "continue.distill={weight: 0.5, stored: teachers/large, missing: compute}",
        )
    }
    assert list(shares.values()) == pytest.approx([0.4, 0.4 / 1.1, 0.3, 0.3, 0.4, 0.3])


def test_hours_of_a_recipe_are_the_same_in_every_command() -> None:
    run = CliRunner().invoke
    full = "training.activation_checkpointing=full"
    words = ["llama2-7b-to-2.7b", "--set", full]
    proposed = json.loads(run(group, ["plan", "shape", *words, "--params", "2.7B", "--json"]).stdout)
    assert proposed["training"]["utilisation"] == pytest.approx({"prune": 0.3, "continue": 0.3})
    shown = run(group, ["plan", "cost", *words]).stdout
    assert "at 30% of its bfloat16 peak" in shown
    _, *numbers = re.search(r"^prune .*$", shown, re.MULTILINE)[0].split()  # type: ignore[index]
    work, hours, _ = (float(number.replace(",", "")) for number in numbers[-3:])
    assert hours == pytest.approx(work * 1e15 / (989e12 * 0.3) / 3600, abs=0.06)


def test_evaluations_cost_a_forward_pass_over_their_rows() -> None:
    config = load_recipe("llama2-7b-to-1.3b")
    for stage in plan_recipe(config).stages:
        tokens = stage.evaluations * 7 * 500 * 4096
        assert stage.evaluation_flops == pytest.approx(stage.flops / stage.tokens / 3 * tokens)
    half = load_recipe("llama2-7b-to-1.3b", ["training.eval_tokens=1024001"])
    assert plan_recipe(half).stages[0].evaluation_flops == pytest.approx(
        plan_recipe(config).stages[0].evaluation_flops / 2
    )


def test_float32_has_a_separate_peak() -> None:
    peaks = {
        setting: peak_flops(load_recipe("quickstart", [setting]), find_accelerator("H100"))
        for setting in ("training.dtype=bfloat16", "training.dtype=float32", "training.peak_tflops=5")
    }
    assert list(peaks.values()) == [989e12, 67e12, 5e12]


def test_evaluations_at_the_end_of_probes_are_counted() -> None:
    plain = load_recipe("quickstart")
    probing = load_recipe("quickstart", ["mixture.strategy=aioli", "mixture.sweeps=1", "mixture.round_fraction=0.5"])
    for before, after in zip(plan_recipe(plain).stages, plan_recipe(probing).stages, strict=True):
        added = 0 if before.name == "pretrain" else 2 * len(plain.domains)  # two rounds of a probe of each domain
        assert after.evaluations == before.evaluations + added
        assert (after.flops, after.tokens) == (before.flops, before.tokens)
