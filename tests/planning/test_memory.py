"""Planned memory is what training takes; a plan's hours and its changes hold together."""

from __future__ import annotations

import pytest
import torch
from benches.memory import SHAPE, measured, measured_sharded, overrides, planned
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.errors import ConfigError
from drpruning.planning import KNOWN
from drpruning.planning.cost import SCHEMES, cluster_of, costs, what_fits
from drpruning.planning.live_bytes import Peak
from drpruning.planning.memory import PHASES, _at_depth, phases_of, stage_memory
from drpruning.planning.recipe import find

GIB = 2**30
NARROW = ["training.dtype=bfloat16", "training.weights=bfloat16+low16", "training.moments=bfloat16"]


@pytest.mark.filterwarnings("ignore")  # of the profiler, where there is no GPU
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prune", ["training.dtype=bfloat16"]),
        ("continue", ["training.activation_checkpointing=full"]),
        ("continue", NARROW),
    ],
)
def test_planned_memory_is_within_a_tenth_of_what_is_taken(name: str, settings: list[str]) -> None:
    assert planned(settings, name, SHAPE) == pytest.approx(measured(settings, name, SHAPE), rel=0.1)


def test_planned_memory_of_a_rank_is_within_a_tenth_of_what_it_takes() -> None:
    taken = measured_sharded(NARROW, "continue", SHAPE, ranks=2, shards=2)
    assert planned(NARROW, "continue", SHAPE, ranks=2) == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize(
    ("gpus", "changed", "most"),
    [("1xH100", {"weights": "bfloat16+low16", "moments": "bfloat16"}, 76), ("8xH100", {}, 20)],
)
def test_every_phase_of_llama2_7b_fits_with_what_the_plan_proposes(
    gpus: str, changed: dict[str, str], most: float
) -> None:
    config, source = find("llama2-7b-to-2.7b", ["prune.start=taylor"])
    cluster = cluster_of(gpus)
    stages = costs(config, source, cluster)
    assert all(stage.fits for stage in stages) != bool(changed)
    if changed:
        change = what_fits(config, source, cluster)
        assert change is not None
        assert change.settings == {f"training.{name}": value for name, value in changed.items()}
        stages = change.stages
    alone = cluster.number == 1
    peaks = {stage.name: {memory.phase: memory.total / GIB for memory in stage.phases} for stage in stages}
    played = [phase for phase in PHASES if alone or phase not in ("measure", "export")]
    assert list(peaks["prune"]) == played
    assert list(peaks["continue"]) == [each for each in played if each not in ("importance", "closing", "export")]
    for of_stage in peaks.values():
        assert max(of_stage.values()) <= most
        assert all(of_stage[phase] < of_stage["step"] for phase in of_stage if phase not in ("step", "closing"))
    prune = peaks["prune"]
    assert 0.2 < prune["closing"] - prune["step"] < 0.8  # of a block: its weights, and their gradients
    if alone:
        assert prune["resume"] == pytest.approx(prune["load"], rel=1e-3)  # nothing of the states is there twice


