"""A corpus of random tokens, since nothing can be downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drpruning.config import RunConfig
from drpruning.corpus.manifest import Domain, Manifest, Shard, Tokenizer
from drpruning.prepare.output.megatron import MegatronWriter


def write_corpus(folder: Path, config: RunConfig, tokens: int) -> None:
    """Random tokens for each domain of a recipe, as a corpus."""
    vocabulary = config.model.architecture.vocabulary  # type: ignore[union-attr]
    assert vocabulary is not None
    generator, domains = np.random.default_rng(17), {}
    for name in config.domains:
        shards = {}
        for split in ("train", "eval"):
            with MegatronWriter(folder / f"{name}-{split}-00000", "uint16") as writer:
                for _ in range(max(1, tokens // 2**20)):
                    writer.add(generator.integers(1, vocabulary, min(tokens, 2**20), dtype=np.uint16))
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
        domains[name] = Domain(**shards)
    tokenizer = Tokenizer(name="random tokens", file=None, vocab_size=vocabulary, eos_id=0, sha256=None)
    Manifest(tokenizer=tokenizer, domains=domains).write(folder)
