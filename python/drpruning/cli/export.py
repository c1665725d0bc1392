"""`drpruning export`: a smaller model at once, by the importance of its units, without learning masks."""

from __future__ import annotations

import re
from pathlib import Path

import click


def _shard_size(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """Refuses before any work what transformers would refuse when it writes."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?[KMGT]B", text, re.IGNORECASE) is None:
        raise click.BadParameter(f"{text!r} is not a size such as 5GB or 500MB.")
    return text


@click.command(
    epilog="""\b
Examples:
  drpruning export models/llama models/small --corpus corpus/ --target layers=24,hidden=2048,heads=16,intermediate=5504
  drpruning export models/llama models/shallow --corpus corpus/ --target layers=20 --oneshot activation
  drpruning export runs/quickstart/export quickstart.gguf --gguf
  drpruning export runs/1.3b/export models/1.3b --dtype bfloat16 --max-shard-size 2GB""",
)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--target", "sizes", metavar="NAME=SIZE,...", help="The shape; what is left out stays.")
@click.option("--corpus", "folder", type=click.Path(path_type=Path), help="With --target: text to measure with.")
@click.option(
    "--oneshot",
    type=click.Choice(["taylor", "activation"]),
    default="taylor",
    show_default=True,
    help="The measure of importance: the loss of removing a unit, to first order, or its activations.",
)
@click.option("--rows", default=64, show_default=True, type=click.IntRange(1), help="Rows to measure importance on.")
@click.option("--seq-len", default=512, show_default=True, type=click.IntRange(2), help="Tokens in a row.")
@click.option("--gguf", "as_gguf", is_flag=True, help="Write OUT as one file for llama.cpp; nothing is pruned.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of the weights written; a folder keeps the model's own, a GGUF file is float16.",
)
@click.option(
    "--max-shard-size",
    default="5GB",
    show_default=True,
    callback=_shard_size,
    help="Largest file of weights in a folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    model: str,
    out: Path,
    sizes: str | None,
    folder: Path | None,
    oneshot: str,
    rows: int,
    seq_len: int,
    as_gguf: bool,
    dtype: str | None,
    max_shard_size: str,
    as_json: bool,
) -> None:
    """Keep the most important units of MODEL and write them as the model folder OUT; or write MODEL in another form.

    With --target, the plain alternative to `drpruning train`: nothing is learned, so it takes a minute and loses more.
    Importance is measured on training rows of CORPUS, the same number from each domain; the table shows the held-out
    loss of each domain, in nats per token, before and after.

    Without --target nothing is pruned: --gguf writes MODEL as one GGUF file for llama.cpp, --dtype as a folder with
    weights of another type.
    """
    from drpruning.errors import ConfigError

    if as_gguf and (sizes is not None or folder is not None):
        raise ConfigError(
            "--gguf writes a model as it is and takes neither --target nor --corpus",
            "Prune into a folder first, and export that folder with --gguf.",
        )
    if sizes is None and not as_gguf and dtype is None:
        raise ConfigError(
            "there is nothing to do: neither --target, nor --gguf, nor --dtype is given",
            "For instance --target layers=24 --corpus corpus/, or --gguf",
        )
    if sizes is not None and folder is None:
        raise ConfigError("--target needs --corpus, text to measure importance with")
    if sizes is not None and folder is not None:
        _oneshot(model, out, sizes, folder, oneshot, rows, seq_len, dtype, max_shard_size, as_json)
    else:
        _convert(model, out, as_gguf=as_gguf, dtype=dtype, max_shard_size=max_shard_size, as_json=as_json)


def _convert(model: str, out: Path, *, as_gguf: bool, dtype: str | None, max_shard_size: str, as_json: bool) -> None:
    import json
    from typing import cast

    from drpruning.pruning.gguf_file import Precision, write_gguf

    if as_gguf:
        write_gguf(model, out, cast("Precision", dtype or "float16"))
        size = out.stat().st_size
    else:
        from drpruning.pruning.export import rewrite

        rewrite(model, out, dtype=cast("str", dtype), max_shard_size=max_shard_size)
        size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    click.echo(json.dumps({"out": str(out), "bytes": size}) if as_json else f"{out}: {size / 1e6:,.1f} MB")


def _oneshot(
    model: str,
    out: Path,
    sizes: str,
    folder: Path,
    oneshot: str,
    rows: int,
    seq_len: int,
    dtype: str | None,
    max_shard_size: str,
    as_json: bool,
) -> None:
    import json
    from typing import cast

    import torch

    from drpruning.cli.options import sizes_in
    from drpruning.corpus import Corpus
    from drpruning.pruning import MaskedModel, Target, parameter_count
    from drpruning.pruning.importance import Measure, importance
    from drpruning.pruning.loading import load
    from drpruning.sampler import DomainSampler
    from drpruning.train.evaluate import Evaluator
    from drpruning.train.source import corpus_tokenizer

    corpus = Corpus.open(folder)
    target = Target(**sizes_in(sizes))
    loaded = load(model)
    masked = MaskedModel(loaded, target).eval()
    evenly = dict.fromkeys(corpus.domains, 1.0)
    sampler = DomainSampler(corpus, evenly, seq_len=seq_len, batch_size=1, seed=17)
    batches = (torch.from_numpy(next(sampler).tokens) for _ in range(rows))
    evaluator = Evaluator.from_corpus(corpus, list(corpus.domains), seq_len=seq_len, tokens=16_384, batch_size=4)
    with masked.unmasked():
        before = evaluator.losses(masked.model)
    scores = importance(masked, batches, cast("Measure", oneshot))
    masked.start_from(scores)
    stored = None if dtype is None else getattr(torch, dtype)
    tokenizer = corpus_tokenizer(corpus)
    small = masked.export(out, tokenizer, dtype=stored, max_shard_size=max_shard_size, scores=scores).eval()
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

    from drpruning.tables.terminal import new_table

    table = new_table(["domain", "before", "after", "lost"])
    for domain, loss in before.items():
        table.add_row(domain, f"{loss:.3f}", f"{after[domain]:.3f}", f"{after[domain] - loss:+.3f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{counts[0]:,} to {counts[1]:,} parameters: {out}")
