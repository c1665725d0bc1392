"""`drpruning plan`: what a recipe or a shape will make and cost, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from drpruning.cli.recipes import complete_recipe

if TYPE_CHECKING:
    from drpruning.planning import Budget

BUDGETS = ("--params", "--kv-cache", "--decode-ms")


@click.command(
    epilog="""\b
Examples:
  drpruning plan llama2-7b-to-1.3b
  drpruning plan quickstart --set prune.target.layers=3 --json
  drpruning plan llama2-7b-to-2.7b --gpus 8xH100 --price 2.50
  drpruning plan meta-llama/Llama-3.1-8B --params 3B --kv-cache 65536
  drpruning plan qwen2-7b-to-1.8b --decode-ms 1.5 --card L40S
  drpruning plan llama2-7b-to-1.3b --check --tensor-parallel 8
  drpruning plan models/mine --target layers=24,hidden=2048 --check""",
)
@click.argument("what", metavar="RECIPE|MODEL", shell_complete=complete_recipe)
@click.option(
    "--set", "overrides", metavar="A.B=C", multiple=True, help="Change one setting of the recipe; repeatable."
)
@click.option("--target", metavar="NAME=SIZE,...", help="Shape to prune to, for instance layers=24,hidden=2048.")
@click.option("--params", metavar="N", help="Propose shapes of about this many parameters: 1.3B.")
@click.option("--kv-cache", metavar="BYTES", help="Propose shapes with at most so much key/value cache per token.")
@click.option("--decode-ms", metavar="MS", help="Propose shapes that decode a token in this time, by a roofline.")
@click.option(
    "--gpus", metavar="NxCARD", help="Say what the recipe costs on these: 8xH100, or 4x8xH100 for four machines."
)
@click.option("--price", type=click.FloatRange(0), help="Of a GPU for an hour.")
@click.option("--card", default="H100", show_default=True, help="Accelerator to count with.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences decoded together.")
@click.option("--context", type=click.IntRange(0), default=4096, show_default=True, help="Tokens of each in the cache.")
@click.option(
    "--multiple", type=click.IntRange(1), help="Of hidden and intermediate; default 256, less in small models."
)
@click.option("--tensor-parallel", type=click.IntRange(1), default=1, show_default=True, help="GPUs vLLM will use.")
@click.option("--check", "checking", is_flag=True, help="Say whether transformers, vLLM and llama.cpp load the target.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    what: str,
    overrides: tuple[str, ...],
    target: str | None,
    params: str | None,
    kv_cache: str | None,
    decode_ms: str | None,
    gpus: str | None,
    price: float | None,
    card: str,
    batch: int,
    context: int,
    multiple: int | None,
    tensor_parallel: int,
    checking: bool,
    as_json: bool,
) -> None:
    """Check RECIPE and print its target shape, parameters, tokens, memory and arithmetic.

    With a budget, propose target shapes that keep it; with --check, say who would load the target. For both a MODEL
    does as well: a folder, a config.json, or a name on the hub, of which at most the config.json is fetched.
    """
    from drpruning.cli.options import sizes_in
    from drpruning.cli.render import plan as planned
    from drpruning.errors import ConfigError
    from drpruning.planning import Serving, card_of
    from drpruning.planning.model_shape import OtherShape
    from drpruning.planning.recipe import find, with_target

    config, source = find(what, overrides)
    if target is not None and config is not None:
        config = with_target(config, sizes_in(target))
    budget = _budget(params, kv_cache, decode_ms)
    if budget is not None and (checking or target is not None):
        given = "--check" if checking else "--target"
        raise ConfigError(f"{given} is about one shape; {', '.join(BUDGETS)} ask for others", "Give one of the two.")
    if gpus is not None and (config is None or budget is not None or checking):
        raise ConfigError("--gpus is about the training of a recipe", "Give a recipe, without a budget or --check.")
    if price is not None and gpus is None:
        raise ConfigError("--price is of a GPU for an hour, and no --gpus are given", "For example --gpus 8xH100.")
    if config is not None and (budget is not None or checking):
        _ = config.pruning  # raises where nothing is pruned: both are about the target
    serving = Serving(card=card_of(card), batch=batch, context=context)
    if config is not None and gpus is not None:
        from drpruning.cli.render.cost import expenses

        shown = expenses(config, source, gpus, price)
    elif isinstance(source, OtherShape):
        assert config is not None  # a model alone, and one to prune, are of a type that masks describe
        shown = planned.recipe(config, source)
    elif budget is not None:
        shown = planned.proposals(what, config, source, budget, serving, multiple, tensor_parallel)
    elif checking:
        shown = planned.checks(what, config, source, target, tensor_parallel)
    elif config is None:
        shown = planned.model(what, source, target, serving)
    else:
        shown = planned.recipe(config, source)
    shown.print(as_json=as_json)


def _budget(params: str | None, kv_cache: str | None, decode_ms: str | None) -> Budget | None:
    """The budget that was given, if any.

    Raises:
        ConfigError: One is no amount.
    """
    from drpruning.errors import ConfigError
    from drpruning.formatting import amount_of
    from drpruning.planning import Budget

    amounts = []
    for option, text in zip(BUDGETS, (params, kv_cache, decode_ms), strict=True):
        amount = None if text is None else amount_of(text)
        if text is not None and not amount:
            raise ConfigError(f"{option} {text!r} is no amount above 0", f"For example {option} 1.3B, 65536 or 2.5.")
        amounts.append(amount)
    if all(amount is None for amount in amounts):
        return None
    parameters, cache_bytes, milliseconds = amounts
    seconds = None if milliseconds is None else milliseconds / 1e3
    return Budget(parameters=parameters, cache_bytes=cache_bytes, decode_seconds=seconds)
