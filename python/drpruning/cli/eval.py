"""`drpruning eval`: held-out losses, or scores on tasks, of models side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drpruning.cli.options import examples, json_option

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from drpruning.config import RunConfig
    from drpruning.corpus import Corpus
    from drpruning.evaluation.model_losses import EvaluationSettings, ModelLosses

device_option = click.option(
    "--device", default="auto", show_default=True, help="Device to compute on: cpu, cuda, or auto for a GPU if any."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type of weights and computation.  [default: bfloat16 on a GPU that supports it, else float32]",
)


@click.group(
    short_help="Measure models on held-out text or on tasks.",
    epilog=examples("""
  drpruning eval loss runs/quickstart
  drpruning eval tasks runs/quickstart --task paper"""),
)
def eval_group() -> None:
    """Measure models side by side: losses on held-out text, or scores on tasks. Every command has --json."""


@dataclass(frozen=True)
class LossRequest:
    """The options of `drpruning eval loss`; None where the option is not given."""

    models: tuple[str, ...]
    corpus: Path | None
    other_corpus: bool
    domains: tuple[str, ...]
    seq_len: int | None
    stride: int | None
    packed: bool
    max_tokens: int
    batch_size: int | None
    device: str
    dtype: str | None


@eval_group.command(
    "loss",
    short_help="Measure the loss of models on held-out text.",
    epilog=examples("""
  drpruning eval loss runs/quickstart
  drpruning eval loss runs/a/export runs/b/export --corpus corpus/ --domain web --domain code
  drpruning eval loss EleutherAI/pythia-1.4b models/small --corpus corpus/ --seq-len 2048 --stride 512 --json"""),
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--corpus", type=click.Path(path_type=Path), help="Corpus folder.  [default: the run's corpus]")
@click.option("--other-corpus", is_flag=True, help="Measure a run's models on another corpus than the run's.")
@click.option("--domain", "domains", multiple=True, help="Measure only this domain. Repeatable.")
@click.option(
    "--seq-len",
    type=click.IntRange(1),
    help="Tokens that a model reads at once.  [default: the run's, else the model's positions, at most 1024]",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="Tokens between the windows over a long document. A smaller stride gives each token more context and takes "
    "longer.  [default: seq-len]",
)
@click.option("--packed", is_flag=True, help="Read rows of seq-len tokens across documents, as training does.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=1 << 20,
    show_default=True,
    help="Maximum number of held-out tokens per domain.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), help="Rows in a forward pass.  [default: as many as 256 MiB of logits hold]"
)
@device_option
@dtype_option
@json_option()
def eval_loss(as_json: bool, **options: object) -> None:
    """Measure each MODEL on the test documents of a corpus: nats per token, perplexity, bits per byte.

    A MODEL is a folder or a name on the hub of any causal model of transformers, or a run folder, which means its base,
    pruned and recovered models. Every token is scored once, and all tokens count alike. Several models are shown side
    by side on the same documents, with the differences to the first model and their 95% intervals over documents. A
    model whose tokenizer differs from the corpus's reads the same text with its own tokenizer; then only bits per byte
    compare.
    """
    import json

    from rich.console import Console

    errors = Console(stderr=True)
    with errors.status("loading torch and transformers") as status:
        corpus, settings, results = measure_losses(
            LossRequest(**options),  # type: ignore[arg-type] # click passes exactly these options
            on_progress=lambda model, domain: status.update(f"{model} on {domain}"),
        )
    from drpruning.cli.render import model_losses as render

    measured = results[0].domains if results else {}
    if divided := [name for name in measured if corpus.divides_held_out(name)]:
        errors.print(
            f"{', '.join(divided)}: the corpus has one held-out split, so the evaluations of a run may have read a "
            "part of the documents measured here",
            highlight=False,
            markup=False,
        )
    if as_json:
        body = {
            "corpus": str(corpus.folder),
            "corpus_fingerprint": corpus.fingerprint,
            **{name: value for name, value in asdict(settings).items() if name in ("seq_len", "stride", "packed")},
            **render.computation_to_dict(settings.device, settings.dtype),
            **render.losses_to_dict(results),
        }
        click.echo(json.dumps(body, indent=2))
        return
    console = Console(highlight=False)
    render.print_computation(console, settings.device, settings.dtype)
    render.print_losses(console, results)


def measure_losses(
    request: LossRequest, on_progress: Callable[[str, str], None]
) -> tuple[Corpus, EvaluationSettings, list[ModelLosses]]:
    """Find models and corpus, check the options, and measure.

    Raises:
        ConfigError: A model, a domain or an option is wrong, or models and corpus do not fit together.
        CorpusError: The corpus is not the one of a run, or has no held-out text.
    """
    from drpruning.errors import ConfigError
    from drpruning.evaluation.models import check_corpus, find_models, run_recipe
    from drpruning.hf.files import check_model_exists

    models = find_models(request.models)
    for model in models:
        check_model_exists(model.path)
    recipe = run_recipe(models)
    corpus = _open_corpus(request.corpus, recipe)
    if not request.other_corpus:
        check_corpus(models, corpus)
    domains = list(request.domains) or (recipe.domains if recipe is not None and request.corpus is None else None)
    if unknown := [name for name in domains or () if name not in corpus.domains]:
        raise ConfigError(f"there is no domain {unknown[0]!r}; the corpus has {', '.join(corpus.domains)}")
    if request.stride is not None and request.packed:
        raise ConfigError("--packed rows do not overlap, so --stride has no effect with them", "Leave one out.")
    device, dtype = _set_up_torch(request.device, request.dtype)

    from drpruning.evaluation.model_losses import EvaluationSettings, default_length, evaluate_models

    settings = EvaluationSettings(
        seq_len=request.seq_len or (recipe.data.seq_len if recipe is not None else default_length(models)),
        stride=request.stride,
        packed=request.packed,
        max_tokens=request.max_tokens,
        batch_size=request.batch_size,
        device=device,
        dtype=dtype,
    )
    return corpus, settings, list(evaluate_models(models, corpus, settings, domains=domains, on_progress=on_progress))


@eval_group.command(
    "tasks",
    short_help="Score models on tasks of lm-evaluation-harness.",
    epilog=examples("""
  drpruning eval tasks runs/quickstart --task bench/
  drpruning eval tasks runs/quickstart --task paper    # the paper's 15 tasks, with its shots and metrics
  drpruning eval tasks models/small --task arc_easy --task hellaswag --limit 200"""),
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    required=True,
    help="A task of lm-evaluation-harness, a folder of tasks, or a list of tasks with their shots: paper, sheared, or "
    "a YAML file. Repeatable.",
)
@click.option("--limit", type=click.IntRange(1), help="Maximum number of documents of each task.")
@click.option(
    "--num-fewshot", type=click.IntRange(0), help="Number of examples before a question.  [default: the task's number]"
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Documents in a forward pass.")
@device_option
@dtype_option
@json_option()
def eval_tasks(
    *,
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
    device: str,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Score each MODEL on tasks with lm-evaluation-harness.

    A MODEL is a folder or a name on the hub of any causal model of transformers, or a run folder, which means its base,
    pruned and recovered models. Scores of a run's models are added to the run's records, where its report finds them,
    unless --limit is given.
    """
    import json

    from rich.console import Console

    from drpruning.errors import check_installed

    check_installed("tasks need", "lm-eval", "accelerate")
    from drpruning.evaluation.models import find_models
    from drpruning.hf.files import check_model_exists

    named = find_models(models)
    for model in named:
        check_model_exists(model.path)
    with Console(stderr=True).status("loading torch and transformers"):
        torch_device, torch_dtype = _set_up_torch(device, dtype)

        from drpruning.evaluation.tasks import find_tasks, record_scores
        from drpruning.hf.models import load
        from drpruning.hf.tokenizers import model_tokenizer

        found = find_tasks(tasks)
        scored = []
        for model in named:
            network = load(model.path, torch_dtype).to(torch_device)
            tokenizer = model_tokenizer(model.path)
            scores = found.score(network, tokenizer, limit=limit, batch_size=batch_size, num_fewshot=num_fewshot)
            del network  # before the next model is loaded: two models may not fit into memory
            scored.append((model, scores))
    from drpruning.cli.render import task_scores as render
    from drpruning.cli.render.model_losses import computation_to_dict, print_computation

    computation = computation_to_dict(torch_device, torch_dtype)
    if as_json:
        body = {"limit": limit, **computation, "models": render.scores_to_dict(scored)}
        click.echo(json.dumps(body, indent=2))
    else:
        print_computation(Console(highlight=False), torch_device, torch_dtype)
        render.print_scores(Console(highlight=False), scored)
    if limit is None:  # a part of a task is a quick look, not a result
        for model, scores in scored:
            if model.run is not None and model.role is not None:
                record_scores(model.run, model.role, scores, computation["dtype"])


def _set_up_torch(device: str, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """Import torch and transformers without their messages; return the device and the type to compute with."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    from drpruning.train.device import choose_device, default_dtype

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = choose_device(device)
    return chosen, default_dtype(chosen) if dtype is None else getattr(torch, dtype)


def _open_corpus(folder: Path | None, recipe: RunConfig | None) -> Corpus:
    """Open the corpus of the option, or the one that the run was trained on."""
    from drpruning.corpus import Corpus
    from drpruning.errors import ConfigError
    from drpruning.prepare.recipe_corpus import open_corpus

    if folder is not None:
        return Corpus.open(folder)
    if recipe is None:
        raise ConfigError(
            "--corpus is missing; only a run folder names the corpus of its models", "Add --corpus FOLDER."
        )
    return open_corpus(recipe)
