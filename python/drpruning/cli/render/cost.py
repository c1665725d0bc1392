"""Output of ``drpruning plan cost RECIPE --gpus``: memory of a rank, whether it fits, hours and price."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drpruning.cli.render.result import CommandResult
from drpruning.config import RunConfig
from drpruning.planning.cost import (
    FittingSettings,
    StageCost,
    find_fitting_settings,
    memory_by_format,
    parse_cluster,
    recipe_costs,
)
from drpruning.planning.memory import PARTS, PHASES, PhaseMemory, export_host_bytes
from drpruning.planning.model_shape import ModelShape, OtherShape
from drpruning.tables import Row, Table
from drpruning.tables.terminal import print_table

if TYPE_CHECKING:
    from rich.console import Console

GIB = 2**30


def cost_on_gpus(
    config: RunConfig, source: ModelShape | OtherShape, gpus: str, gpu_hour_price: float | None
) -> CommandResult:
    """Compute memory, hours and price of a recipe on GPUs.

    Args:
        config: The recipe.
        source: Shape of its large model.
        gpus: Number and name of the GPUs, as ``8xH100``.
        gpu_hour_price: Price of one GPU for one hour, in any currency.

    Raises:
        ConfigError: The GPU is unknown, or a batch is not divisible by the number of GPUs.
    """
    cluster = parse_cluster(gpus)
    stages = recipe_costs(config, source, cluster)
    tightest = max(stages, key=lambda stage: stage.memory.total)
    fits = all(stage.fits for stage in stages)
    change = None if fits else find_fitting_settings(config, source, cluster)
    # Several ranks shard these states; and float32 training cannot use the narrow formats
    worth_showing = not fits and cluster.number == 1 and config.training.dtype == "bfloat16"
    by_scheme = memory_by_format(config, tightest.name, source, cluster) if worth_showing else []
    hours = sum(stage.total_hours for stage in stages)
    on_host = export_host_bytes(config, source) if cluster.number > 1 else None
    body = {
        "recipe": config.name,
        "gpus": cluster.number,
        "accelerator": cluster.accelerator.name,
        "usable_bytes": cluster.usable_memory,
        "export_host_bytes": on_host,
        "stages": [_stage_to_dict(stage) for stage in stages],
        "schemes": [
            {
                "weight_format": weights,
                "optimizer_state_format": moments,
                **_memory_to_dict(memory),
                "fits": memory.total <= cluster.usable_memory,
            }
            for weights, moments, memory in by_scheme
        ],
        "hours": hours,
        "price": None if gpu_hour_price is None else gpu_hour_price * cluster.number * hours,
        "fits": fits,
        "change": None
        if change is None
        else {"settings": change.settings, "stages": [_stage_to_dict(stage) for stage in change.stages]},
    }

    def write(console: Console) -> None:
        room = f"the {cluster.usable_memory / GIB:.0f} GiB of a {cluster.accelerator.name} that are used"
        console.print(f"{config.name} on {cluster.number} x {cluster.accelerator.name}", markup=False)
        print_table(console, _stage_table(stages, cluster.number, gpu_hour_price))
        console.print("\nMemory of a rank at its peak, GiB:")
        print_table(console, _part_table(stages))
        if change is None:
            console.print("\nPeaks of the phases, GiB:")
            print_table(console, _phase_table(stages))
        if by_scheme:
            console.print(f"\nThe {tightest.name} stage by the formats of weights and moments, GiB on a rank:")
            print_table(console, _scheme_table(by_scheme, cluster.usable_memory))
        if change is not None:
            _print_change(console, change, cluster.number, gpu_hour_price, room)
        elif not fits:
            console.print(
                f"\nThe recipe does not fit into {room}, and none of the settings that were tried is enough.\n"
                "Use more GPUs, which shard the weights, or larger ones.",
                markup=False,
            )
        if on_host is not None:
            repaired = config.prune is not None and config.prune.repair is not None
            held = "both models, for the repair" if repaired else "one weight at a time"
            console.print(f"\nExports: rank 0 holds {held}, in the memory of its node: {on_host / GIB:.1f} GiB.")
        console.print(
            "\nGiB: memory of one rank, computed by running the stage's code on tensors without storage; the memory\n"
            f"above {room} is for CUDA and its allocator. Share of peak:\n"
            f"an assumption (docs/planning.md) about the accelerator's peak in {config.training.dtype}. Hours: of\n"
            "training steps, and of evaluations, without checkpoints and without the time that pruned units save.",
            style="dim",
        )

    return CommandResult(body, write)


def _print_change(console: Console, change: FittingSettings, number: int, price: float | None, room: str) -> None:
    console.print(f"\nThe recipe does not fit into {room}. With these settings it does:", markup=False)
    for key, value in change.settings.items():
        console.print(f"  --set {key}={value}", markup=False)
    print_table(console, _stage_table(change.stages, number, price))
    print_table(console, _part_table(change.stages))
    console.print("\nPeaks of the phases with these settings, GiB:")
    print_table(console, _phase_table(change.stages))


def _part_table(stages: tuple[StageCost, ...]) -> Table:
    """Tabulate the parts of the peak memory of each stage."""
    return Table(
        ["stage", *PARTS],
        [Row.of(stage.name, *(f"{stage.memory.parts[part] / GIB:.2f}" for part in PARTS)) for stage in stages],
    )


def _phase_table(stages: tuple[StageCost, ...]) -> Table:
    """Tabulate the peaks of all phases, a column for each stage."""
    rows = []
    peaks = [{memory.phase: memory.total for memory in stage.phases} for stage in stages]
    for phase, meaning in PHASES.items():
        if any(phase in by_phase for by_phase in peaks):
            numbers = (f"{by_phase[phase] / GIB:.1f}" if phase in by_phase else "" for by_phase in peaks)
            rows.append(Row.of(phase, *numbers, meaning))
    return Table(["phase", *(stage.name for stage in stages), "meaning"], rows, text_columns=("meaning",))


def _scheme_table(by_scheme: list[tuple[Any, Any, PhaseMemory]], room: float) -> Table:
    """Tabulate the memory of one stage by the formats of weights and moments."""
    columns = ["weights\nin", "moments\nin", "weights", "gradi-\nents", "moments", "rest", "peak", "fits"]
    rows = []
    for weights, moments, memory in by_scheme:
        states = [memory.parts[part] for part in ("weights", "gradients", "moments")]
        numbers = [*states, memory.total - sum(states), memory.total]
        fits = "yes" if memory.total <= room else "no"
        rows.append(Row.of(weights, moments, *(f"{number / GIB:.1f}" for number in numbers), fits))
    return Table(columns, rows, text_columns=("moments\nin", "fits"))


def _stage_table(stages: tuple[StageCost, ...], number: int, price: float | None) -> Table:
    """Tabulate memory, speed, hours and price of each stage."""
    columns = ["stage", "peak\nGiB", "in the", "fits", "share\nof peak", "tokens/s", "hours", "evalu-\nating"]
    rows = [
        Row.of(
            stage.name,
            f"{stage.memory.total / GIB:.1f}",
            stage.memory.phase,
            "yes" if stage.fits else "no",
            f"{stage.utilisation:.0%}",
            f"{stage.tokens_per_second:,.0f}",
            f"{stage.hours:,.1f}",
            f"{stage.evaluation_hours:,.1f}",
            *([] if price is None else [f"{price * number * stage.total_hours:,.0f}"]),
        )
        for stage in stages
    ]
    return Table([*columns, *([] if price is None else ["price"])], rows, text_columns=("in the", "fits"))


def _stage_to_dict(stage: StageCost) -> dict[str, Any]:
    phases = [_memory_to_dict(memory) for memory in stage.phases]
    return {**asdict(stage), "memory": _memory_to_dict(stage.memory), "phases": phases}


def _memory_to_dict(memory: PhaseMemory) -> dict[str, Any]:
    return {"bytes": memory.total, "parts": memory.parts, "phase": memory.phase, "when": memory.when}
