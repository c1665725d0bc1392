"""`drpruning plan`: what a recipe or a shape makes and costs, and which shape to train."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from drpruning.cli.options import complete_recipe, examples, json_option, parse_target, positive_amount, set_option

if TYPE_CHECKING:
    from drpruning.planning import Budget, Serving

BUDGETS = ("--params", "--max-memory", "--max-kv-bytes", "--max-decode-ms")
SHAPE_OPTIONS = (
    click.option(
        "--params",
        metavar="N",
        callback=positive_amount,
        help="Propose shapes of about N parameters, for example 1.3B.",
    ),
    click.option(
        "--max-memory",
        metavar="GIB",
        callback=positive_amount,
        help="Propose shapes whose weights and key/value cache take at most this many GiB in bfloat16.",
    ),
    click.option(
        "--max-kv-bytes",
        metavar="BYTES",
        callback=positive_amount,
        help="Propose shapes whose key/value cache takes at most this many bytes per token.",
    ),
    click.option(
        "--max-decode-ms",
        metavar="MS",
        callback=positive_amount,
        help="Propose shapes that decode a token in at most this many milliseconds, by a roofline model.",
    ),
    click.option(
        "--accelerator",
        default="H100",
        show_default=True,
        help="Accelerator whose bandwidth and arithmetic the times assume.",
    ),
    click.option(
        "--decode-batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences in use at a time."
    ),
    click.option(
        "--decode-context",
        type=click.IntRange(0),
        default=4096,
        show_default=True,
        help="Tokens of each sequence in the cache.",
    ),
)


def budget_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a budget and of the use of the model; pass ``budget`` (None without one) and ``serving``."""

    @functools.wraps(command)
    def with_budget(
        *,
        params: float | None,
        max_memory: float | None,
        max_kv_bytes: float | None,
        max_decode_ms: float | None,
        accelerator: str,
        decode_batch: int,
        decode_context: int,
        **others: Any,
    ) -> None:
        from drpruning.planning import Budget, Serving, find_accelerator

        serving = Serving(accelerator=find_accelerator(accelerator), batch=decode_batch, context=decode_context)
        limits = {
            "parameters": params,
            "memory_bytes": None if max_memory is None else max_memory * 2**30,
            "cache_bytes": max_kv_bytes,
            "decode_seconds": None if max_decode_ms is None else max_decode_ms / 1e3,
        }
        unlimited = all(limit is None for limit in limits.values())
        command(budget=None if unlimited else Budget(**limits), serving=serving, **others)

    for option in reversed(SHAPE_OPTIONS):
        option(with_budget)
    return with_budget


target_option = click.option(
    "--target",
    metavar="NAME=SIZE,...",
    help="Shape to prune to, for instance layers=24,hidden=2048. Sizes left out stay as in the source.",
)
round_to_option = click.option(
    "--round-to",
    type=click.IntRange(1),
    help="Make hidden and intermediate sizes multiples of this.  [default: 256, less for small models]",
)
tensor_parallel_option = click.option(
    "--tensor-parallel",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of GPUs over which vLLM will split the model.",
)


@click.group(
    short_help="Compute cost, shapes and compatibility before training.",
    epilog=examples("""
  drpruning plan cost llama2-7b-to-2.7b --gpus 8xH100 --gpu-hour-price 2.50
  drpruning plan shape meta-llama/Llama-3.1-8B --params 3B --max-kv-bytes 65536
  drpruning plan search my.yaml --params 1.3B
  drpruning plan check llama2-7b-to-1.3b --tensor-parallel 8
  drpruning plan verify models/mine"""),
)
def plan() -> None:
    """Compute what a recipe or a shape makes and costs; `search` trains briefly. Every command has --json."""


@plan.command(
    "cost",
    short_help="Print a recipe's shape, tokens, memory, hours and price.",
    epilog=examples("""
  drpruning plan cost llama2-7b-to-1.3b
  drpruning plan cost quickstart --set prune.target.layers=3 --json
  drpruning plan cost llama2-7b-to-2.7b --gpus 8xH100 --gpu-hour-price 2.50"""),
)
@click.argument("recipe", shell_complete=complete_recipe)
@set_option()
@target_option
@click.option(
    "--gpus",
    metavar="NxGPU",
    help="Compute memory, hours and price on these GPUs: 8xH100, or 4x8xH100 for four nodes.",
)
@click.option("--gpu-hour-price", type=click.FloatRange(0), help="Price of one GPU for one hour, in any currency.")
@json_option()
def plan_cost(
    recipe: str,
    overrides: tuple[str, ...],
    target: str | None,
    gpus: str | None,
    gpu_hour_price: float | None,
    as_json: bool,
) -> None:
    """Check RECIPE and print its target shape, parameters, tokens, memory and arithmetic.

    With --gpus, print for each stage the memory of a rank by phase and part, whether it fits, hours and price. If it
    does not fit, print the settings with which it does.
    """
    from drpruning.errors import ConfigError
    from drpruning.planning.recipe import find_recipe_or_model, with_target

    config, source = find_recipe_or_model(recipe, overrides)
    if config is None:
        raise ConfigError(f"{recipe!r} is a model; expected a recipe", f"Try `drpruning plan shape {recipe}`.")
    if target is not None:
        config = with_target(config, parse_target(target))
    names = config.mixture_names
    if names:
        from drpruning.prepare.recipe_corpus import with_recorded_shares

        config = with_recorded_shares(config)
    if gpu_hour_price is not None and gpus is None:
        raise ConfigError("--gpu-hour-price needs --gpus", "For example --gpus 8xH100.")
    if gpus is None:
        from drpruning.cli.render.plan import recipe_plan

        shown = recipe_plan(config, source, names)
    else:
        from drpruning.cli.render.cost import cost_on_gpus  # the stages are simulated with torch
        from drpruning.planning.cost import parse_cluster
        from drpruning.progress import long_task

        parse_cluster(gpus)  # raises for an unknown GPU

        with long_task(f"simulating the memory of each stage on {gpus}"):
            shown = cost_on_gpus(config, source, gpus, gpu_hour_price)
    shown.print(as_json=as_json)


