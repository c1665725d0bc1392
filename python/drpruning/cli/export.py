"""`drpruning export`: a smaller model at once, by the importance of its units, without learning masks."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    short_help="Cut a model down at once, without training.",
    epilog="""\b
Examples:
  drpruning export models/llama models/small --corpus corpus/ --target layers=24,hidden=2048,heads=16,intermediate=5504
  drpruning export models/llama models/shallow --corpus corpus/ --target layers=20 --oneshot activation""",
)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--target", "sizes", metavar="NAME=SIZE,...", required=True, help="The shape; what is left out stays.")
@click.option("--corpus", "folder", type=click.Path(path_type=Path), required=True, help="Text to measure with.")
@click.option(
    "--oneshot",
    type=click.Choice(["taylor", "activation"]),
    default="taylor",
    show_default=True,
    help="The measure of importance: the loss of removing a unit, to first order, or its activations.",
)
@click.option("--rows", default=64, show_default=True, type=click.IntRange(1), help="Rows to measure importance on.")
@click.option("--seq-len", default=512, show_default=True, type=click.IntRange(2), help="Tokens in a row.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *, model: str, out: Path, sizes: str, folder: Path, oneshot: str, rows: int, seq_len: int, as_json: bool
) -> None:
    """Keep the most important units of MODEL and write them as the model folder OUT.

    The plain alternative to `drpruning train`: nothing is learned, so it takes a minute and loses more. Importance is
    measured on training rows of CORPUS, the same number from each domain; the table shows the held-out loss of each
    domain, in nats per token, before and after.
    """
    import json
    from typing import cast

    import torch

    from drpruning.corpus import Corpus
    from drpruning.pruning import MaskedModel, Target, parameter_count
    from drpruning.pruning.importance import Measure, importance
    from drpruning.sampler import DomainSampler
    from drpruning.train.evaluate import Evaluator
    from drpruning.train.source import corpus_tokenizer, load

    corpus = Corpus.open(folder)
    target = Target(**_sizes(sizes))
    loaded = load(model)
    masked = MaskedModel(loaded, target).eval()
    evenly = dict.fromkeys(corpus.domains, 1.0)
    sampler = DomainSampler(corpus, evenly, seq_len=seq_len, batch_size=1, seed=17)
    batches = (torch.from_numpy(next(sampler).tokens) for _ in range(rows))
    evaluator = Evaluator.from_corpus(corpus, list(corpus.domains), seq_len=seq_len, tokens=16_384, batch_size=4)
    with masked.unmasked():
        before = evaluator.losses(masked.model)
    masked.start_from(importance(masked, batches, cast("Measure", oneshot)))
    small = masked.export(out, tokenizer=corpus_tokenizer(corpus)).eval()
    after = evaluator.losses(small)
    counts = [parameter_count(loaded.config, shape) for shape in (masked.source, masked.target)]
    if as_json:
        shape = masked.target.sizes()
        report = {
            "target": shape,
            "parameters": counts[1],
            "source_parameters": counts[0],
            "before": before,
            "after": after,
        }
        click.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console

    from drpruning.cli.tables import new_table

    table = new_table(["domain", "before", "after", "lost"])
    for domain, loss in before.items():
        table.add_row(domain, f"{loss:.3f}", f"{after[domain]:.3f}", f"{after[domain] - loss:+.3f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{counts[0]:,} to {counts[1]:,} parameters: {out}")


def _sizes(text: str) -> dict[str, int]:
    from dataclasses import fields

    from drpruning.errors import ConfigError
    from drpruning.pruning import Target

    names = [item.name for item in fields(Target)]
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in names or not size.isdecimal():
            raise ConfigError(
                f"--target has {part!r}; each part must be NAME=SIZE with a name of {', '.join(names)}",
                "For instance --target layers=24,hidden=2048,heads=16,intermediate=5504",
            )
        sizes[name] = int(size)
    return sizes