@pytest.mark.parametrize("measure", ["taylor", "activation"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_importance_needs_less_than_a_step(measure: str, ranks: int) -> None:
    settings = [*NARROW, f"prune.start={measure}", "training.activation_checkpointing=full"]
    config, _ = find("quickstart", overrides(settings))
    peaks = {memory.phase: memory.total for memory in phases_of(config, "prune", SHAPE, device="cpu", ranks=ranks)}
    assert peaks["load"] < peaks["importance"] < peaks["step"]


def test_a_phase_whose_peak_is_at_another_instant_at_each_depth_keeps_its_sum() -> None:
    shallow, deep = Peak(10, {"weights": 8, "moments": 2}), Peak(13, {"weights": 3, "moments": 10})
    parts = _at_depth(shallow, deep, (2, 3), 5)
    assert sum(parts.values()) == pytest.approx(19, abs=2)  # each part is rounded down
    assert min(parts.values()) >= 0


def test_narrow_weights_of_a_shape_that_was_not_played_before() -> None:
    settings = [
        *NARROW,
        "prune.target={layers: 1}",
        "model.architecture={layers: 2, hidden: 40, heads: 2, intermediate: 56}",
    ]
    config, source = find("quickstart", [*settings, "data.seq_len=16", "training.evaluation_batch_size=1"])
    parameters = 1536 * 40 + 2 * (4 * 40 * 40 + 3 * 40 * 56 + 2 * 40) + 40
    memory = stage_memory(config, "pretrain", source, device="cpu")
    assert memory.parts["weights"] == pytest.approx(2 * parameters, rel=0.02)
    assert memory.parts["moments"] == pytest.approx(6 * parameters, rel=0.02)  # with the low halves


def test_states_take_what_their_types_take() -> None:
    config, source = find("quickstart", ["training.dtype=bfloat16", "data.seq_len=16", "training.micro_batch_size=4"])
    parameters = 1_377_920
    memory = stage_memory(config, "pretrain", source, device="cpu")
    assert memory.parts["weights"] == pytest.approx(4 * parameters, rel=0.01)
    assert memory.parts["moments"] == pytest.approx(8 * parameters, rel=0.01)


def test_ranks_share_states_and_not_activations() -> None:
    config, source = find("quickstart", ["data.seq_len=32", "training.evaluation_batch_size=1"])
    alone, shared = (stage_memory(config, "pretrain", source, device="cpu", ranks=ranks) for ranks in (1, 2))
    for part in ("weights", "moments"):
        assert shared.parts[part] == pytest.approx(alone.parts[part] / 2, rel=0.05)
    copied = stage_memory(config, "pretrain", source, device="cpu", ranks=4, shards=2)
    assert copied.parts["weights"] == pytest.approx(shared.parts["weights"], rel=1e-3)
    assert not torch.distributed.is_initialized()


def test_shards_are_those_of_the_recipe() -> None:
    cluster = cluster_of("2x4xH100")
    assert (cluster.number, cluster.machine) == (8, 4)
    found = {}
    for shards in ("all", "machine", "2"):
        config, _ = find("quickstart", [f"training.shards={shards}"])
        found[shards] = cluster.shards(config.training)
    assert found == {"all": 8, "machine": 4, "2": 2}
    config, source = find("quickstart", ["training.shards=3"])
    with pytest.raises(ConfigError, match="3 does not divide the 8 GPUs"):
        costs(config, source, cluster)


def test_where_a_machine_is_too_small_all_share_one_copy() -> None:
    overrides = ["data.seq_len=256", "training.micro_batch_size=1", "training.evaluation_batch_size=1"]
    config, source = find("llama2-7b-to-2.7b", [*overrides, "training.shards=machine"])
    change = what_fits(config, source, cluster_of("8x1xH100"))
    assert change is not None
    assert change.settings == {"training.shards": "all"}


def test_a_plan_says_what_makes_it_fit() -> None:
    overrides = ["data.seq_len=256", "training.micro_batch_size=1", "training.evaluation_batch_size=1"]
    config, source = find("llama2-7b-to-2.7b", overrides)
    cluster = cluster_of("H100")
    change = what_fits(config, source, cluster)
    assert change is not None
    assert change.settings["training.weights"] == "bfloat16+low16"  # 16 and 14 bytes a parameter are too many
    assert all(getattr(config.training, name.removeprefix("training.")) != it for name, it in change.settings.items())
    assert all(stage.fits and stage.memory.total <= cluster.room for stage in change.stages)
    prune = next(stage for stage in change.stages if stage.name == "prune")
    scheme = (change.settings["training.weights"], change.settings["training.moments"])
    assert prune.memory.total > 6.7e9 * SCHEMES[scheme]
    assert what_fits(config, source, cluster_of("L4")) is None


@pytest.mark.parametrize(
    ("gpus", "said"),
    [("0xH100", "not a number of cards"), ("", "not a number of cards"), ("8xH10", "no card"), ("3xH100", "multiple")],
)
def test_gpus_that_cannot_be_are_refused(gpus: str, said: str) -> None:
    config, source = find("llama2-7b-to-1.3b")
    with pytest.raises(ConfigError, match=said):
        costs(config, source, cluster_of(gpus))


def test_the_command_prints_memory_hours_and_price() -> None:
    small = ["--set", "data.seq_len=16", "--set", "training.evaluation_batch_size=1"]
    shown = CliRunner().invoke(group, ["plan", "cost", "quickstart", *small, "--gpus", "L4", "--gpu-hour-price", "3"])
    assert shown.exit_code == 0, shown.output
    assert "quickstart on 1 x L4" in shown.output
    assert "price" in shown.output
    for phase in ("load", "measure", "step", "closing", "evaluation", "save", "resume", "widen", "export"):
        assert f"\n{phase} " in shown.output
    assert not [line for line in shown.output.splitlines() if "…" in line]


def test_gpus_are_for_recipes() -> None:
    with pytest.raises(ConfigError, match="is a model; expected a recipe"):
        CliRunner().invoke(group, ["plan", "cost", next(iter(KNOWN)), "--gpus", "H100"], catch_exceptions=False)
