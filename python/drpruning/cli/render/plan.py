"""Output of ``drpruning plan``: a recipe's plan, the cost of a shape, proposals for a budget, compatibility."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drpruning.cli.render.result import CommandResult
from drpruning.config import RunConfig
from drpruning.errors import ConfigError, SolverError
from drpruning.flops import FORWARD, TRAINING, FlopCounts
from drpruning.formatting import NONE, count, flops_in_words, number, shares_in_words, signed
from drpruning.planning import ACCELERATORS, Budget, Candidate, ModelShape, Serving, search_shapes
from drpruning.planning.accelerators import UTILISATION, accelerator_peak, step_seconds, utilisation
from drpruning.planning.model_shape import OtherShape
from drpruning.planning.recipe import RecipePlan, plan_recipe
from drpruning.planning.search import NOMINAL, ShapeCosts, costs_in_words
from drpruning.pruning.model_flops import products_per_token
from drpruning.pruning.target import Target, sizes_of
from drpruning.tables import Row, Table
from drpruning.tables.terminal import choose_columns, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from drpruning.planning.shape_trials import Search, SearchResult

SIZE_HEADINGS = {"kv_heads": "kv\nheads", "intermediate": "inter-\nmediate", "experts": "ex-\nperts"}
"""Headings of the sizes of a shape; others are their names."""
PRUNING_TOKENS, RECOVERY_TOKENS = 419_430_400, 50_331_648_000
"""Defaults of Sheared LLaMA: 3,200 steps of 32 rows of 4,096 tokens with masks, then 48,000 steps of 256 rows."""


def recipe_plan(config: RunConfig, source: ModelShape | OtherShape, names: Mapping[str, str]) -> CommandResult:
    """Show shapes, tokens, memory and arithmetic of a recipe.

    Args:
        config: The recipe.
        source: Shape of its large model.
        names: The names of static mixtures that the recipe had in place of shares, by setting; they are printed with
            their shares.
    """
    planned: RecipePlan = plan_recipe(config, source)
    peak = accelerator_peak(config, ACCELERATORS["H100"])
    ratios = {"data.reference_ratio": config.reference_ratio, "pretrain.mixture": config.pretrain_ratio}
    mixtures = {setting: ratios[setting] for setting in names}

    def write(console: Console) -> None:
        console.print(f"{config.name}: {config.model.source}", markup=False)
        rows = [("source" if planned.target else "model", planned.source, planned.source_parameters)]
        rows += [(f"cycle {n}", cycle.sizes, cycle.parameters) for n, cycle in enumerate(planned.cycles[:-1], 1)]
        if planned.target is not None and planned.target_parameters is not None:
            rows.append(("target", planned.target, planned.target_parameters))
        shapes = [Row.of(name, *(f"{size:,}" for size in sizes.values()), f"{count:,}") for name, sizes, count in rows]
        print_table(console, Table(["", *planned.source, "parameters"], shapes))
        if planned.cycles:
            pruned = ", ".join(f"{cycle.pruned:.0%}" for cycle in planned.cycles)
            console.print(f"cycles of the prune stage: they prune {pruned} of the block parameters left", markup=False)
        columns = ["stage", "steps", "tokens", "states\nGiB", "logits\nGiB", "PFLOP", "H100\nhours", "evalu-\nating"]
        stages = [
            Row.of(
                stage.name,
                f"{stage.steps:,}",
                _short(stage.tokens),
                f"{stage.state_bytes / 2**30:.2f}",
                f"{stage.logit_bytes / 2**30:.2f}",
                _petaflops(stage.flops.charged),
                f"{step_seconds(config, stage.flops, peak) / 3600:,.1f}",
                f"{stage.flops.evaluation / peak / UTILISATION / 3600:,.1f}",
            )
            for stage in planned.stages
        ]
        print_table(console, Table(columns, stages))
        console.print(
            "states: float32 weights, gradients and AdamW moments; logits: of one micro-batch; activations are not "
            f"included.\nPFLOP, H100 hours: of training steps, at {utilisation(config):.0%} of its "
            f"{config.training.dtype} peak, and of\nteacher and importance passes; evaluating: of evaluations; both at "
            f"{UTILISATION:.0%}.\n"
            f"Charged to the method: {flops_in_words(planned.charged_flops)}, without pretrain and evaluations.",
            style="dim",
        )
        for setting, mixture in mixtures.items():
            console.print(f"{setting} {names[setting]}: {shares_in_words(mixture)}", markup=False)

    body = asdict(planned) | {"charged_flops": planned.charged_flops}
    return CommandResult(body | ({"mixtures": mixtures} if mixtures else {}), write)


def shape_cost(name: str, source: ModelShape, sizes: Mapping[str, int] | None, serving: Serving) -> CommandResult:
    """Show what a model, and a target shape of it, cost in use."""
    price = ShapeCosts(source, serving)
    rows = {"source": price(sizes_of(source))}  # type: ignore[arg-type] # has what is read
    if sizes is not None:
        rows["target"] = price(Target(**sizes).resolve(source).sizes())  # type: ignore[arg-type]
    body = {"model": name, "serving": _serving(serving), **{key: _candidate_to_dict(row) for key, row in rows.items()}}

    def write(console: Console) -> None:
        console.print(name, markup=False)
        for key, row in rows.items():
            sizes = ", ".join(f"{size} {number:,}" for size, number in row.target.sizes().items())
            console.print(f"{key}: {sizes}\n  {costs_in_words(row)}", markup=False)
        console.print(_assumptions(serving), style="dim")
        console.print(
            "To propose shapes for a budget: --params N, --max-memory GIB, --max-kv-bytes BYTES, --max-decode-ms MS.\n"
            "To check whether a shape can be loaded: drpruning plan check.",
            style="dim",
        )

    return CommandResult(body, write)


def proposals(
    name: str,
    config: RunConfig | None,
    source: ModelShape,
    budget: Budget,
    serving: Serving,
    round_to: int | None,
    tensor_parallel: int,
) -> CommandResult:
    """Show shapes for a budget, with the cost of each in use and in training."""
    found = search_shapes(source, budget, serving, round_to=round_to, tensor_parallel=tensor_parallel)
    whole = ShapeCosts(source, serving)(sizes_of(source))  # type: ignore[arg-type] # has what is read
    length = 4096 if config is None else config.data.seq_len
    pruning = PRUNING_TOKENS if config is None else _tokens(config, "prune")
    recovery = RECOVERY_TOKENS if config is None else _tokens(config, "continue")

    def hours(candidate: Candidate) -> float:
        before, after = (products_per_token(source, shape.target.sizes(), length) for shape in (whole, candidate))
        distilled = sum(
            tokens
            for stage, tokens in (("prune", pruning), ("continue", recovery))
            if config is not None and getattr(config.stage(stage), "distill", None) is not None
        )
        work = FlopCounts(
            training=TRAINING * (pruning * before + recovery * after), teacher=FORWARD * distilled * before
        )
        return step_seconds(config, work, serving.accelerator.peak) / 3600

    commands = _next(name, config, found[0], tensor_parallel)
    body = {
        "model": name,
        "budget": {key: value for key, value in vars(budget).items() if value is not None},
        "serving": _serving(serving),
        "training": {"pruning_tokens": pruning, "recovery_tokens": recovery, "utilisation": utilisation(config)},
        "source": _candidate_to_dict(whole),
        "candidates": [{**_candidate_to_dict(candidate), "training_hours": hours(candidate)} for candidate in found],
        "next": commands,
    }

    def write(console: Console) -> None:
        sizes = [SIZE_HEADINGS.get(name, name) for name in whole.target.sizes()]
        routed = whole.target.experts is not None
        costs = [
            "params",
            *([] if routed else ["in use\nGiB"]),
            "cache\nB/token",
            "ms per\ntoken",
            f"{serving.accelerator.name}\nhours",
        ]
        rows = [
            Row.of(
                *(f"{size:,}" for size in row.target.sizes().values()),
                _short(row.parameters),
                *([] if routed else [_gib(row.memory_bytes)]),
                f"{row.cache_bytes:,.0f}",
                f"{1e3 * row.decode_seconds:.3g}" if row.decode_seconds >= 1e-5 else "<0.01",
                f"{hours(row):,.{0 if hours(row) >= 10 else 1}f}" if hours(row) >= 0.05 else "<0.1",
            )
            for row in found
        ]
        console.print(f"{name}: {costs_in_words(whole)}", markup=False)
        print_table(console, Table([*sizes, *costs], rows))
        nominal = f" A budget of parameters is kept within {NOMINAL:.0%}." if budget.parameters else ""
        console.print(
            f"{_assumptions(serving)}\n{serving.accelerator.name} hours: {_short(pruning)} tokens with masks and "
            f"{_short(recovery)} after, at {utilisation(config):.0%} of its bfloat16 peak, on one or split over "
            "several.\n"
            f"Shapes that cut width evenly, and depth less, are listed first.{nominal} See docs/planning.md.",
            style="dim",
        )
        console.print("Next:", *(f"\n  {command}" for command in commands), markup=False, sep="")

    return CommandResult(body, write)


def trials(search: Search, result: SearchResult, written: Path | None) -> CommandResult:
    """Show the candidates of a search by training, best first, and the target of the best one."""
    best = result.trials[0]
    body = {
        "recipe": search.config.name,
        "by": search.by,
        "folder": str(search.folder),
        "charged_flops": result.charged_flops,
        "importance_flops": result.importance_flops,
        "candidates": [
            {
                **asdict(trial),
                "mean_loss": trial.mean_loss if trial.losses else None,
                "mean_excess": trial.score("mean") if trial.excess else None,
                "worst_excess": trial.score("worst") if trial.excess else None,
            }
            for trial in result.trials
        ],
        "written": None if written is None else str(written),
    }

    def write(console: Console) -> None:
        sizes = [SIZE_HEADINGS.get(name, name) for name in best.shape]
        columns = [
            *sizes,
            "params",
            "steps",
            "loss",
            "mean\nexcess",
            "worst\nexcess",
            "ms per\ntoken",
            "charged\nFLOPs",
        ]
        rows = [
            Row.of(
                *(f"{size:,}" for size in trial.shape.values()),
                count(trial.parameters),
                f"{trial.steps:,}",
                number(trial.mean_loss),
                signed(trial.score("mean")),
                signed(trial.score("worst")),
                NONE if trial.decode_seconds is None else f"{1e3 * trial.decode_seconds:.3g}",
                flops_in_words(trial.charged_flops),
            )
            for trial in result.trials
        ]
        table = Table(columns, rows)
        last = {"loss", "charged\nFLOPs"}  # left out first where the terminal is narrow
        fitting = choose_columns(table, console.width, [at for at, name in enumerate(columns) if name not in last])
        print_table(console, fitting)
        if missing := [name.replace("\n", " ") for name in columns if name not in fitting.columns]:
            console.print(f"Not shown: {', '.join(missing)}. --json has all columns.", style="dim", markup=False)
        measured = " ms per token: measured on this device, one sequence." if search.decode_tokens else ""
        console.print(
            f"Losses on validation rows, nats per token; candidates with fewer steps were dropped before.{measured}\n"
            f"Charged: {flops_in_words(result.charged_flops)}, of which {flops_in_words(result.importance_flops)} for "
            "the importance that all candidates are cut by.",
            style="dim",
        )
        if written is not None:
            console.print(f"recipe  {written}", markup=False)
            return
        console.print("prune:\n  target:", *(f"\n    {key}: {size}" for key, size in best.shape.items()), sep="")

    error = None
    if best.failure:
        error = SolverError(f"the training of all candidates failed: {best.failure}", "Lower continue.learning_rate.")
    return CommandResult(body, write, error)


def compatibility(
    name: str, config: RunConfig | None, source: ModelShape, sizes: Mapping[str, int] | None, tensor_parallel: int
) -> CommandResult:
    """Show which loaders accept a shape: the recipe's target, ``sizes``, or the model itself."""
    from drpruning.planning.compatibility import check_target

    target = sizes if config is None else config.pruning.target.model_dump()
    checked = check_target(source, Target(**(target or {})), tensor_parallel=tensor_parallel)
    body = asdict(checked)
    nearest = [
        f"{', '.join(f'{key}={size}' for key, size in shape.target.sizes().items())}: {shape.parameters:,} parameters"
        for shape in checked.nearest
    ]
    error = None
    if checked.refused:
        first = checked.refused[0]
        why = "; ".join(map(str, first.problems)) or first.note
        error = ConfigError(
            f"{' and '.join(verdict.loader for verdict in checked.refused)} would refuse the target: {why}",
            f"Nearest shape that all loaders accept: {nearest[0]}." if nearest else None,
        )

    def write(console: Console) -> None:
        sizes = ", ".join(f"{key} {size:,}" for key, size in checked.sizes.items())
        console.print(f"{name}: {sizes}", markup=False)
        rows = [
            Row.of(
                verdict.loader,
                verdict.outcome,
                "; ".join([*map(str, verdict.problems), *filter(None, [verdict.note])]),
            )
            for verdict in checked.loaders
        ]
        print_table(console, Table(["loader", "outcome", "reason"], rows, text_columns=("outcome", "reason")))
        if nearest:
            console.print("Nearest shapes that all loaders accept:", style="dim")
            for shape in nearest:
                console.print(f"  {shape}", markup=False)

    return CommandResult(body, write, error)


