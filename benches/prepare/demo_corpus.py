"""Measure the demo corpus: its splits, and the 13-grams of held-out text that occur in training text.

`python benches/prepare/demo_corpus.py` prints a Markdown table; sizes depend on the installed packages. The overlap is
measured for a tenth of the documents, drawn one by one; for the test split with all its documents; and for the test
split of the corpus, without near duplicates of training text.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from drpruning.corpus import Corpus, Split
from drpruning.corpus.manifest import SPLITS
from drpruning.prepare import Manifest, prepare_demo
from drpruning.prepare.dedup.overlap import NGRAM, ngram_hashes, overlap_shares

Documents = dict[str, tuple[np.ndarray, np.ndarray]]
"""Tokens, and the length of each document, by domain."""


def overlap(held_out: Documents, training: Documents) -> dict[str, float]:
    """Return the share of the 13-grams of held-out text that occur in the training text of any domain, by domain."""
    hashes = np.sort(np.concatenate([ngram_hashes(*text)[0] for text in training.values()]))
    return {
        name: float(np.average(overlap_shares(tokens, lengths, hashes), weights=np.maximum(lengths - NGRAM + 1, 0)))
        for name, (tokens, lengths) in held_out.items()
    }


def draw_documents(corpus: Corpus) -> tuple[Documents, Documents]:
    """Draw a tenth of all documents, one by one; return them and the others."""
    drawn, others = {}, {}
    for name in corpus.domains:
        parts = [documents(corpus, name, split) for split in SPLITS]
        tokens, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
        chosen = np.random.default_rng(17).random(len(lengths)) < 0.1
        for kept, is_kept in ((drawn, chosen), (others, ~chosen)):
            kept[name] = tokens[np.repeat(is_kept, lengths)], lengths[is_kept]
    return drawn, others


def documents(corpus: Corpus, domain: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a split, and the length of each document."""
    tokens = corpus.read_tokens(domain, 0, corpus.tokens(split)[domain], split)
    ends = np.flatnonzero(tokens == corpus.end_token) + 1
    return tokens, np.diff(ends, prepend=0)


def main() -> None:
    """Prepare both corpora and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        manifest = prepare_demo(Path(folder) / "demo")
        seconds = time.process_time() - began
        prepare_demo(Path(folder) / "everything", max_overlap=1.0)
        corpus, unfiltered = (Corpus.open(Path(folder) / name) for name in ("demo", "everything"))
        columns = [overlap(*draw_documents(unfiltered))]
        for opened in (unfiltered, corpus):
            test = {name: documents(opened, name, "test") for name in opened.domains}
            train = {name: documents(opened, name, "train") for name in opened.domains}
            columns.append(overlap(test, train))
        print(f"{seconds:.1f} s of CPU time; {len(manifest.prepared['packages'])} packages\n")
        print(
            "| domain | held out | dropped | training | validation | test | by document | by file | without dropped |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name, domain in manifest.domains.items():
            held_out = f"{domain.held_out_share:.0%} | {domain.left_out.get('overlap', 0)}"
            sizes = " | ".join(describe(corpus, manifest, name, split) for split in SPLITS)
            print(f"| `{name}` | {held_out} | {sizes} | {' | '.join(f'{column[name]:.1%}' for column in columns)} |")


def describe(corpus: Corpus, manifest: Manifest, name: str, split: Split) -> str:
    """Return documents, groups and tokens of a split."""
    documents, tokens = manifest.domains[name].documents_of(split), manifest.domains[name].tokens_of(split)
    if split == "train":
        return f"{documents}; {tokens:,}"
    groups = corpus.held_out_groups(name, split)
    assert groups is not None
    return f"{documents} of {len(set(groups.tolist()))}; {tokens:,}"


if __name__ == "__main__":
    main()
