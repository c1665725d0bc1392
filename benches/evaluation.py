"""Speed of `drpruning eval loss` against a bare forward pass: `python benches/evaluation.py MODEL CORPUS`.

Both use the same held-out tokens of each domain. The forward passes take full rows without padding and discard the
logits; the evaluation lays out documents, pads, computes losses and sums them per document. The two alternate on one
thread; the median ratio of CPU time and its quartiles are printed.
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np
import torch

from drpruning.corpus import Corpus
from drpruning.evaluation.document_losses import document_losses
from drpruning.evaluation.held_out_text import HeldOutText, held_out_text
from drpruning.hf.models import load


@torch.no_grad()
def bare(model: torch.nn.Module, text: HeldOutText, seq_len: int, rows: int) -> float:
    """Measure CPU seconds per token of forward passes alone."""
    tokens = np.concatenate(text.documents)
    whole = torch.from_numpy(tokens[: len(tokens) // seq_len * seq_len].reshape(-1, seq_len))
    started = time.process_time()
    for batch in whole.split(rows):
        model(input_ids=batch, use_cache=False)
    return (time.process_time() - started) / whole.numel()


def evaluated(model: torch.nn.Module, text: HeldOutText, seq_len: int, rows: int) -> float:
    """Measure CPU seconds per scored token."""
    started = time.process_time()
    losses = document_losses(model, text, seq_len=seq_len, batch_size=rows)
    return (time.process_time() - started) / float(losses.tokens.sum())


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("folder", metavar="CORPUS")
@click.option("--seq-len", default=128, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--max-tokens", default=16384, show_default=True)
@click.option("--turns", default=3, show_default=True)
def main(name: str, folder: str, seq_len: int, batch_size: int, max_tokens: int, turns: int) -> None:
    """Measure MODEL on the held-out text of CORPUS."""
    torch.set_num_threads(1)
    corpus, model = Corpus.open(folder), load(name).eval()
    ratios = []
    for turn in range(turns + 1):
        for domain in corpus.domains:
            text = held_out_text(corpus, domain, max_tokens=max_tokens)
            plain, ours = bare(model, text, seq_len, batch_size), evaluated(model, text, seq_len, batch_size)
            if turn:  # the first one warms up
                ratios.append(plain / ours)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"evaluation at {middle:.2f} ({low:.2f} to {high:.2f}) of the speed of forward passes, {len(ratios)} pairs")


if __name__ == "__main__":
    main()
