"""`drpruning eval`: held-out losses, and scores on tasks, of models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch

    from drpruning.config import RunConfig
    from drpruning.corpus import Corpus
    from drpruning.evaluation.models import NamedModel


@click.command(
    epilog="""\b
Examples:
  drpruning eval runs/quickstart
  drpruning eval runs/a/export runs/b/export --corpus corpus/ --domain web --domain code
  drpruning eval EleutherAI/pythia-1.4b models/small --corpus corpus/ --seq-len 2048 --stride 512 --json
  drpruning eval runs/quickstart --tasks bench/
  drpruning eval runs/quickstart --tasks paper    # the paper's 15 tasks, with its shots and metrics
  drpruning eval models/small --tasks arc_easy --tasks hellaswag --limit 200""",
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--corpus", "folder", type=click.Path(path_type=Path), help="Corpus folder.  [default: the run's]")
@click.option("--other-corpus", is_flag=True, help="Measure a run's models on another corpus than the run's.")
@click.option("--domain", "domains", multiple=True, help="Measure this domain only; repeatable.")
@click.option(
    "--seq-len",
    type=click.IntRange(1),
    help="Tokens read at once.  [default: the run's, else the model's positions, at most 1024]",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="Tokens between windows over long documents; a smaller one gives more context.  [default: seq-len]",
)
@click.option("--packed", is_flag=True, help="Rows of seq-len tokens across documents, as training measures.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=1 << 20,
    show_default=True,
    help="Held-out tokens of each domain, at most.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), help="Rows in a forward pass.  [default: what 256 MiB of logits hold]"
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: a GPU where there is one.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of weights and computation.  [default: bfloat16 on a GPU that supports it, else float32]",
)
@click.option(
    "--tasks",
    multiple=True,
    help="Task of lm-evaluation-harness, a folder of tasks, or a list of tasks with their shots: paper, sheared, or a "
    "YAML file; repeatable.",
)
@click.option("--limit", type=click.IntRange(1), help="Documents of each task, at most.")
@click.option("--fewshot", type=click.IntRange(0), help="Examples before a question.  [default: what the task says]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    models: tuple[str, ...],
    folder: Path | None,
    other_corpus: bool,
    domains: tuple[str, ...],
    seq_len: int | None,
    stride: int | None,
    packed: bool,
    max_tokens: int,
    batch_size: int | None,
    device: str,
    dtype: str | None,
    tasks: tuple[str, ...],
    limit: int | None,
    fewshot: int | None,
    as_json: bool,
) -> None:
    """Measure each MODEL on the held-out documents of a corpus: nats per token, perplexity, bits per byte; or on tasks.

    MODEL is a folder or a hub name of any causal model of transformers, or a run folder, which stands for its base,
    pruned and recovered models. Every token is scored once and counts alike. Several models are shown side by side on
    the same documents, with the differences to the first and their 95% intervals over documents. A model that has
    another tokenizer than the corpus reads the same text with its own; then bits per byte compare.

    With --tasks models are scored by lm-evaluation-harness instead; scores of a run's models are added to the run's
    records, where its report finds them.
    """
    import json
    import os

    from rich.console import Console

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    errors = Console(stderr=True)
    with errors.status("loading torch and transformers") as status:
        import torch
        from transformers.utils import logging

        from drpruning.errors import ConfigError
        from drpruning.evaluation.model_losses import default_length, evaluate_models
        from drpruning.evaluation.models import check_corpus, find_models, run_recipe
        from drpruning.train.device import choose_device, default_dtype

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        found, chosen = find_models(models), choose_device(device)
        computed = default_dtype(chosen) if dtype is None else getattr(torch, dtype)
        if tasks:
            if folder is not None or domains or seq_len is not None or stride is not None or packed:
                raise ConfigError(
                    "--corpus, --domain, --seq-len, --stride and --packed are of held-out text, not of tasks",
                    "Leave them out, or give another command for the losses.",
                )
            _score(found, tasks, limit, fewshot, batch_size or 8, chosen, computed, as_json)
            return
        if limit is not None or fewshot is not None:
            raise ConfigError("--limit and --fewshot are of tasks", "Give --tasks as well.")
        recipe = run_recipe(found)
        corpus = _corpus(folder, recipe)
        if not other_corpus:
            check_corpus(found, corpus)
        wanted = list(domains) or (recipe.domains if recipe is not None and folder is None else None)
        if unknown := [name for name in wanted or () if name not in corpus.domains]:
            raise ConfigError(f"there is no domain {unknown[0]!r}; the corpus has {', '.join(corpus.domains)}")
        if stride is not None and packed:
            raise ConfigError("--packed rows do not overlap, so --stride has no effect with them", "Leave one out.")
        length = seq_len or (recipe.data.seq_len if recipe is not None else default_length(found))
        results = list(
            evaluate_models(
                found,
                corpus,
                domains=wanted,
                seq_len=length,
                stride=stride,
                packed=packed,
                max_tokens=max_tokens,
                batch_size=batch_size,
                device=chosen,
                dtype=computed,
                watch=lambda model, domain: status.update(f"{model} on {domain}"),
            )
        )
    from drpruning.cli.render.model_losses import computation, described, print_computation, print_results

    if as_json:
        settings = {
            "corpus": str(corpus.folder),
            "corpus_fingerprint": corpus.fingerprint,
            "seq_len": length,
            "stride": stride,
            "packed": packed,
        }
        click.echo(json.dumps({**settings, **computation(chosen, computed), **described(results)}, indent=2))
        return
    print_computation(Console(highlight=False), chosen, computed)
    print_results(Console(highlight=False), results)


def _score(
    models: list[NamedModel],
    names: tuple[str, ...],
    limit: int | None,
    fewshot: int | None,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    as_json: bool,
) -> None:
    """Scores models on tasks, prints what they scored, and adds it to their runs."""
    import json

    from rich.console import Console

    from drpruning.cli.render.model_losses import computation, print_computation
    from drpruning.cli.render.task_scores import print_scores, scores_described
    from drpruning.evaluation.models import model_tokenizer
    from drpruning.evaluation.tasks import find_tasks, record_scores
    from drpruning.pruning.loading import load

    tasks = find_tasks(names)
    scored = []
    for model in models:
        network = load(model.path, dtype).to(device)
        scores = tasks.score(
            network, model_tokenizer(model.path), limit=limit, batch_size=batch_size, num_fewshot=fewshot
        )
        del network  # before the next one is loaded: two may not fit into memory
        scored.append((model, scores))
    if as_json:
        body = {"limit": limit, **computation(device, dtype), "models": scores_described(scored)}
        click.echo(json.dumps(body, indent=2))
    else:
        print_computation(Console(highlight=False), device, dtype)
        print_scores(Console(highlight=False), scored)
    if limit is None:  # a part of a task is a quick look, not a result
        for model, scores in scored:
            if model.run is not None and model.role is not None:
                record_scores(model.run, model.role, scores, computation(device, dtype)["dtype"])


def _corpus(folder: Path | None, recipe: RunConfig | None) -> Corpus:
    """The corpus named, or the one that the run was trained on."""
    from drpruning.corpus import Corpus
    from drpruning.errors import ConfigError
    from drpruning.train.inputs import open_corpus

    if folder is not None:
        return Corpus.open(folder)
    if recipe is None:
        raise ConfigError("no --corpus: only a run folder says which text its models are for", "Give --corpus FOLDER.")
    return open_corpus(recipe)
