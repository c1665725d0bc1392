"""A distillation step with a stored teacher, and with a teacher that runs, compared with a step without distillation.

    python benches/train/stored_teacher.py
    python benches/train/stored_teacher.py MODEL CORPUS     # draws: distinct tokens, bytes, squared error

One thread, CPU seconds, in turns in one process: median and range of the ratio to the plain step. A step is forward
and backward pass and AdamW; with a stored teacher also the reading of its rows. The teacher is twice as deep as the
student. Its weights are random, with logits scaled by each of :data:`SCALES`, which determine the distinct tokens of a
sample.

With a model and a corpus: for 32 rows of 128 tokens, the distinct tokens and the bytes of a sample, and the expected
squared error of its probabilities, sum over the vocabulary, of systematic and of independent draws.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.config import DistillConfig, TrainingConfig
from drpruning.corpus import Corpus
from drpruning.hf.models import load
from drpruning.train.distill import Distiller, RowNumbers
from drpruning.train.losses import token_losses
from drpruning.train.model_runtime import prepare
from drpruning.train.teach import _records
from drpruning.train.teacher_files import BLOCKS, StoredTeacher, TeacherIdentity, write_block
from drpruning.train.teacher_samples import pad_samples, sample

ROWS, TOKENS, VOCABULARY, TURNS = 4, 256, 8192, 12
SCALES = (40.0, 14.0)
"""Factors of the teacher's output layer: about 4 and about 25 distinct tokens of 50 draws."""


def model(layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_hidden_layers": layers}
    built = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, **shape))
    prepare(built, TrainingConfig())
    return built


def store(folder: Path, teacher: LlamaForCausalLM, tokens_BT: Tensor) -> StoredTeacher:
    identity = TeacherIdentity(
        corpus="", domains=("all",), model="", source="", vocabulary=VOCABULARY, seq_len=TOKENS, document_mask=False,
        method="sample", size=50, temperature=1.0, seed=0, dtype="float32", block_rows=1024,
    )  # fmt: skip
    with torch.no_grad():
        logits_NV = teacher(tokens_BT).logits[:, :-1].flatten(0, 1)
    (folder / BLOCKS).mkdir()
    identity.write(folder)
    size = write_block(folder, 0, 0, np.arange(ROWS), list(_records(logits_NV, identity, "all", np.arange(ROWS))))
    stored = StoredTeacher(folder)
    ids = stored.read([0] * ROWS, range(ROWS)).ids
    distinct, most = float((ids > 0).sum(1).mean()), ids.shape[1]
    print(f"{distinct:.1f} distinct tokens of 50 draws, at most {most}; {size / tokens_BT.numel():.1f} bytes a token")
    return stored


def draws(model_folder: str, corpus_folder: str) -> None:
    corpus = Corpus.open(corpus_folder)
    teacher = load(model_folder, torch.float32, torch.device("cpu"))
    shares = np.linspace(0, 1, 32 // len(corpus.domains) + 1, endpoint=False)
    rows = [
        corpus.read_rows(name, (shares * count).astype(np.int64), 128) for name, count in corpus.num_rows(128).items()
    ]
    with torch.no_grad():
        logits_NV = teacher(torch.from_numpy(np.concatenate(rows))).logits[:, :-1].flatten(0, 1)
    p = logits_NV.double().softmax(-1)
    print(f"{len(p)} tokens; the teacher's entropy is {float(-(p * p.log()).sum(-1).mean()):.2f} nats")
    bytes_per_id = 2 if p.shape[1] <= 2**16 else 4
    for n in (12, 50, 100, 255):
        ids, probabilities = pad_samples(*sample(logits_NV, torch.rand(len(p), dtype=torch.float64), n), n)
        dense = torch.zeros_like(p).scatter_add_(1, ids, probabilities.double())
        distinct, error = float((dense > 0).sum(-1).double().mean()), float((dense - p).square().sum(-1).mean())
        independent = float((p * (1 - p)).sum(-1).mean()) / n, float((1 - (1 - p) ** n).sum(-1).mean())
        print(f"{n:3} draws: {distinct:.1f} distinct, {1 + (1 + bytes_per_id) * distinct:.0f} bytes a token", end="; ")
        print(f"squared error {error:.5f}; independent: {independent[1]:.1f} distinct, {independent[0]:.5f}")


def compare_steps(scale: float) -> None:
    torch.manual_seed(0)
    tokens_BT = torch.randint(VOCABULARY, (ROWS, TOKENS))
    student, teacher = model(3, 0), model(6, 1).requires_grad_(False)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(scale)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    places = RowNumbers(np.zeros((1, ROWS), np.int32), np.arange(ROWS)[None])
    with tempfile.TemporaryDirectory() as folder:
        settings = DistillConfig(weight=0.9)
        stored = Distiller(settings, stored=store(Path(folder), teacher, tokens_BT))
        ways: dict[str, Callable[[], Tensor]] = {
            "plain": lambda: token_losses(student, tokens_BT),
            "stored teacher": lambda: stored.losses(student, tokens_BT, rows=places).objective,
            "teacher runs": lambda: Distiller(settings, teacher).losses(student, tokens_BT).objective,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(TURNS + 1):
            for name, losses in ways.items():
                started = time.process_time()
                losses().mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if turn:
                    seconds[name].append(time.process_time() - started)
        started = time.process_time()
        for _ in range(20):
            stored.stored.read([0] * ROWS, range(ROWS))  # type: ignore[union-attr]
        reading = (time.process_time() - started) / 20
    base = seconds["plain"]
    print(f"plain step {median(base):.3f} s; reading its rows {reading:.4f} s")
    for name, taken in seconds.items():
        ratios = [one / two for one, two in zip(taken, base, strict=True)]
        print(f"{name:15} {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        draws(*sys.argv[1:])
    else:
        for factor in SCALES:
            compare_steps(factor)
