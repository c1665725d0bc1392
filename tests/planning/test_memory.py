"""Planned memory is that of training; costs and fitting settings agree."""

from __future__ import annotations

import pytest
import torch
from benches.memory import SHAPE, TARGET, measured, measured_sharded, overrides, planned
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.errors import ConfigError
from drpruning.planning import KNOWN
from drpruning.planning.cost import STATE_FORMATS, find_fitting_settings, parse_cluster, recipe_costs
from drpruning.planning.memory import PHASES, _at_depth, export_host_bytes, phases_of, stage_memory
from drpruning.planning.memory_tracker import Peak
from drpruning.planning.recipe import find_recipe_or_model
from drpruning.pruning import Target, parameter_count

GIB = 2**30
NARROW = [
    "training.dtype=bfloat16",
    "training.weight_format=bfloat16+low16",
    "training.optimizer_state_format=bfloat16",
]


@pytest.mark.filterwarnings("ignore")  # of the profiler, where there is no GPU
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prune", ["training.dtype=bfloat16"]),
        ("continue", ["training.activation_checkpointing=full"]),
        ("continue", NARROW),
    ],
)
def test_planned_memory_is_within_a_tenth_of_measured_memory(name: str, settings: list[str]) -> None:
    assert planned(settings, name, SHAPE) == pytest.approx(measured(settings, name, SHAPE), rel=0.1)


def test_a_stored_teacher_takes_no_memory_for_weights_or_logits() -> None:
    rows = ["training.micro_batch_size=2", "data.seq_len=64"]
    alone, stored, runs = (
        planned([*rows, f"continue.distill={settings}"], "continue", SHAPE)
        for settings in ("null", "{weight: 0.5, stored: teachers/large}", "{weight: 0.5}")
    )
    teacher = 4 * parameter_count(SHAPE)
    assert runs > alone + teacher
    targets = 2 * 63 * 50 * (4 + 4 + 8)  # ids as read and as int64, probabilities
    assert alone <= stored < alone + 4 * targets < alone + teacher / 4


def test_planned_memory_of_a_rank_is_within_a_tenth_of_its_measured_memory() -> None:
    taken = measured_sharded(NARROW, "continue", SHAPE, ranks=2, shards=2)
    assert planned(NARROW, "continue", SHAPE, ranks=2) == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize(
    ("gpus", "changed", "most"),
    [("1xH100", {"weight_format": "bfloat16+low16", "optimizer_state_format": "bfloat16"}, 76), ("8xH100", {}, 20)],
)
def test_every_phase_of_llama2_7b_fits_with_the_proposed_settings(
    gpus: str, changed: dict[str, str], most: float
) -> None:
    config, source = find_recipe_or_model("llama2-7b-to-2.7b", ["prune.gate_init=taylor"])
    cluster = parse_cluster(gpus)
    stages = recipe_costs(config, source, cluster)
    assert all(stage.fits for stage in stages) != bool(changed)
    if changed:
        change = find_fitting_settings(config, source, cluster)
        assert change is not None
        assert change.settings == {f"training.{name}": value for name, value in changed.items()}
        stages = change.stages
    alone = cluster.number == 1
    peaks = {stage.name: {memory.phase: memory.total / GIB for memory in stage.phases} for stage in stages}
    simulated = [phase for phase in PHASES if alone or phase not in ("measure", "export")]
    assert list(peaks["prune"]) == simulated
    assert list(peaks["continue"]) == [
        each for each in simulated if each not in ("importance", "sparse_step", "export")
    ]
    for of_stage in peaks.values():
        assert max(of_stage.values()) <= most
        assert all(of_stage[phase] < of_stage["step"] for phase in of_stage if phase not in ("step", "sparse_step"))
    prune = peaks["prune"]
    assert 0.2 < prune["sparse_step"] - prune["step"] < 0.8  # of a block: its weights, and their gradients
    if alone:
        assert prune["resume"] == pytest.approx(prune["load"], rel=1e-3)  # nothing of the states is there twice


