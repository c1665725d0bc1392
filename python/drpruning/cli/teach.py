"""`drpruning teach`: compute a teacher's next-token distributions once, for the distillation of later runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import examples, json_option, parse_names, set_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from drpruning.config import RunConfig
    from drpruning.corpus import Corpus

DEFAULTS = {"seq_len": 2048, "temperature": 1.0, "document_mask": False}
"""Values of the options without a recipe."""


@dataclass(frozen=True)
class TeachRequest:
    """The options of `drpruning teach`; None where the option is not given."""

    corpus: Path | None
    model: str | None
    out: Path
    recipe: str | None
    overrides: tuple[str, ...]
    draws: int | None
    top_k: int | None
    temperature: float | None
    seed: int
    seq_len: int | None
    document_mask: bool | None
    domains: str | None
    rows: int | None
    shard: tuple[int, int]
    batch_size: int | None
    block_rows: int | None
    device: str
    dtype: str | None
    resume: bool


def parse_shard(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int]:
    """Parse ``K/N``; without it the rank and the number of processes of torchrun. A click callback.

    Raises:
        ConfigError: The text has another form, or K is not below N.
    """
    import os

    from drpruning.errors import ConfigError

    text = value or f"{os.environ.get('RANK', '0')}/{os.environ.get('WORLD_SIZE', '1')}"
    own, slash, total = text.partition("/")
    if not (slash and own.isdecimal() and total.isdecimal() and int(own) < int(total) <= 2**16):
        raise ConfigError(f"{option.opts[0]} is {text!r}; expected K/N with K from 0 to N - 1", "For example 0/4.")
    return int(own), int(total)


@click.command(
    short_help="Store a teacher's next-token distributions for distillation.",
    epilog=examples("""
  drpruning teach corpus/ --model models/7b --seq-len 4096 --out teachers/7b
  drpruning teach --recipe recipe.yaml --out teachers/7b
  drpruning teach --recipe recipe.yaml --out teachers/7b --shard 0/4 --resume
  torchrun --nproc-per-node 8 -m drpruning teach --recipe recipe.yaml --out teachers/7b
  drpruning train recipe.yaml --set continue.distill.stored=teachers/7b"""),
)
@click.argument("corpus", required=False, type=click.Path(path_type=Path))
@click.option("--model", help="Teacher: a Hugging Face folder or hub name.  [default: the recipe's model.source]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the stored teacher.")
@click.option(
    "--recipe",
    help="Recipe, or RUN/recipe.yaml: its corpus, model and distillation are the defaults of the options, and only "
    "the rows that its stages can read are stored.",
)
@set_option("Change one setting of the recipe, with --recipe. Repeatable.")
@click.option(
    "--draws", type=click.IntRange(1, 255), help="Draws from each distribution.  [default: 50, without --top-k]"
)
@click.option("--top-k", type=click.IntRange(1), help="Store the likeliest tokens instead of random draws.")
@click.option(
    "--temperature", type=click.FloatRange(0, min_open=True), help="Temperature of the softmax.  [default: 1]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draws.")
@click.option("--seq-len", type=click.IntRange(2), help="Tokens in a row.  [default: 2048]")
@click.option(
    "--document-mask/--no-document-mask",
    default=None,
    help="Keep attention within documents, as data.document_mask.  [default: no]",
)
@click.option("--domains", metavar="A,B", help="Store these domains only.")
@click.option("--rows", type=click.IntRange(1), help="Store at most the first ROWS rows of each domain.")
@click.option(
    "--shard",
    metavar="K/N",
    callback=parse_shard,
    help="Compute every Nth block from block K; N processes share the folder.  [default: torchrun's rank]",
)
@click.option("--batch-size", type=click.IntRange(1), help="Rows in a forward pass.  [default: 8192 tokens]")
@click.option("--block-rows", type=click.IntRange(1), help="Rows in a file.  [default: 2^20 tokens]")
@click.option("--device", default="auto", show_default=True, help="Device: cpu, cuda, or auto for a GPU if any.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Type of weights and computation.  [default: the recipe's, else bfloat16 on a GPU that supports it]",
)
@click.option("--resume", is_flag=True, help="Compute only what the folder lacks.")
@json_option()
def teach(as_json: bool, **options: Any) -> None:
    """Run a teacher over rows of CORPUS once and store its next-token distributions.

    `distill.stored: FOLDER` in a recipe then distils without the teacher. Rows are stored by domain and number, so that
    any mixture, strategy, seed and number of processes reads the same folder. A killed command continues with --resume.
    """
    import json

    from rich.console import Console

    errors = Console(stderr=True)
    with errors.status("loading torch and transformers") as status:
        outcome = run(TeachRequest(**options), status.update)
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
        return
    from drpruning.formatting import size_in_words

    click.echo(f"stored  {outcome['rows']:,} rows of {outcome['seq_len']} tokens in {outcome['folder']}")
    if outcome["tokens"]:
        size = size_in_words(outcome["bytes"])
        click.echo(f"new     {outcome['tokens']:,} tokens, {size}, {outcome['bytes_per_token']:.1f} bytes a token")
    click.echo(f"use it  --set continue.distill.stored={outcome['folder']}")


def run(request: TeachRequest, on_progress: Any) -> dict[str, Any]:
    """Store a teacher; return what the command prints.

    Raises:
        ConfigError: An option is wrong, or corpus, model and folder do not fit together.
        CorpusError: A file is damaged.
    """
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from dataclasses import replace

    import torch
    from transformers.utils import logging

    from drpruning.hf.fingerprint import model_fingerprint
    from drpruning.hf.models import read_config, text_config
    from drpruning.train.device import choose_device, default_dtype
    from drpruning.train.distributed.ranks import Ranks
    from drpruning.train.teach import BLOCK_TOKENS, Progress, load_teacher, open_teacher_folder, store_teacher
    from drpruning.train.teacher_files import TeacherIdentity

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config, corpus = open_sources(request)
    source, settings = find_teacher(request, config, corpus)
    rows = rows_to_store(request, config, corpus, settings["seq_len"])
    device = choose_device(request.device, replace(Ranks(), local_rank=int(os.environ.get("LOCAL_RANK", "0"))))
    recipe_dtype = None if config is None else config.training.dtype
    dtype = request.dtype or recipe_dtype or str(default_dtype(device)).removeprefix("torch.")
    vocabulary = text_config(read_config(source)).vocab_size
    check_vocabulary(source, vocabulary, corpus, settings, top_k_name(request, config))
    identity = TeacherIdentity(
        corpus=corpus.fingerprint,
        domains=corpus.domains,
        model=model_fingerprint(source),
        source=source,
        vocabulary=vocabulary,
        dtype=dtype,
        seed=request.seed,
        block_rows=request.block_rows or max(1, BLOCK_TOKENS // settings["seq_len"]),
        **settings,
    )
    open_teacher_folder(request.out, identity, resume=request.resume or request.shard[1] > 1)
    on_progress(f"loading {source}")
    model = load_teacher(identity, device, corpus, None if config is None else config.training)

    def show(progress: Progress) -> None:
        on_progress(f"block {progress.blocks} of {progress.total}: {progress.tokens:,} new tokens")

    done = store_teacher(
        request.out,
        identity,
        model,
        corpus,
        rows,
        shard=request.shard,
        batch_size=request.batch_size,
        on_block=show,
    )
    return {
        "folder": str(request.out),
        "method": identity.description,
        "seq_len": identity.seq_len,
        "rows": sum(map(len, rows.values())),
        "shard": list(request.shard),
        "tokens": done.tokens,
        "bytes": done.bytes,
        "bytes_per_token": done.bytes / max(1, done.tokens),
        "device": str(torch.device(device)),
        "dtype": dtype,
    }


def open_sources(request: TeachRequest) -> tuple[RunConfig | None, Corpus]:
    """Read the recipe, if there is one, and open the corpus.

    Raises:
        ConfigError: There is neither a corpus nor a recipe, or an option does not apply.
        CorpusError: The corpus is damaged.
    """
    from drpruning.errors import ConfigError
    from drpruning.prepare.recipe_corpus import open_corpus, open_folder
    from drpruning.recipes import load_recipe, with_shares

    if request.recipe is None:
        if request.overrides:
            raise ConfigError("--set changes a recipe, and there is none", "Give one with --recipe.")
        if request.corpus is None or request.model is None:
            raise ConfigError(
                "expected CORPUS and --model, or --recipe",
                "For example `drpruning teach corpus/ --model MODEL --out FOLDER`.",
            )
        return None, open_folder(request.corpus)
    config = load_recipe(request.recipe, request.overrides)
    corpus = open_corpus(config) if request.corpus is None else open_folder(request.corpus)
    return with_shares(config, corpus.tokens()), corpus


def find_teacher(request: TeachRequest, config: RunConfig | None, corpus: Corpus) -> tuple[str, dict[str, Any]]:
    """Return the teacher's folder or name, and the settings that determine its distributions.

    Raises:
        ConfigError: Options contradict each other, or the recipe distils in two ways or not at all.
    """
    from drpruning.errors import ConfigError
    from drpruning.train.stored_teacher import distilled_stages, teacher_source
    from drpruning.train.teacher_files import DRAWS

    if request.draws is not None and request.top_k is not None:
        raise ConfigError("--draws and --top-k are both given", "Keep one of them.")
    values: dict[str, Any] = dict(DEFAULTS)
    top_k = request.top_k
    if config is not None:
        distilled = distilled_stages(config)
        if not distilled:
            scratch = config.model.source == "scratch"
            reason = "model.source=scratch, which has no teacher" if scratch else "no section distill"
            raise ConfigError(
                f"the recipe {config.name!r} has {reason}; expected a stage that distils",
                "Set another model.source." if scratch else "Set it, for example --set continue.distill.weight=0.5",
            )
        (first, one), *others = distilled.items()
        for name in ("temperature", "top_k"):
            for stage, other in others:
                own, theirs = (_in_yaml(getattr(each, name)) for each in (one, other))
                if own != theirs:
                    raise ConfigError(
                        f"{first}.distill.{name} is {own}, {stage}.distill.{name} {theirs}; a stored teacher has one",
                        f"Set both alike, for example --set {first}.distill.{name}={theirs}, or store one folder for "
                        f"each stage: --set {first}.distill=null, and --set {stage}.distill=null.",
                    )
        values["temperature"], recipe_top_k = one.temperature, one.top_k
        values |= {"seq_len": config.data.seq_len, "document_mask": config.data.document_mask}
        top_k = recipe_top_k if top_k is None and request.draws is None else top_k
    values |= {name: given for name in values if (given := getattr(request, name)) is not None}
    method = (
        {"method": "sample", "size": request.draws or DRAWS} if top_k is None else {"method": "top_k", "size": top_k}
    )
    source = request.model
    if source is None:
        assert config is not None
        source = teacher_source(config, corpus)
    return source, values | method


def rows_to_store(
    request: TeachRequest, config: RunConfig | None, corpus: Corpus, seq_len: int
) -> Mapping[str, NDArray[np.int64]]:
    """Return the rows to store, by domain.

    Raises:
        ConfigError: A domain is unknown, or there is no row.
    """
    import numpy as np

    from drpruning.errors import ConfigError, did_you_mean
    from drpruning.train.stored_teacher import distilled_stages, rows_of_stage

    names = parse_names(request.domains) or list(corpus.domains)
    if unknown := [name for name in names if name not in corpus.domains]:
        raise ConfigError(
            f"--domains names {unknown[0]!r}; the corpus has {', '.join(corpus.domains)}",
            did_you_mean(unknown[0], corpus.domains),
        )
    rows = {name: np.arange(count) for name, count in corpus.num_rows(seq_len).items() if name in names}
    if config is not None:
        needed = [rows_of_stage(config, stage, corpus) for stage in distilled_stages(config)]
        empty = np.empty(0, np.int64)
        rows = {name: np.unique(np.concatenate([each.get(name, empty) for each in needed])) for name in rows}
    if request.rows is not None:
        rows = {name: numbers[: request.rows] for name, numbers in rows.items()}
    if not any(map(len, rows.values())):
        raise ConfigError(f"the corpus has no row of {seq_len} tokens to store", "Use a smaller --seq-len.")
    return rows


def _in_yaml(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def top_k_name(request: TeachRequest, config: RunConfig | None) -> str:
    """Return the option or the setting that ``top_k`` is from."""
    from drpruning.train.stored_teacher import distilled_stages

    if request.top_k is not None or config is None:
        return "--top-k"
    return f"{next(iter(distilled_stages(config)))}.distill.top_k"


def check_vocabulary(source: str, vocabulary: int, corpus: Corpus, settings: Mapping[str, Any], top_k: str) -> None:
    """Check that the teacher has the corpus's token ids, and more tokens than ``top_k``, an option or a setting.

    Raises:
        ConfigError: It does not.
    """
    from drpruning.config import ModelConfig
    from drpruning.errors import ConfigError
    from drpruning.train.base_model import check_tokenizer

    if corpus.vocab_size is not None and corpus.vocab_size > vocabulary:
        raise ConfigError(
            f"the corpus has {corpus.vocab_size} token ids, the model {source!r} an embedding of {vocabulary}",
            "Prepare the corpus with the model's own tokenizer: `drpruning prepare OUT --tokenizer MODEL ...`",
        )
    check_tokenizer(ModelConfig(source=source), corpus)
    if settings["method"] == "top_k" and settings["size"] >= vocabulary:
        change = "Leave it out to store draws" if top_k == "--top-k" else f"Store draws with --set {top_k}=null"
        raise ConfigError(
            f"{top_k} is {settings['size']}; expected less than the vocabulary of {vocabulary} to store",
            f"{change}, which have the expected gradient of the whole divergence, or use a smaller number.",
        )
