"""A corpus of random tokens, since nothing can be downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drpruning.corpus.manifest import Domain, Manifest, Shard, Tokenizer
from drpruning.prepare.output.megatron import MegatronWriter

END = 0  # ends a document


def write_corpus(folder: Path, domains: list[str], vocabulary: int, tokens: int, *, document: int = 1024) -> None:
    """Random documents for each domain, as a corpus.

    Args:
        folder: An empty folder.
        domains: Their names.
        vocabulary: Ids are below it.
        tokens: Of each domain to train on; a quarter as many are validation text, and test text.
        document: Mean length of a document in tokens.
    """
    generator, described = np.random.default_rng(17), {}
    for name in domains:
        shards = {}
        for split, count in (("train", tokens), ("validation", tokens // 4), ("test", tokens // 4)):
            with MegatronWriter(folder / f"{name}-{split}-00000", "uint16") as writer:
                left = count
                while left > 0:
                    length = min(left, 1 + int(generator.exponential(document)))
                    ids = generator.integers(1, vocabulary, length, dtype=np.uint16)
                    ids[-1] = END
                    writer.add(ids)
                    left -= length
            shards[split] = [
                Shard(
                    path=writer.path(".bin"),
                    dtype="uint16",
                    tokens=writer.tokens,
                    documents=writer.documents,
                    bytes=2 * writer.tokens,
                    sha256=writer.sha256[".bin"],
                    index_sha256=writer.sha256[".idx"],
                )
            ]
        described[name] = Domain(**shards)
    tokenizer = Tokenizer(name="random tokens", file=None, vocab_size=vocabulary, eos_id=END, sha256=None)
    Manifest(tokenizer=tokenizer, domains=described).write(folder)
