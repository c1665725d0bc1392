"""Floating point operations by purpose and of one block, and peaks of devices; `pruning/model_flops.py` has models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""bfloat16 FLOP/s, dense, float32 accumulation, from data sheets; the longest key in a device's name counts."""

FORWARD, TRAINING = 2, 6
"""Operations for each weight in a product with a token: a product and a sum forward, and twice as many backward."""


@dataclass(frozen=True, kw_only=True)
class FlopCounts:
    """Floating point operations of a stage or a run, by purpose. All but ``evaluation`` are charged to the method.

    The counts are model FLOPs of every token of a row, by the functions of :mod:`drpruning.pruning.model_flops`.
    Look-ups, norms, activations, softmaxes, losses, optimizer and the recomputation of activation checkpointing count
    nothing. Steps that were lost (before a rollback, or between the last checkpoint and a kill) are not counted;
    skipped steps are.

    Attributes:
        training: Training steps of the student, 6 for each weight: 2 forward, 4 backward. Under masks, the weights
            that the step multiplied: without the units that the sparse forward pass left out, with those that it
            computed although their mask is zero. A loss on residual streams adds no product.
        probes: The same, in the steps of a strategy's probes.
        teacher: Forward passes of the teacher, 2 for each weight.
        importance: Passes that score units before the prune stage, as of ``importance_flops_per_token``.
        repair: Forward passes and products of ``prune.repair``, charged at the start of the prune stage, as
            of ``repair_flops_per_token``.
        evaluation: Forward passes on held-out rows between the steps, of a masked model at its expected sizes. The
            measurements of finished models and their tasks are not counted.

    Example:
        >>> FlopCounts(training=6.0, teacher=2.0, evaluation=1.0).charged
        8.0
    """

    training: float = 0.0
    probes: float = 0.0
    teacher: float = 0.0
    importance: float = 0.0
    repair: float = 0.0
    evaluation: float = 0.0

    @property
    def charged(self) -> float:
        """The sum of all parts but ``evaluation``."""
        return self.training + self.probes + self.teacher + self.importance + self.repair

    def __add__(self, other: FlopCounts) -> FlopCounts:
        """Return the counts of both."""
        return FlopCounts(**{name: count + getattr(other, name) for name, count in asdict(self).items()})

    @classmethod
    def of(cls, counts: Mapping[str, float]) -> FlopCounts:
        """Return the counts of a record by part; parts of other versions are left out."""
        return cls(**{part.name: counts[part.name] for part in fields(cls) if part.name in counts})


def block_products(
    hidden: float,
    *,
    query: float,
    key_value: float,
    intermediate: float,
    mlp_matrices: int,
    length: int,
    routing: float = 0,
) -> float:
    """Return the products (multiply-adds) of a token in one block; one is :data:`FORWARD` operations.

    Args:
        hidden: Width of the residual stream.
        query: Query heads times their width.
        key_value: Key/value heads times their width.
        intermediate: Width of the MLP; of all experts of a token together.
        mlp_matrices: Matrices of the MLP: 3 with a gate, else 2.
        length: Tokens in a row; scores and values are two products with half of them, on average.
        routing: See :func:`drpruning.pruning.architectures.routing_entries`.
    """
    return hidden * (2 * (query + key_value) + mlp_matrices * intermediate + routing) + query * length


def peak_flops(device: torch.device, dtype: str, given: float | None = None) -> float | None:
    """Return the peak FLOP/s of ``device``; None where it is unknown.

    Args:
        device: The device of the model.
        dtype: ``training.dtype``; the table is of bfloat16.
        given: ``training.peak_tflops``, which overrides the table.
    """
    if given is not None:
        return given * 1e12
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    import torch  # noqa: PLC0415 - counting needs none of it, and it takes seconds to load

    return peak_of_gpu(torch.cuda.get_device_name(device))


def peak_of_gpu(name: str) -> float | None:
    """Return the bfloat16 FLOP/s of a GPU by its name in CUDA; None where the table lacks it.

    Example:
        >>> peak_of_gpu("NVIDIA H100 80GB HBM3"), peak_of_gpu("NVIDIA L40S"), peak_of_gpu("Voodoo 2")
        (989000000000000.0, 362000000000000.0, None)
    """
    words = f" {name.replace('-', ' ')} "
    known = [model for model in PEAKS if f" {model} " in words]
    return PEAKS[max(known, key=len)] if known else None
