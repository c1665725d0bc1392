"""What every contender reads: seven domains of uint16 tokens, in the proportions and sizes of RedPajama."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

MIXTURE = {"cc": 0.67, "github": 0.045, "book": 0.045, "stack": 0.02, "wiki": 0.045, "arxiv": 0.025, "c4": 0.15}
WEIGHTS = list(MIXTURE.values())
BATCH = 32
SEQ_LENS = (2048, 4096)
IDS = 4096  # ids of each domain: those of domain d are d * IDS to (d + 1) * IDS - 1, so a row tells where it is from


def path(data: Path, name: str) -> Path:
    """The flat token file of domain ``name``; its Megatron index lies beside it."""
    return data / "tokens" / f"{name}.bin"


def rows(data: Path, name: str, seq_len: int) -> np.ndarray:
    """The rows of a domain: uint16 ``[rows, seq_len]``, mapped."""
    return np.memmap(path(data, name), np.uint16, "r").reshape(-1, seq_len)


def write_tokens(data: Path, total: int) -> None:
    """Writes the domains, ``total`` tokens together, each a whole number of the longest rows."""
    path(data, "").parent.mkdir(parents=True, exist_ok=True)
    for number, (name, weight) in enumerate(MIXTURE.items()):
        size = max(1, round(total * weight / max(SEQ_LENS))) * max(SEQ_LENS)
        generator = np.random.default_rng(number)
        generator.integers(number * IDS, (number + 1) * IDS, size, dtype=np.uint16).tofile(path(data, name))
        path(data, name).with_suffix(".idx").write_bytes(_index(_lengths(generator, size)))


def _lengths(generator: np.random.Generator, size: int) -> np.ndarray:
    """Lengths of documents that fill ``size`` tokens; log-normal, 1000 tokens on average."""
    lengths = np.maximum(8, generator.lognormal(6.4, 1.0, size // 500)).astype(np.int64)
    ends = np.minimum(lengths.cumsum(), size)
    ends = np.append(ends[ends < size], size)
    return np.diff(ends, prepend=0)


def _index(lengths: np.ndarray) -> bytes:
    """A Megatron index of documents that are one sequence each."""
    return b"".join(
        [
            b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1),
            lengths.astype("<i4").tobytes(),
            (2 * (lengths.cumsum() - lengths)).astype("<i8").tobytes(),
            np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
        ]
    )


def off_by(domains: np.ndarray) -> float:
    """How many rows the domain farthest from its share is off, once all of ``domains`` are drawn."""
    counts = np.bincount(domains, minlength=len(MIXTURE))
    return float(np.abs(counts - len(domains) * np.array(WEIGHTS)).max())
