"""`drpruning export`: prune a model in one step by importance, write it in another format, or publish it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drpruning.cli.options import examples, json_option, parse_target

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from drpruning.cli.render.result import CommandResult
    from drpruning.pruning.domain_importance import Combination
    from drpruning.pruning.importance import Measure


def parse_shard_size(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """Check a size such as 5GB before any work; transformers would refuse it only when it writes. A click callback."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?[KMGT]B", text, re.IGNORECASE) is None:
        raise click.BadParameter(f"{text!r} is not a size such as 5GB or 500MB.")
    return text


dtypes = click.Choice(["float32", "float16", "bfloat16"])
shard_size_option = click.option(
    "--max-shard-size",
    default="5GB",
    show_default=True,
    callback=parse_shard_size,
    help="Largest size of one weight file in OUT.",
)


@click.group(
    short_help="Prune a model in one step, convert or publish it.",
    epilog=examples("""
  drpruning export prune models/llama models/small --corpus corpus/ --target layers=24,hidden=2048
  drpruning export gguf runs/quickstart/export quickstart.gguf
  drpruning export hf runs/1.3b/export models/1.3b --dtype bfloat16
  drpruning export card runs/1.3b --push-to-hub me/small-model"""),
)
def export() -> None:
    """Prune a model in one step, write it in another format, or publish it. Every command has --json."""


@dataclass(frozen=True)
class PruneRequest:
    """The options of `drpruning export prune`.

    Attributes:
        model: Folder, or name on the hub.
        out: The model folder to write.
        target: Sizes by name.
        corpus: The corpus folder.
        importance: How the importance of a unit is measured.
        depth_importance: How that of a block is measured.
        combine: How the importance in each domain is combined; None measures on the rows of all domains.
        repair: Ridge of the repair; None for none.
        rows: Rows to measure importance on, and to repair on.
        seq_len: Tokens in a row.
        eval_tokens: Maximum number of test tokens per domain for the losses before and after; 0 computes no losses.
        dtype: Type of the exported weights; None keeps the model's.
        max_shard_size: Largest weight file, such as ``5GB``.
    """

    model: str
    out: Path
    target: dict[str, int]
    corpus: Path
    importance: Measure
    depth_importance: Measure
    combine: Combination | None
    repair: float | None
    rows: int
    seq_len: int
    eval_tokens: int
    dtype: str | None
    max_shard_size: str


@export.command(
    "prune",
    short_help="Keep the most important units of a model, without training.",
    epilog=examples("""
  drpruning export prune models/llama models/small --corpus corpus/ \\
      --target layers=24,hidden=2048,heads=16,intermediate=5504
  drpruning export prune models/llama models/shallow --corpus corpus/ --target layers=20 --importance activation"""),
)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME=SIZE,...",
    required=True,
    help="Shape to prune to. Sizes left out stay as in MODEL.",
)
@click.option(
    "--corpus", type=click.Path(path_type=Path), required=True, help="Corpus folder to measure importance on."
)
@click.option(
    "--importance",
    type=click.Choice(["taylor", "activation"]),
    default="taylor",
    show_default=True,
    help="Measure of a unit's importance: the first-order change in loss when the unit is removed, or the size of its "
    "activations.",
)
@click.option(
    "--depth-importance",
    type=click.Choice(["taylor", "activation"]),
    help="Measure of a block's importance; activation is its block influence, 1 - cos(input, output).  [default: as "
    "--importance]",
)
@click.option(
    "--combine",
    type=click.Choice(["even", "worst_case"]),
    help="Measure importance in each domain, and combine the scores evenly, or for the smallest worst case of the cut "
    "in a ball around even shares.  [default: measure on rows of all domains together]",
)
@click.option(
    "--repair",
    type=click.FloatRange(0, min_open=True),
    metavar="RIDGE",
    help="Fold what is removed into the weights that stay, by a ridge regression on the rows; 0.01 is usual.  "
    "[default: no repair]",
)
@click.option(
    "--rows",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Number of rows to measure importance on, and to repair on.",
)
@click.option("--seq-len", default=512, show_default=True, type=click.IntRange(2), help="Tokens in a row.")
@click.option(
    "--eval-tokens",
    default=16_384,
    show_default=True,
    type=click.IntRange(0),
    help="Maximum number of test tokens per domain for the losses before and after; 0: no losses.",
)
@click.option("--dtype", type=dtypes, help="Type of the written weights.  [default: the model's]")
@shard_size_option
@json_option()
def export_prune(
    *,
    model: str,
    out: Path,
    target: str,
    corpus: Path,
    importance: Measure,
    depth_importance: Measure | None,
    combine: Combination | None,
    repair: float | None,
    rows: int,
    seq_len: int,
    eval_tokens: int,
    dtype: str | None,
    max_shard_size: str,
    as_json: bool,
) -> None:
    """Keep the most important units of MODEL and write the pruned model to the folder OUT.

    This is the plain alternative to `drpruning train`: nothing is trained, so it takes a minute and loses more.
    Importance is measured on training rows of the corpus, the same number from each domain. The table shows the
    held-out loss of each domain, in nats per token, before and after. --eval-tokens 0 omits these losses, which take
    longer than the rest on a CPU.
    """
    from drpruning.errors import ConfigError

    if 0 < eval_tokens < seq_len:
        raise ConfigError(
            f"--eval-tokens is {eval_tokens}; expected at least one row, {seq_len} tokens",
            "Give more tokens, a lower --seq-len, or --eval-tokens 0 for no losses.",
        )
    request = PruneRequest(
        model=model,
        out=out,
        target=parse_target(target),
        corpus=corpus,
        importance=importance,
        depth_importance=depth_importance or importance,
        combine=combine,
        repair=repair,
        rows=rows,
        seq_len=seq_len,
        eval_tokens=eval_tokens,
        dtype=dtype,
        max_shard_size=max_shard_size,
    )
    _check_paths(model, out)
    _hide_progress_bars()
    prune_by_importance(request).print(as_json=as_json)


