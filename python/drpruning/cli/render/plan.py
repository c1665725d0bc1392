"""What ``drpruning plan`` shows: a recipe, a model, shapes for a budget, or who loads a shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import sizes_in
from drpruning.config import RunConfig
from drpruning.errors import ConfigError
from drpruning.planning import CARDS, Budget, Candidate, ModelShape, Serving, propose
from drpruning.planning.model_shape import OtherShape
from drpruning.planning.propose import NOMINAL, Price
from drpruning.planning.recipe import Plan, plan
from drpruning.planning.speed import UTILISATION, peak, utilisation
from drpruning.pruning.target import Target, sizes_of
from drpruning.train.flops import flops_per_token

if TYPE_CHECKING:
    from rich.console import Console

PRUNING_TOKENS, RECOVERY_TOKENS = 419_430_400, 50_331_648_000
"""Of the papers: 3,200 steps of 32 rows of 4,096 under masks, then 48,000 of 256 rows."""


@dataclass(frozen=True)
class Shown:
    """Something to print.

    Attributes:
        body: As JSON.
        write: As text.
        wrong: Raised when it is printed, where what is shown is that something cannot work.
    """

    body: Mapping[str, Any]
    write: Callable[[Console], None]
    wrong: ConfigError | None = None

    def print(self, *, as_json: bool) -> None:
        """Prints on stdout; then raises what is wrong, if anything is."""
        if as_json:
            import json

            click.echo(json.dumps(self.body, indent=2))
        else:
            from rich.console import Console

            self.write(Console(highlight=False, soft_wrap=True))
        if self.wrong is not None:
            raise self.wrong


def recipe(config: RunConfig, source: ModelShape | OtherShape) -> Shown:
    """A recipe in numbers."""
    planned: Plan = plan(config, source)

    def write(console: Console) -> None:
        from drpruning.tables.terminal import new_table

        console.print(f"{config.name}: {config.model.source}", markup=False)
        shapes = new_table(["", *planned.source, "parameters"])
        rows = [("source" if planned.target else "model", planned.source, planned.source_parameters)]
        if planned.target is not None and planned.target_parameters is not None:
            rows.append(("target", planned.target, planned.target_parameters))
        for name, sizes, count in rows:
            shapes.add_row(name, *(f"{size:,}" for size in sizes.values()), f"{count:,}")
        console.print(shapes)
        stages = new_table(
            ["stage", "steps", "tokens", "states\nGiB", "logits\nGiB", "PFLOP", "H100\nhours", "evalu-\nating"]
        )
        for stage in planned.stages:
            stages.add_row(
                stage.name,
                f"{stage.steps:,}",
                _short(stage.tokens),
                f"{stage.state_bytes / 2**30:.2f}",
                f"{stage.logit_bytes / 2**30:.2f}",
                f"{stage.flops / 1e15:,.3g}" if stage.flops < 1e18 else f"{stage.flops / 1e15:,.0f}",
                f"{stage.flops / peak(config, CARDS['H100']) / utilisation(config, stage.name) / 3600:,.1f}",
                f"{stage.evaluation_flops / peak(config, CARDS['H100']) / UTILISATION / 3600:,.1f}",
            )
        console.print(stages)
        console.print(
            "states: float32 weights, gradients and AdamW moments; logits: of one micro-batch; activations come on "
            f"top.\nH100 hours: at {_shares(config)} of its {config.training.dtype} peak, of training steps;\n"
            f"evaluating: those of evaluations, at {UTILISATION:.0%}.",
            style="dim",
        )

    return Shown(asdict(planned), write)


def model(name: str, source: ModelShape, target: str | None, serving: Serving) -> Shown:
    """A model, and what a shape of it costs in use."""
    price = Price(source, serving)
    rows = {"source": price(sizes_of(source))}  # type: ignore[arg-type] # has what is read
    if target is not None:
        rows["target"] = price(Target(**sizes_in(target)).resolve(source).sizes())  # type: ignore[arg-type]
    body = {"model": name, "serving": _serving(serving), **{key: _priced(row) for key, row in rows.items()}}

    def write(console: Console) -> None:
        console.print(name, markup=False)
        for key, row in rows.items():
            sizes = ", ".join(f"{size} {number:,}" for size, number in row.target.sizes().items())
            console.print(f"{key}: {sizes}\n  {_costs(row)}", markup=False)
        console.print(_explained(serving), style="dim")
        console.print(
            "Shapes for a budget: --params 1.3B, --kv-cache BYTES, --decode-ms MS. Who loads a shape: --check.",
            style="dim",
        )

    return Shown(body, write)


def proposals(
    name: str,
    config: RunConfig | None,
    source: ModelShape,
    budget: Budget,
    serving: Serving,
    multiple: int | None,
    tensor_parallel: int,
) -> Shown:
    """Shapes for a budget, with what each costs in use and in training."""
    found = propose(source, budget, serving, multiple=multiple, tensor_parallel=tensor_parallel)
    whole = Price(source, serving)(sizes_of(source))  # type: ignore[arg-type] # has what is read
    length = 4096 if config is None else config.data.seq_len
    pruning = PRUNING_TOKENS if config is None else _tokens(config, "prune")
    recovery = RECOVERY_TOKENS if config is None else _tokens(config, "continue")

    def hours(candidate: Candidate) -> float:
        before, after = (flops_per_token(source, shape.target.sizes(), length) for shape in (whole, candidate))
        seconds = pruning * before / _share(config, "prune") + recovery * after / _share(config, "continue")
        return seconds / serving.card.peak / 3600

    shares = {stage: _share(config, stage) for stage in ("prune", "continue")}
    commands = _next(name, config, found[0], tensor_parallel)
    body = {
        "model": name,
        "budget": {key: value for key, value in vars(budget).items() if value is not None},
        "serving": _serving(serving),
        "training": {"pruning_tokens": pruning, "recovery_tokens": recovery, "utilisation": shares},
        "source": _priced(whole),
        "candidates": [{**_priced(candidate), "training_hours": hours(candidate)} for candidate in found],
        "next": commands,
    }

    def write(console: Console) -> None:
        from drpruning.tables.terminal import new_table

        sizes = ["layers", "hidden", "heads", "kv\nheads", "inter-\nmediate"]
        costs = ["params", "weights\nGiB", "cache\nB/token", "ms per\ntoken", f"{serving.card.name}\nhours"]
        table = new_table([*sizes, *costs])
        for row in found:
            table.add_row(
                *(f"{size:,}" for size in row.target.sizes().values()),
                _short(row.parameters),
                f"{2 * row.parameters / 2**30:.2f}",
                f"{row.cache_bytes:,.0f}",
                f"{1e3 * row.decode_seconds:.3g}" if row.decode_seconds >= 1e-5 else "<0.01",
                f"{hours(row):,.{0 if hours(row) >= 10 else 1}f}" if hours(row) >= 0.05 else "<0.1",
            )
        console.print(f"{name}: {_costs(whole)}", markup=False)
        console.print(table)
        nominal = f" A budget of parameters is met within {NOMINAL:.0%}." if budget.parameters else ""
        console.print(
            f"{_explained(serving)}\n{serving.card.name} hours: {_short(pruning)} tokens under masks and "
            f"{_short(recovery)} after, at {_shares(config)} of its bfloat16 peak, on one or shared by several.\n"
            f"First come shapes that cut width evenly, and depth less.{nominal} See docs/planning.md.",
            style="dim",
        )
        console.print("Next:", *(f"\n  {command}" for command in commands), markup=False, sep="")

    return Shown(body, write)


def checks(name: str, config: RunConfig | None, source: ModelShape, target: str | None, tensor_parallel: int) -> Shown:
    """Who loads a shape: the recipe's target, the one given, or the model as it is."""
    from drpruning.planning.check import check

    if config is not None:
        wanted = Target(**config.pruning.target.model_dump())
    else:
        wanted = Target(**sizes_in(target)) if target is not None else Target()
    checked = check(source, wanted, tensor_parallel=tensor_parallel)
    body = asdict(checked)
    nearest = [
        f"{', '.join(f'{key}={size}' for key, size in shape.target.sizes().items())}: {shape.parameters:,} parameters"
        for shape in checked.nearest
    ]
    wrong = None
    if checked.refused:
        first = checked.refused[0]
        why = "; ".join(map(str, first.problems)) or first.note
        wrong = ConfigError(
            f"{' and '.join(verdict.loader for verdict in checked.refused)} would refuse the target: {why}",
            f"Nearest that all load: {nearest[0]}." if nearest else None,
        )

    def write(console: Console) -> None:
        from drpruning.tables.terminal import new_table

        sizes = ", ".join(f"{key} {size:,}" for key, size in checked.sizes.items())
        console.print(f"{name}: {sizes}", markup=False)
        table = new_table(["loader", "outcome", "why"], text=["outcome", "why"])
        for verdict in checked.verdicts:
            why = "; ".join([*map(str, verdict.problems), *filter(None, [verdict.note])])
            table.add_row(verdict.loader, verdict.outcome, why)
        console.print(table)
        if nearest:
            console.print("Nearest shapes that all of them load:", style="dim")
            for shape in nearest:
                console.print(f"  {shape}", markup=False)

    return Shown(body, write, wrong)