@plan.command(
    "shape",
    short_help="Propose target shapes for a budget, or print the cost of one shape in use.",
    epilog=examples("""
  drpruning plan shape meta-llama/Llama-3.1-8B --params 3B --max-kv-bytes 65536
  drpruning plan shape qwen2-7b-to-1.8b --max-decode-ms 1.5 --accelerator L40S
  drpruning plan shape models/mine --target layers=24,hidden=2048"""),
)
@click.argument("source", metavar="RECIPE|MODEL", shell_complete=complete_recipe)
@set_option()
@target_option
@budget_options
@round_to_option
@tensor_parallel_option
@json_option()
def plan_shape(
    *,
    source: str,
    overrides: tuple[str, ...],
    target: str | None,
    budget: Budget | None,
    serving: Serving,
    round_to: int | None,
    tensor_parallel: int,
    as_json: bool,
) -> None:
    """Propose target shapes of a RECIPE or MODEL that keep a budget, with their cost in use and in training.

    Without a budget, print parameters, cache and decoding time of the model and of the target. A MODEL is a folder, a
    config.json, or a name on the hub, of which only the config.json is downloaded.
    """
    from drpruning.cli.render import plan as render_plan
    from drpruning.errors import ConfigError
    from drpruning.planning import ModelShape
    from drpruning.planning.recipe import find_recipe_or_model, with_target

    config, shape = find_recipe_or_model(source, overrides)
    sizes = None if target is None else parse_target(target)
    if config is not None:
        sizes = config.pruning.target.model_dump() if sizes is None else sizes
        config = with_target(config, sizes)
    assert isinstance(shape, ModelShape), "a model to prune has an architecture that masks describe"
    if budget is None:
        shown = render_plan.shape_cost(source, shape, sizes, serving)
    else:
        if target is not None:
            raise ConfigError(
                f"--target names one shape, and {', '.join(BUDGETS)} search for shapes", "Give one of the two."
            )
        shown = render_plan.proposals(source, config, shape, budget, serving, round_to, tensor_parallel)
    shown.print(as_json=as_json)


