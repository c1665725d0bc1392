"""Bounds on how far two ways of computing the same float32 numbers may differ, derived from the sizes involved."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

CONFIDENCE = 4.0
"""In the probabilistic model of rounding (Higham and Mary 2019) a sum of n terms is off by at most CONFIDENCE sqrt(n) u
of its size with probability 1 - 2 exp(-CONFIDENCE^2 / 2), u half of eps. It holds for any order of the sum."""


def rounding_bound(*, products: int, inner: int) -> float:
    """Return how far two float32 results may be apart, as a fraction of a tensor's largest entry.

    Args:
        products: Matrix products in a row between the inputs and the result, backward pass included.
        inner: Longest inner dimension of one of them.
    """
    unit = torch.finfo(torch.float32).eps / 2
    return 2 * products * CONFIDENCE * math.sqrt(inner) * unit


def assert_same_up_to_rounding(
    actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], *, products: int, inner: int
) -> None:
    """Compare tensors by name within :func:`rounding_bound` of each one's largest entry; None equals None alone."""
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        found = actual[name]
        assert (found is None) == (reference is None), name
        if found is not None and reference is not None:
            bound = rounding_bound(products=products, inner=inner) * float(reference.abs().max())
            torch.testing.assert_close(
                found, reference, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}"
            )