@export.command(
    "gguf",
    short_help="Write a model as one file for llama.cpp.",
    epilog=examples("""
  drpruning export gguf runs/quickstart/export quickstart.gguf"""),
)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dtype", type=dtypes, default="float16", show_default=True, help="Type of the written matrices.")
@json_option()
def export_gguf(model: str, out: Path, dtype: str, as_json: bool) -> None:
    """Write MODEL as one GGUF file OUT for llama.cpp."""
    from typing import cast

    from drpruning.errors import check_installed

    check_installed("GGUF files need", "gguf")
    _check_paths(model, out)
    _hide_progress_bars()
    from drpruning.export.gguf import Precision, write_gguf

    write_gguf(model, out, cast("Precision", dtype))
    _print_size(out, out.stat().st_size, as_json)


@export.command(
    "hf",
    short_help="Write a model folder with another dtype or shard size.",
    epilog=examples("""
  drpruning export hf runs/1.3b/export models/1.3b --dtype bfloat16 --max-shard-size 2GB"""),
)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dtype", type=dtypes, required=True, help="Type of the written weights.")
@shard_size_option
@json_option()
def export_hf(model: str, out: Path, dtype: str, max_shard_size: str, as_json: bool) -> None:
    """Write MODEL as the Hugging Face model folder OUT, with weights of another type."""
    _check_paths(model, out)
    _hide_progress_bars()
    from drpruning.pruning.extract import rewrite

    rewrite(model, out, dtype=dtype, max_shard_size=max_shard_size)
    _print_size(out, sum(path.stat().st_size for path in out.glob("*.safetensors")), as_json)


@export.command(
    "card",
    short_help="Write the model card of a run, and publish its model on request.",
    epilog=examples("""
  drpruning export card runs/1.3b                                 # writes runs/1.3b/export/README.md
  drpruning export card runs/1.3b --license llama2 --force
  drpruning export card runs/1.3b --push-to-hub me/small-model --private"""),
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--base-model",
    metavar="OWNER/NAME",
    help="Name of the base model on the hub.  [default: model.source of the recipe, if it is such a name]",
)
@click.option(
    "--license",
    "licence",
    metavar="ID",
    help="Licence of the finished model, by its identifier on the hub.  [default: that of the base model's card, in "
    "its folder or in the hub's cache]",
)
@click.option("--force", is_flag=True, help="Replace a card that exists; without it the card is kept.")
@click.option(
    "--push-to-hub",
    "repository",
    metavar="OWNER/NAME",
    help="Publish model, masks, recipe and card in this repository of the Hugging Face hub, which is created if there "
    "is none. Nothing is uploaded without this option.",
)
@click.option("--private", is_flag=True, help="With --push-to-hub: create the repository as a private one.")
@json_option()
def export_card(
    *,
    run: Path,
    base_model: str | None,
    licence: str | None,
    force: bool,
    repository: str | None,
    private: bool,
    as_json: bool,
) -> None:
    """Write the model card of the finished model of RUN: README.md in its folder export.

    The card has base model, shape, tokens, FLOPs, the mixture over time, losses by domain with intervals, files,
    licence and citation, from recipe and records of the run. It is Markdown to edit before publishing.
    """
    import json

    from drpruning.errors import ConfigError
    from drpruning.export.hub import check_repository, publish
    from drpruning.recipes import parse_recipe
    from drpruning.report.model_card import Origin, files_to_publish, licence_in, write_card
    from drpruning.run_folder import RunFolder

    if private and repository is None:
        raise ConfigError("--private needs --push-to-hub", "For example --push-to-hub me/small-model --private")
    if repository is not None:
        check_repository(repository)
    folder = RunFolder(run)
    origin = Origin.find(parse_recipe(folder.read_recipe()), base_model, licence)
    path, written = write_card(folder, origin, repository=repository, force=force)
    if licence_in(path) is None:
        message = f"{path} names no licence, and that of the base model is not known here"
        advice = "Give it with --force --license, for example --force --license apache-2.0."
        if repository is not None:
            raise ConfigError(message, advice)
        click.echo(f"warning: {message}\n{advice}", err=True)
    published = None
    if repository is not None:
        published = publish(files_to_publish(folder), repository, private=private)
    if as_json:
        click.echo(json.dumps({"card": str(path), "written": written, "commit": published}))
        return
    click.echo(f"{path}{'' if written else ' kept; --force writes it again'}")
    if published is not None:
        click.echo(published)


