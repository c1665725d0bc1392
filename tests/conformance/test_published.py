"""The settings of the public code for masks and law (``drpruning.config.presets``) against the public code's numbers.

What they do not give is asserted too: the law's answers, since its optimizer there does not converge, and the pruned
model, which there is not the evaluated one.
"""

from __future__ import annotations

import numpy as np
import torch

from drpruning.config import presets
from drpruning.pruning import MaskedModel
from tests.conformance import test_logits as logits
from tests.conformance.conftest import golden, single
from tests.golden import ancestor_inputs as inputs

MASKS = {name: presets.PRUNE[name] for name in ("mask_values", "mask_norms")}


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
