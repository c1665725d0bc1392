"""The settings of the public code for masks and law (``drpruning.published``) against the public code's numbers.

What they do not give is asserted too: the law's answers, since its optimizer there does not converge, and the pruned
model, which there is not the evaluated one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drpruning import published
from drpruning.pruning import MaskedModel
from drpruning.scaling.published import predict_published
from tests.conformance import test_logits as logits
from tests.conformance.conftest import golden, single
from tests.golden import ancestor_inputs as inputs

MASKS = {name: published.PRUNE[name] for name in ("mask_values", "mask_norms")}


@logits.FAMILIES
def test_evaluation_under_soft_masks(family: str) -> None:
    masked = MaskedModel(logits.source(family), logits.KEPT[family], **MASKS).eval()
    with torch.no_grad():
        for kind, located in masked.gates.items():
            located.copy_(logits.gates(family)[kind])
        logits.close(masked(torch.tensor(inputs.TOKENS)).logits, family, "soft")
        exported = masked.extract()(torch.tensor(inputs.TOKENS)).logits
    logits.close(exported, family, "soft")
    theirs = single(golden()["logits"][family]["pruned"])
    assert np.abs(exported.numpy() - theirs).max() > 0.1  # theirs multiplies embedding and output layer on export


def test_training_under_sampled_masks() -> None:
    masked = MaskedModel(logits.source("llama"), logits.KEPT["llama"], **MASKS).train()
    with torch.no_grad(), masked.fixed_masks(logits.sampled(binary=False)):
        logits.close(masked(torch.tensor(inputs.TOKENS)).logits, "llama", "sampled")


@pytest.mark.parametrize("index", range(0, 10, 2))
def test_the_law_converges_where_theirs_does_not(index: int) -> None:
    """On points without noise ours finds the law. Theirs, L-BFGS in float32 without line search, mostly does not."""
    curve = inputs.curve(index)
    P = [1 / s for s in curve.sparsity] or [1.0] * len(curve.tokens)
    T, *s = curve.final
    ours = predict_published(P, curve.tokens, curve.losses, final_params=1 / s[0] if s else 1.0, final_tokens=T)
    assert ours == pytest.approx(curve.true_loss, abs=1e-3)
    theirs = golden()["laws"][index]["mean"]["predicted"]
    distance = {0: 0.085, 2: 0.189, 4: 0.100, 6: -0.002, 8: 0.213}[index]
    assert theirs - ours == pytest.approx(distance, abs=2e-3)