def _costs(row: Candidate) -> str:
    """What a shape costs in use, in a line."""
    return (
        f"{row.parameters:,} parameters, {2 * row.parameters / 2**30:.2f} GiB, {row.cache_bytes:,.0f} bytes of cache "
        f"per token, {1e3 * row.decode_seconds:.3g} ms per token"
    )


def _explained(serving: Serving) -> str:
    sequences = "1 sequence" if serving.batch == 1 else f"{serving.batch} sequences"
    return (
        f"weights and cache in bfloat16; ms/token: at the least, by a roofline, for {sequences} with "
        f"{serving.context:,} tokens in the cache of one {serving.card.name}."
    )


def _serving(serving: Serving) -> dict[str, Any]:
    return {"card": serving.card.name, "batch": serving.batch, "context": serving.context}


def _priced(candidate: Candidate) -> dict[str, Any]:
    return {
        **candidate.target.sizes(),
        "parameters": candidate.parameters,
        "weight_bytes": 2 * candidate.parameters,
        "cache_bytes_per_token": candidate.cache_bytes,
        "decode_ms": 1e3 * candidate.decode_seconds,
    }


def _next(name: str, config: RunConfig | None, candidate: Candidate, tensor_parallel: int) -> list[str]:
    """Commands that look closer at a candidate and, where there is a recipe, prune to it."""
    sizes = candidate.target.sizes()
    split = f" --tensor-parallel {tensor_parallel}" if tensor_parallel > 1 else ""
    target = ",".join(f"{key}={size}" for key, size in sizes.items())
    commands = [f"drpruning plan {name} --target {target} --check{split}"]
    if config is not None:
        settings = " ".join(f"--set prune.target.{key}={size}" for key, size in sizes.items())
        commands.append(f"drpruning train {name} {settings}")
    return commands


def _tokens(config: RunConfig, stage: str) -> int:
    settings = config.stage(stage)
    return settings.steps * settings.batch_size * config.data.seq_len


def _share(config: RunConfig | None, stage: str) -> float:
    return UTILISATION if config is None else utilisation(config, stage)


def _shares(config: RunConfig | None) -> str:
    """Shares of the peak, in words."""
    stages = ["prune", "continue"] if config is None else [name for name in config.stages if name != "pretrain"]
    return " and ".join(dict.fromkeys(f"{_share(config, stage):.0%}" for stage in stages))


def _short(number: int) -> str:
    """Tokens or parameters in millions or billions: 0.42 B."""
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"