def _gib(size: float) -> str:
    """Return bytes in GiB, for a column: two decimals, or two digits of a small model."""
    gib = size / 2**30
    return f"{gib:.2f}" if gib >= 0.1 else f"{gib:.2g}"


def _assumptions(serving: Serving) -> str:
    sequences = "1 sequence" if serving.batch == 1 else f"{serving.batch} sequences"
    return (
        f"In use: weights and cache in bfloat16; ms per token: lower bound of a roofline model. Both for {sequences}\n"
        f"with {serving.context:,} tokens in the cache of one {serving.accelerator.name}."
    )


def _serving(serving: Serving) -> dict[str, Any]:
    return {"accelerator": serving.accelerator.name, "batch": serving.batch, "context": serving.context}


def _candidate_to_dict(candidate: Candidate) -> dict[str, Any]:
    return {
        **candidate.target.sizes(),
        "parameters": candidate.parameters,
        **({} if candidate.target.experts is None else {"active_parameters": candidate.active_parameters}),
        "weight_bytes": 2 * candidate.parameters,
        "memory_bytes": candidate.memory_bytes,
        "cache_bytes_per_token": candidate.cache_bytes,
        "decode_ms": 1e3 * candidate.decode_seconds,
    }


def _next(name: str, config: RunConfig | None, candidate: Candidate, tensor_parallel: int) -> list[str]:
    """Return the commands that check a candidate and, for a recipe, prune to it."""
    sizes = candidate.target.sizes()
    split = f" --tensor-parallel {tensor_parallel}" if tensor_parallel > 1 else ""
    target = ",".join(f"{key}={size}" for key, size in sizes.items())
    commands = [f"drpruning plan check {name} --target {target}{split}"]
    if config is not None:
        settings = " ".join(f"--set prune.target.{key}={size}" for key, size in sizes.items())
        commands.append(f"drpruning train {name} {settings}")
    return commands


def _tokens(config: RunConfig, stage: str) -> int:
    settings = config.stage(stage)
    return settings.steps * settings.batch_size * config.data.seq_len


def _petaflops(flops: float) -> str:
    return f"{flops / 1e15:,.3g}" if flops < 1e18 else f"{flops / 1e15:,.0f}"


def _short(number: int) -> str:
    """Format tokens or parameters in millions or billions: 0.42 B."""
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"
