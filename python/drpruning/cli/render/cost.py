"""What ``drpruning plan RECIPE --gpus`` shows: memory of a rank by phase and part, whether it fits, hours, money."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drpruning.cli.render.plan import Shown
from drpruning.config import RunConfig
from drpruning.planning.cost import Change, StageCost, cluster_of, costs, schemes, what_fits
from drpruning.planning.memory import PARTS, PHASES, Memory
from drpruning.planning.model_shape import ModelShape, OtherShape

if TYPE_CHECKING:
    from rich.console import Console

GIB = 2**30


def expenses(config: RunConfig, source: ModelShape | OtherShape, gpus: str, price: float | None) -> Shown:
    """A recipe on GPUs.

    Args:
        config: The recipe.
        source: Shape of its large model.
        gpus: As ``8xH100``.
        price: Of a GPU for an hour, in any currency.

    Raises:
        ConfigError: There is no such card, or a batch does not divide by their number.
    """
    cluster = cluster_of(gpus)
    stages = costs(config, source, cluster)
    tightest = max(stages, key=lambda stage: stage.memory.total)
    fits = all(stage.fits for stage in stages)
    change = None if fits else what_fits(config, source, cluster)
    # Several ranks share what schemes are about; and in float32 the narrow ones cannot be used
    worth_showing = not fits and cluster.number == 1 and config.training.dtype == "bfloat16"
    by_scheme = schemes(config, tightest.name, source, cluster) if worth_showing else []
    body = {
        "recipe": config.name,
        "gpus": cluster.number,
        "card": cluster.card.name,
        "room_bytes": cluster.room,
        "stages": [_as_json(stage) for stage in stages],
        "schemes": [
            {"weights": weights, "moments": moments, **_memory_as_json(memory), "fits": memory.total <= cluster.room}
            for weights, moments, memory in by_scheme
        ],
        "hours": sum(stage.total_hours for stage in stages),
        "price": None if price is None else price * cluster.number * sum(stage.total_hours for stage in stages),
        "fits": fits,
        "change": None
        if change is None
        else {"settings": change.settings, "stages": [_as_json(stage) for stage in change.stages]},
    }

    def write(console: Console) -> None:
        from drpruning.tables.terminal import new_table

        room = f"the {cluster.room / GIB:.0f} GiB of a {cluster.card.name} that are used"
        console.print(f"{config.name} on {cluster.number} x {cluster.card.name}", markup=False)
        console.print(_table(stages, cluster.number, price))
        console.print("\nMemory of a rank at its peak, GiB:")
        console.print(_parts(stages))
        if change is None:
            console.print("\nPeaks of the phases, GiB:")
            console.print(_phases(stages))
        if by_scheme:
            console.print(f"\nThe {tightest.name} stage by what weights and moments are kept in, GiB on a rank:")
            titles = ["weights\nin", "moments\nin", "weights", "gradi-\nents", "moments", "rest", "peak", "fits"]
            table = new_table(titles, text=["moments\nin", "fits"])
            for weights, moments, memory in by_scheme:
                states = [memory.parts[part] for part in ("weights", "gradients", "moments")]
                numbers = [*states, memory.total - sum(states), memory.total]
                enough = "yes" if memory.total <= cluster.room else "no"
                table.add_row(weights, moments, *(f"{number / GIB:.1f}" for number in numbers), enough)
            console.print(table)
        if change is not None:
            _print_change(console, change, cluster.number, price, room)
        elif not fits:
            console.print(
                f"\nIt does not fit into {room}, and no setting that was tried is enough.\n"
                "Take more GPUs, which share the weights, or larger ones.",
                markup=False,
            )
        console.print(
            "\nGiB: memory of one rank, from the code of the stage on tensors without storage; what is above\n"
            f"{room} is for CUDA and its allocator. Share of peak: an assumption\n"
            f"(docs/planning.md) about the card's peak in {config.training.dtype}. Hours: of training steps, and of\n"
            "evaluations, without checkpoints and without the time that closed units save.",
            style="dim",
        )

    return Shown(body, write)


def _print_change(console: Console, change: Change, number: int, price: float | None, room: str) -> None:
    console.print(f"\nIt does not fit into {room}. With these settings it does:", markup=False)
    for key, value in change.settings.items():
        console.print(f"  --set {key}={value}", markup=False)
    console.print(_table(change.stages, number, price))
    console.print(_parts(change.stages))
    console.print("\nPeaks of the phases with them, GiB:")
    console.print(_phases(change.stages))


def _parts(stages: tuple[StageCost, ...]) -> Any:
    """What the peak of each stage consists of."""
    from drpruning.tables.terminal import new_table

    table = new_table(["stage", *PARTS])
    for stage in stages:
        table.add_row(stage.name, *(f"{stage.memory.parts[part] / GIB:.2f}" for part in PARTS))
    return table


def _phases(stages: tuple[StageCost, ...]) -> Any:
    """Peaks of all phases, a column for each stage."""
    from drpruning.tables.terminal import new_table

    table = new_table(["phase", *(stage.name for stage in stages), "what it is"], text=["what it is"])
    peaks = [{memory.phase: memory.total for memory in stage.phases} for stage in stages]
    for phase, meaning in PHASES.items():
        if any(phase in of_stage for of_stage in peaks):
            numbers = (f"{of_stage[phase] / GIB:.1f}" if phase in of_stage else "" for of_stage in peaks)
            table.add_row(phase, *numbers, meaning)
    return table


def _table(stages: tuple[StageCost, ...], number: int, price: float | None) -> Any:
    from drpruning.tables.terminal import new_table

    titles = ["stage", "peak\nGiB", "in the", "fits", "share\nof peak", "tokens/s", "hours", "evalu-\nating"]
    table = new_table([*titles, *([] if price is None else ["price"])], text=["in the", "fits"])
    for stage in stages:
        table.add_row(
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
    return table


def _as_json(stage: StageCost) -> dict[str, Any]:
    phases = [_memory_as_json(memory) for memory in stage.phases]
    return {**asdict(stage), "memory": _memory_as_json(stage.memory), "phases": phases}


def _memory_as_json(memory: Memory) -> dict[str, Any]:
    return {"bytes": memory.total, "parts": memory.parts, "phase": memory.phase, "when": memory.when}
