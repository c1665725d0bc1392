"""Numbers that the code of the public ancestors computed, written by ``tests/golden/make_ancestors.py``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.golden import ancestor_inputs as inputs

torch.set_num_threads(1)

EPS = 2.0**-24
"""Largest relative error of one rounding to float32."""


@cache
def golden() -> dict[str, Any]:
    """Read the golden file, once."""
    path = Path(__file__).parents[1] / "golden" / "ancestors.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def single(entry: dict[str, Any]) -> NDArray[np.float32]:
    """Return a float32 array of the golden file."""
    assert entry["dtype"] == "float32"
    return np.array(entry["values"], dtype=np.float32).reshape(entry["shape"])


def gate(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return log-alpha of the tiny model's gates of one kind, rounded to float32 as in the ancestors."""
    return torch.tensor(inputs.log_alpha(kind), dtype=torch.float32).reshape(inputs.SHAPES[kind]).to(dtype)
