"""The public code's least weight, ``clamp_q_to_min``, over many evaluations of losses that never change.

The largest domain is 0.5 nats above its reference, all others 0.1. The least weight is the smallest entry of the
*moving* ratio, and rises with it: the rarest domains gain, whatever their losses, and a large one pays for them.
"""

from __future__ import annotations

import numpy as np
import pytest

from drpruning.mixture.strategies.published import published_update
from tests.conformance.conftest import golden
from tests.golden import ancestor_inputs as inputs

# Final weights by initial share: cc, github, book, stackexchange, wiki, arxiv, c4
CHANGE = {True: [1.17, 0.80, 0.80, 1.80, 0.80, 1.44, 0.24], False: [1.38, 0.23, 0.23, 0.30, 0.23, 0.24, 0.23]}


@pytest.mark.parametrize("clamp", [True, False])
def test_rare_domains_gain_under_the_clamp(*, clamp: bool) -> None:
    case = inputs.steady()
    (end,) = [end for end in golden()["trajectories"]["steady"] if end["clamp"] == clamp]
    initial = ratio = np.array(case.proportion, dtype=np.float32)
    for k, losses in enumerate(case.losses, 1):
        excess = np.array(losses, dtype=np.float32) - np.array(case.reference_loss, dtype=np.float32)
        weights = published_update(excess, ratio, case.rho, clamp=clamp, reference_loss=case.reference_loss)
        if k * inputs.EVERY >= 0.2 * inputs.STEPS:
            ratio = 0.9 * ratio + 0.1 * weights
            for least, most in ((initial / 2, initial * 2), (initial.min(), initial.max())):
                ratio = np.clip(ratio / ratio.sum(), least, most)
            ratio = ratio / ratio.sum()
    # Another path of the bisection stops within 1e-4 of the radius too. Two such mixtures differ by at most
    # 2e-4 dq / drho, and dq / drho is max(q - p) / (2 rho) = 0.25 / 0.2
    np.testing.assert_allclose(weights, end["weights"], rtol=0, atol=2.6e-4)
    np.testing.assert_allclose(ratio, end["ratio"], rtol=0, atol=2.6e-4)
    # Shares are at least 2%, so 2.6e-4 is 0.013 of one; the numbers have two decimals
    np.testing.assert_allclose(weights / initial, CHANGE[clamp], atol=0.013 + 0.005)
