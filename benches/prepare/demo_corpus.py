"""Measure the demo corpus: its splits, and the 13-grams of held-out text that occur in training text.

`python benches/prepare/demo_corpus.py` prints a Markdown table. The corpus is prepared twice, with and without the
held-out documents that overlap training text; its size depends on the installed packages.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from drpruning.corpus import Corpus, Split
from drpruning.corpus.manifest import SPLITS
from drpruning.prepare import Manifest, prepare_demo
from drpruning.prepare.dedup.overlap import ngram_hashes, overlap_shares


def ngrams_in_training(corpus: Corpus, split: Split) -> dict[str, float]:
    """Return the share of a split's 13-grams that occur in the training text of any domain, by domain."""
    training = np.sort(np.concatenate([ngram_hashes(*documents(corpus, name, "train"))[0] for name in corpus.domains]))
    shares = {}
    for name in corpus.domains:
        tokens, lengths = documents(corpus, name, split)
        counts = np.maximum(lengths - 12, 0)
        shares[name] = float(np.average(overlap_shares(tokens, lengths, training), weights=counts))
    return shares


def documents(corpus: Corpus, domain: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a split, and the length of each document."""
    tokens = corpus.read_tokens(domain, 0, corpus.tokens(split)[domain], split)
    ends = np.flatnonzero(tokens == corpus.end_token) + 1
    return tokens, np.diff(ends, prepend=0)


def main() -> None:
    """Prepare both corpora and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        manifest = prepare_demo(Path(folder) / "demo")
        seconds = time.monotonic() - began
        everything = prepare_demo(Path(folder) / "everything", max_overlap=1.0)
        corpus, unfiltered = (Corpus.open(Path(folder) / name) for name in ("demo", "everything"))
        before, after = ngrams_in_training(unfiltered, "test"), ngrams_in_training(corpus, "test")
        print(f"{seconds:.0f} s; Python {sys.version.split()[0]}, {len(manifest.prepared['packages'])} packages\n")
        print("| domain | held out | training | validation | test | 13-grams of the test in training, before | after |")
        print("|---|---|---|---|---|---|---|")
        for name, domain in manifest.domains.items():
            sizes = [describe(corpus, manifest, name, split) for split in SPLITS]
            dropped = everything.domains[name].held_out_documents - domain.held_out_documents
            share = f"{domain.held_out_share:.0%}, {dropped} dropped"
            print(f"| `{name}` | {share} | {' | '.join(sizes)} | {before[name]:.1%} | {after[name]:.1%} |")


def describe(corpus: Corpus, manifest: Manifest, name: str, split: Split) -> str:
    """Return documents, groups and tokens of a split."""
    documents, tokens = manifest.domains[name].documents_of(split), manifest.domains[name].tokens_of(split)
    if split == "train":
        return f"{documents}; {tokens:,}"
    groups = corpus.held_out_groups(name, split)
    assert groups is not None
    return f"{documents}, {len(set(groups.tolist()))}; {tokens:,}"


if __name__ == "__main__":
    main()