def prune_by_importance(request: PruneRequest) -> CommandResult:
    """Prune, export and measure a model.

    Raises:
        ConfigError: The model cannot be loaded or pruned to the target, or ``out`` exists.
        CorpusError: The corpus cannot be read.
    """
    import math

    import torch

    from drpruning.cli.render.result import CommandResult
    from drpruning.corpus import Corpus
    from drpruning.export.repair import check_calibration, repair
    from drpruning.hf.models import load
    from drpruning.hf.tokenizers import corpus_tokenizer
    from drpruning.pruning import MaskedModel, Target, parameter_count
    from drpruning.pruning.domain_importance import combine
    from drpruning.pruning.importance import Measures, importance
    from drpruning.sampler import DomainSampler
    from drpruning.tables.cells import Row, Table
    from drpruning.tables.terminal import print_table
    from drpruning.train.validation import Validator

    corpus = Corpus.open(request.corpus)
    target = Target(**request.target)
    loaded = load(request.model)
    if request.repair is not None:
        check_calibration(request.rows * request.seq_len, loaded.config, target)
    masked = MaskedModel(loaded, target).eval()
    uniform = dict.fromkeys(corpus.domains, 1.0)

    def rows(weights: dict[str, float], count: int) -> list[torch.Tensor]:
        sampler = DomainSampler(corpus, weights, seq_len=request.seq_len, batch_size=1, seed=17)
        return [torch.from_numpy(next(sampler).tokens) for _ in range(count)]

    measures = Measures(request.depth_importance, request.importance)
    batches = rows(uniform, request.rows)
    evaluated = list(corpus.domains) if request.eval_tokens else []
    evaluator = Validator.from_corpus(
        corpus, evaluated, seq_len=request.seq_len, tokens=request.eval_tokens, batch_size=4, split="test"
    )
    with masked.unmasked():
        before = evaluator.losses(masked.model)
    if request.combine is None:
        scores = importance(masked, batches, measures)
    else:
        each = math.ceil(request.rows / len(corpus.domains))
        by_domain = {
            domain: importance(masked, rows({**dict.fromkeys(corpus.domains, 0.0), domain: 1.0}, each), measures)
            for domain in corpus.domains
        }
        scores = combine(by_domain, uniform, masked.num_removed(), request.combine).scores

    def repaired(masked: MaskedModel, pruned: PreTrainedModel) -> None:
        if request.repair is not None:
            with masked.unmasked():
                repair(masked.model, pruned, masked.kept_units(), batches, ridge=request.repair)

    masked.init_from_importance(scores)
    pruned = masked.export(
        request.out,
        corpus_tokenizer(corpus),
        dtype=None if request.dtype is None else getattr(torch, request.dtype),
        max_shard_size=request.max_shard_size,
        scores=scores,
        adjust=repaired,
    ).eval()
    after = evaluator.losses(pruned)
    source_parameters, parameters = (parameter_count(loaded.config, shape) for shape in (masked.source, masked.target))
    body = {
        "target": masked.target.sizes(),
        "parameters": parameters,
        "source_parameters": source_parameters,
        "before": before,
        "after": after,
    }

    def write(console: Console) -> None:
        table = Table(
            columns=("domain", "before", "after", "difference"),
            rows=[
                Row.of(domain, f"{loss:.3f}", f"{after[domain]:.3f}", f"{after[domain] - loss:+.3f}")
                for domain, loss in before.items()
            ],
        )
        if before:
            print_table(console, table)
        console.print(f"{source_parameters:,} to {parameters:,} parameters: {request.out}")

    return CommandResult(body, write)


def _check_paths(model: str, out: Path) -> None:
    """Raise ConfigError if ``out`` exists and is no empty folder, or there is no ``model``; before torch is loaded."""
    from drpruning.errors import ConfigError
    from drpruning.hf.files import check_model_exists

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"cannot export: {out} exists already", "Choose another path, or remove it.")
    check_model_exists(model)


def _hide_progress_bars() -> None:
    """Hide the bars of transformers, which would end up in logs."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _print_size(out: Path, num_bytes: int, as_json: bool) -> None:
    import json

    click.echo(json.dumps({"out": str(out), "bytes": num_bytes}) if as_json else f"{out}: {num_bytes / 1e6:,.1f} MB")