@plan.command(
    "search",
    short_help="Search the target shape by short training runs, halved successively.",
    epilog=examples("""
  drpruning plan search quickstart --params 500k --steps 25
  drpruning plan search my.yaml --params 1.3B --candidates 8 --by mean --write my-1.3b.yaml
  drpruning plan search my.yaml --max-memory 4 --decode-batch 8 --accelerator L4"""),
)
@click.argument("recipe", shell_complete=complete_recipe)
@set_option()
@budget_options
@click.option(
    "--candidates",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Largest number of shapes for the budget.",
)
@click.option(
    "--target",
    "targets",
    metavar="NAME=SIZE,...",
    multiple=True,
    help="Add a candidate. Sizes left out stay as in the source. Repeatable.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Steps of the first rung; each further one has twice as many.  [default: 2% of the stage continue]",
)
@click.option("--rungs", type=click.IntRange(1, 8), default=3, show_default=True, help="Number of rungs.")
@click.option(
    "--by",
    type=click.Choice(["worst", "mean"]),
    default="worst",
    show_default=True,
    help="Keep the better half by the largest or by the mean excess loss of the domains over the large model.",
)
@click.option(
    "--decode-tokens",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Tokens that each candidate decodes on this device to measure its latency; 0: none.",
)
@round_to_option
@tensor_parallel_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the search.  [default: runs/NAME-shapes]")
@click.option("--write", type=click.Path(path_type=Path), help="Write the recipe with the best shape as its target.")
@json_option()
def plan_search(
    *,
    recipe: str,
    overrides: tuple[str, ...],
    budget: Budget | None,
    serving: Serving,
    candidates: int,
    targets: tuple[str, ...],
    steps: int | None,
    rungs: int,
    by: Literal["worst", "mean"],
    decode_tokens: int,
    round_to: int | None,
    tensor_parallel: int,
    out: Path | None,
    write: Path | None,
    as_json: bool,
) -> None:
    """Train candidate shapes briefly, keep the better half after each rung, and print the best.

    Candidates are the shapes that `drpruning plan shape` proposes for the budget, and those of --target. All are cut by
    one measurement of importance and trained by the stage continue of RECIPE. An interrupted command resumes: rerun it.
    The search reads validation text only.
    """
    import sys

    from drpruning.cli.render import plan as render_plan
    from drpruning.errors import ConfigError
    from drpruning.planning import ModelShape, search_shapes
    from drpruning.planning.recipe import source_shape, with_target
    from drpruning.pruning import Target
    from drpruning.recipes import load_recipe
    from drpruning.train.signals import stop_on_signal

    config = load_recipe(recipe, overrides)
    _ = config.pruning  # raises ConfigError for a recipe that does not prune
    if write is not None and write.exists():
        raise ConfigError(f"{write} exists already", "Give another --write, or remove it.")
    source = source_shape(config)
    assert isinstance(source, ModelShape), "a model to prune has an architecture that masks describe"
    shapes = [Target(**parse_target(text)).resolve(source).sizes() for text in targets]  # type: ignore[arg-type]
    if budget is not None:
        found = search_shapes(
            source, budget, serving, round_to=round_to, tensor_parallel=tensor_parallel, number=candidates
        )
        shapes += [each.target.sizes() for each in found if each.target.sizes() not in shapes]
    if not shapes:
        raise ConfigError(
            f"no candidates; expected --target or one of {', '.join(BUDGETS)}", "For example --params 1.3B."
        )

    from drpruning.planning.shape_trials import Search, Trial, search_by_training
    from drpruning.train.loop import Interrupted

    search = Search(
        config=config,
        shapes=shapes,
        folder=out or Path("runs") / f"{config.name}-shapes",
        steps=steps or max(1, config.continue_.steps // 50),
        rungs=rungs,
        by=by,
        decode_tokens=decode_tokens,
    )

    def show(rung: int, trial: Trial) -> None:
        sizes = ", ".join(f"{name} {size:,}" for name, size in trial.shape.items())
        outcome = trial.failure or f"{by} excess {trial.score(by):.3f} after {trial.steps:,} steps"
        click.echo(f"[rung {rung}/{rungs}] {sizes}: {outcome}", err=True)

    with stop_on_signal("finishing this step and writing a checkpoint (Ctrl-C to stop at once)") as stop:
        stop.include_interrupt()
        try:
            result = search_by_training(search, on_trial=show, stop=stop)
        except Interrupted:
            click.echo("interrupted; everything is saved. Rerun the same command to resume.", err=True)
            sys.exit(stop.exit_code)
    if write is not None and not result.trials[0].failure:
        from drpruning.files import write_text

        write_text(write, with_target(config, result.trials[0].shape).to_yaml())
    render_plan.trials(search, result, write).print(as_json=as_json)


@plan.command(
    "check",
    short_help="Check whether transformers, vLLM and llama.cpp load the target.",
    epilog=examples("""
  drpruning plan check llama2-7b-to-1.3b --tensor-parallel 8
  drpruning plan check models/mine --target layers=24,hidden=2048"""),
)
@click.argument("source", metavar="RECIPE|MODEL", shell_complete=complete_recipe)
@set_option()
@target_option
@tensor_parallel_option
@json_option()
def plan_check(
    source: str, overrides: tuple[str, ...], target: str | None, tensor_parallel: int, as_json: bool
) -> None:
    """Check whether transformers, vLLM and llama.cpp load the target of a RECIPE, a --target, or a MODEL itself.

    If one of them refuses the shape, the nearest shapes that all of them load are printed, and the exit code is 2. A
    MODEL is a folder, a config.json, or a name on the hub, of which only the config.json is downloaded.
    """
    from drpruning.cli.render import plan as render_plan
    from drpruning.planning import ModelShape
    from drpruning.planning.recipe import find_recipe_or_model, with_target

    config, shape = find_recipe_or_model(source, overrides)
    if config is not None:
        _ = config.pruning  # raises ConfigError for a recipe that does not prune
        if target is not None:
            config = with_target(config, parse_target(target))
    assert isinstance(shape, ModelShape), "a model to prune has an architecture that masks describe"
    sizes = None if target is None else parse_target(target)
    render_plan.compatibility(source, config, shape, sizes, tensor_parallel).print(as_json=as_json)


@plan.command(
    "verify",
    short_help="Verify on a tiny model that a model's class is pruned exactly.",
    epilog=examples("""
  drpruning plan verify models/mine
  drpruning plan verify gemma2 --json"""),
)
@click.argument("source", metavar="MODEL|TYPE")
@json_option()
def plan_verify(source: str, as_json: bool) -> None:
    """Build a tiny random model of the class of MODEL and verify what masks and extraction must satisfy.

    The tiny model has the features of MODEL: a folder, a config.json, or a name on the hub, of which only the
    config.json is downloaded. A TYPE is a model type of transformers with the features of its defaults. If a property
    does not hold, the exit code is 2.
    """
    from drpruning.cli.render import architecture as render_architecture

    render_architecture.verification(source).print(as_json=as_json)
