"""The assumed utilisation, the same in every command of `plan`."""

import json
import re

import pytest
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.flops import FlopCounts
from drpruning.planning.accelerators import accelerator_peak, find_accelerator, step_seconds, utilisation
from drpruning.planning.recipe import plan_recipe
from drpruning.recipes import load_recipe


def test_recomputation_lowers_utilisation_and_a_teacher_adds_its_passes() -> None:
    config = {
        name: load_recipe("quickstart", [f"training.activation_checkpointing={name}"])
        for name in ("none", "selective", "full")
    }
    assert [utilisation(each) for each in config.values()] == pytest.approx([0.4, 0.4 / 1.1, 0.3])
    work = FlopCounts(training=3e9, teacher=2e9, evaluation=7e9)
    assert step_seconds(config["full"], work, 1e9) == pytest.approx(3 / 0.3 + 2 / 0.4)


def test_a_teacher_costs_a_forward_pass_of_the_large_model() -> None:
    settings = ["continue.distill={weight: 0.5}", "prune.gate_init=taylor"]
    plain, planned = (plan_recipe(load_recipe("llama2-7b-to-1.3b", each)) for each in ([], settings))
    (_, before), (prune, after) = plain.stages, planned.stages
    assert (after.flops.training, before.flops.teacher) == (before.flops.training, 0)
    large = prune.flops.training / prune.tokens / 3  # 2 of 6 operations for each weight
    assert after.flops.teacher == pytest.approx(large * after.tokens)
    assert after.flops.teacher > 1.4 * after.flops.training  # not a third of it: the student is small
    assert planned.charged_flops - plain.charged_flops == after.flops.teacher + prune.flops.importance
    assert 0 < prune.flops.importance < 65_536 * 3 * large


def test_hours_of_a_recipe_are_the_same_in_every_command() -> None:
    run = CliRunner().invoke
    full = "training.activation_checkpointing=full"
    words = ["llama2-7b-to-2.7b", "--set", full]
    proposed = json.loads(run(group, ["plan", "shape", *words, "--params", "2.7B", "--json"]).stdout)
    assert proposed["training"]["utilisation"] == pytest.approx(0.3)
    shown = run(group, ["plan", "cost", *words]).stdout
    assert "at 30% of its bfloat16 peak" in shown
    _, *numbers = re.search(r"^prune .*$", shown, re.MULTILINE)[0].split()  # type: ignore[index]
    work, hours, _ = (float(number.replace(",", "")) for number in numbers[-3:])
    assert hours == pytest.approx(work * 1e15 / (989e12 * 0.3) / 3600, abs=0.06)


def test_evaluations_cost_a_forward_pass_over_their_rows() -> None:
    config = load_recipe("llama2-7b-to-1.3b")
    for stage in plan_recipe(config).stages:
        tokens = stage.evaluations * 7 * 500 * 4096
        assert stage.flops.evaluation == pytest.approx(stage.flops.training / stage.tokens / 3 * tokens)
    half = load_recipe("llama2-7b-to-1.3b", ["training.eval_tokens=1024001"])
    assert plan_recipe(half).stages[0].flops.evaluation == pytest.approx(
        plan_recipe(config).stages[0].flops.evaluation / 2
    )


def test_float32_has_a_separate_peak() -> None:
    peaks = {
        setting: accelerator_peak(load_recipe("quickstart", [setting]), find_accelerator("H100"))
        for setting in ("training.dtype=bfloat16", "training.dtype=float32", "training.peak_tflops=5")
    }
    assert list(peaks.values()) == [989e12, 67e12, 5e12]


def test_evaluations_at_the_end_of_probes_are_counted() -> None:
    plain = load_recipe("quickstart")
    probing = load_recipe("quickstart", ["mixture.strategy=aioli", "mixture.sweeps=1", "mixture.round_fraction=0.5"])
    for before, after in zip(plan_recipe(plain).stages, plan_recipe(probing).stages, strict=True):
        probed = before.name == "continue"  # a one-shot cut has no probes
        added = 2 * len(plain.domains) if probed else 0  # two rounds of a probe of each domain
        assert after.evaluations == before.evaluations + added
        assert (after.flops.training, after.tokens) == (before.flops.training, before.tokens)
