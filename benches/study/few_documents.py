"""Copy a prepared corpus and keep few training documents of its small domains: `python few_documents.py CORPUS OUT`.

In a run of 1,600 steps at the audit's reference ratio each of these domains is repeated six times. The held-out text
does not change.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from drpruning import Corpus, document_boundaries
from drpruning.prepare.output.megatron import MegatronWriter

RATIO = {"math": 0.045, "ml": 0.045, "stubs": 0.045, "readme": 0.025, "licence": 0.02}
TOKENS, EPOCHS = 1600 * 1024, 6


def choose(lengths: np.ndarray, tokens: int) -> list[tuple[int, int]]:
    """Return documents in a random order, each with the number of tokens to keep, until there are enough tokens."""
    chosen = []
    for number in np.random.default_rng(0).permutation(len(lengths)):
        kept = min(int(lengths[number]), tokens)
        chosen.append((int(number), kept))
        tokens -= kept
        if not tokens:
            return chosen
    raise SystemExit(f"the domain has {int(lengths.sum())} tokens, {tokens} too few")


def shorten(corpus: Corpus, domain: str, folder: Path, shard: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Write the chosen documents of a training shard over its copy, and return its new entry in the manifest."""
    assert corpus.end_token is not None
    stored = corpus.read_tokens(domain, 0, shard["tokens"])
    starts = document_boundaries(stored[None], corpus.end_token).cu_seqlens
    chosen = choose(np.diff(starts), tokens)
    path = folder / shard["file"]
    for suffix in (".bin", ".idx", ".documents"):
        path.with_suffix(suffix).unlink()
    with MegatronWriter(path.with_suffix(""), "uint16") as writer:
        for number, kept in chosen:
            writer.add(stored[starts[number] : starts[number] + kept])
    sums = [hashlib.sha256(path.with_suffix(suffix).read_bytes()).hexdigest() for suffix in (".bin", ".idx")]
    print(f"{domain}: {tokens} of {len(stored)} tokens, {len(chosen)} of {len(starts) - 1} documents")
    sizes = {"tokens": tokens, "documents": len(chosen), "bytes": 2 * tokens}
    return shard | sizes | {"sha256": sums[0], "index_sha256": sums[1]}


def main(source: Path, out: Path) -> None:
    """Copy, shorten and verify."""
    partial, corpus = out.with_name(out.name + ".partial"), Corpus.open(source)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    manifest = json.loads((partial / "corpus.json").read_text(encoding="utf-8"))
    for domain, share in RATIO.items():
        entry = manifest["domains"][domain]
        (shard,) = entry["train"]
        entry["train"] = [shorten(corpus, domain, partial, shard, round(share * TOKENS / EPOCHS))]
        del entry["text"]
    (partial / "corpus.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    Corpus.open(partial).verify()
    partial.rename(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