@pytest.mark.parametrize("measure", ["taylor", "activation"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_importance_needs_less_than_a_step(measure: str, ranks: int) -> None:
    settings = [*NARROW, f"prune.gate_init={measure}", "training.activation_checkpointing=full"]
    config, _ = find_recipe_or_model("quickstart", overrides(settings))
    peaks = {memory.phase: memory.total for memory in phases_of(config, "prune", SHAPE, device="cpu", ranks=ranks)}
    assert peaks["load"] < peaks["importance"] < peaks["step"]


def test_a_peak_at_another_instant_at_each_depth_keeps_its_sum() -> None:
    shallow, deep = (
        Peak(10, {"weights": 8, "moments": 2}),
        Peak(13, {"weights": 3, "moments": 10}),
    )
    parts = _at_depth(shallow, deep, (2, 3), 5)
    assert sum(parts.values()) == pytest.approx(19, abs=2)  # each part is rounded down
    assert min(parts.values()) >= 0


def test_narrow_weights_of_a_new_shape() -> None:
    settings = [
        *NARROW,
        "prune.target={layers: 1}",
        "model.architecture={layers: 2, hidden: 40, heads: 2, intermediate: 56}",
    ]
    config, source = find_recipe_or_model("quickstart", [*settings, "data.seq_len=16", "training.eval_batch_size=1"])
    parameters = 1536 * 40 + 2 * (4 * 40 * 40 + 3 * 40 * 56 + 2 * 40) + 40
    memory = stage_memory(config, "pretrain", source, device="cpu")
    assert memory.parts["weights"] == pytest.approx(2 * parameters, rel=0.02)
    assert memory.parts["moments"] == pytest.approx(6 * parameters, rel=0.02)  # with the low halves


def test_states_have_the_size_of_their_dtypes() -> None:
    config, source = find_recipe_or_model(
        "quickstart", ["training.dtype=bfloat16", "data.seq_len=16", "training.micro_batch_size=4"]
    )
    parameters = 1_377_920
    memory = stage_memory(config, "pretrain", source, device="cpu")
    assert memory.parts["weights"] == pytest.approx(4 * parameters, rel=0.01)
    assert memory.parts["moments"] == pytest.approx(8 * parameters, rel=0.01)


def test_ranks_share_states_and_not_activations() -> None:
    config, source = find_recipe_or_model("quickstart", ["data.seq_len=32", "training.eval_batch_size=1"])
    alone, shared = (stage_memory(config, "pretrain", source, device="cpu", ranks=ranks) for ranks in (1, 2))
    for part in ("weights", "moments"):
        assert shared.parts[part] == pytest.approx(alone.parts[part] / 2, rel=0.05)
    copied = stage_memory(config, "pretrain", source, device="cpu", ranks=4, shards=2)
    assert copied.parts["weights"] == pytest.approx(shared.parts["weights"], rel=1e-3)
    assert not torch.distributed.is_initialized()


def test_shards_come_from_the_recipe() -> None:
    cluster = parse_cluster("2x4xH100")
    assert (cluster.number, cluster.node) == (8, 4)
    found = {}
    for shards in ("all", "node", "2"):
        config, _ = find_recipe_or_model("quickstart", [f"training.fsdp_shard={shards}"])
        found[shards] = cluster.shards(config.training)
    assert found == {"all": 8, "node": 4, "2": 2}
    config, source = find_recipe_or_model("quickstart", ["training.fsdp_shard=3"])
    with pytest.raises(ConfigError, match="3 does not divide the 8 GPUs"):
        recipe_costs(config, source, cluster)


def test_if_a_node_is_too_small_all_ranks_share_one_copy() -> None:
    overrides = ["data.seq_len=256", "training.micro_batch_size=1", "training.eval_batch_size=1"]
    config, source = find_recipe_or_model("llama2-7b-to-2.7b", [*overrides, "training.fsdp_shard=node"])
    change = find_fitting_settings(config, source, parse_cluster("8x1xH100"))
    assert change is not None
    assert change.settings == {"training.fsdp_shard": "all"}


def test_fitting_settings_are_found() -> None:
    overrides = ["data.seq_len=256", "training.micro_batch_size=1", "training.eval_batch_size=1"]
    config, source = find_recipe_or_model("llama2-7b-to-2.7b", overrides)
    cluster = parse_cluster("H100")
    change = find_fitting_settings(config, source, cluster)
    assert change is not None
    assert change.settings["training.weight_format"] == "bfloat16+low16"  # 16 and 14 bytes a parameter are too many
    assert all(getattr(config.training, name.removeprefix("training.")) != it for name, it in change.settings.items())
    assert all(stage.fits and stage.memory.total <= cluster.usable_memory for stage in change.stages)
    prune = next(stage for stage in change.stages if stage.name == "prune")
    scheme = (change.settings["training.weight_format"], change.settings["training.optimizer_state_format"])
    assert prune.memory.total > 6.7e9 * STATE_FORMATS[scheme]
    assert find_fitting_settings(config, source, parse_cluster("L4")) is None


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("0xH100", "not a number of accelerators"),
        ("", "not a number of accelerators"),
        ("8xH10", "unknown accelerator"),
        ("3xH100", "multiple"),
    ],
)
def test_wrong_gpus_are_rejected(gpus: str, message: str) -> None:
    config, source = find_recipe_or_model("llama2-7b-to-1.3b")
    with pytest.raises(ConfigError, match=message):
        recipe_costs(config, source, parse_cluster(gpus))


def test_the_command_prints_memory_hours_and_price() -> None:
    small = ["--set", "data.seq_len=16", "--set", "training.eval_batch_size=1"]
    shown = CliRunner().invoke(group, ["plan", "cost", "quickstart", *small, "--gpus", "L4", "--gpu-hour-price", "3"])
    assert shown.exit_code == 0, shown.output
    assert "quickstart on 1 x L4" in shown.output
    assert "price" in shown.output
    for phase in ("load", "measure", "step", "sparse_step", "evaluation", "save", "resume", "widen", "export"):
        assert f"\n{phase} " in shown.output
    assert not [line for line in shown.output.splitlines() if "…" in line]


def test_exports_of_several_ranks_need_one_weight_in_host_memory_or_the_models_of_a_repair() -> None:
    small = [TARGET, "data.seq_len=16", "training.eval_batch_size=1", "continue.distill=null"]
    config, _ = find_recipe_or_model("quickstart", [*small, "prune.repair=null"])
    assert export_host_bytes(config, SHAPE) == 2 * 4 * SHAPE.vocab_size * SHAPE.hidden_size
    repaired, _ = find_recipe_or_model("quickstart", [*small, "prune.repair=0.01"])
    target = Target(**config.pruning.target.model_dump()).resolve(SHAPE)  # type: ignore[arg-type]
    both = parameter_count(SHAPE) + parameter_count(SHAPE, target)  # type: ignore[arg-type]
    assert export_host_bytes(repaired, SHAPE) == 4 * both


def test_gpus_are_for_recipes() -> None:
    with pytest.raises(ConfigError, match="is a model; expected a recipe"):
        CliRunner().invoke(group, ["plan", "cost", next(iter(KNOWN)), "--gpus", "H100"], catch_exceptions=False)
