"""Check an installed wheel with numpy alone: `python tests/smoke_wheel.py`.

Rows and weights are the same on every platform. Run it outside of the checkout, so that the installed package is
imported. It needs no pytest.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

import drpruning as dp
from drpruning.errors import WeightError

ROWS = "5135446f7b8e6bd71fe99b759ec060b8cfc7b0e8fc2326ec8f69fdecc4a8ec13"
"""SHA-256 of the tokens, domains and row numbers of 50 batches, as little-endian int64."""


def sampled(folder: Path) -> str:
    """Return the digest of a stream with two domains, a change of the weights and a jump."""
    for name, start in (("web", 0), ("code", 7)):
        (start + np.arange(40_000, dtype="<u2") % 900).astype("<u2").tofile(folder / f"{name}.bin")
    corpus = dp.Corpus({name: folder / f"{name}.bin" for name in ("web", "code")}, dtype="uint16", vocab_size=1000)
    sampler = dp.DomainSampler(corpus, weights={"web": 0.7, "code": 0.3}, seq_len=64, batch_size=8, seed=17)
    digest = hashlib.sha256()
    for number in range(50):
        if number == 20:
            sampler.set_weights({"web": 0.2, "code": 0.8})
        if number == 40:
            sampler.skip(10**9)
        batch = next(sampler)
        for array in (batch.tokens, batch.domains, batch.rows):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


def main() -> None:
    """Check rows, ball and errors of the installed package."""
    with tempfile.TemporaryDirectory() as folder:
        found = sampled(Path(folder))
    assert found == ROWS, f"rows: expected {ROWS}, got {found}"
    worst = dp.worst_case([0.5, 0.1, 0.3], p=[0.5, 0.25, 0.25], rho=0.1)
    assert np.allclose(
        worst.weights, [0.7022599587389726, 0.08145003438418946, 0.2162900068768379], rtol=0, atol=1e-15
    ), worst.weights.tolist()
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert not sys._is_gil_enabled(), "the compiled module has enabled the GIL"  # type: ignore[attr-defined]
    try:
        dp.worst_case([1.0], p=[0.5, 0.5], rho=0.1)
    except WeightError:
        pass
    else:
        raise AssertionError("a wrong length was accepted")
    print(
        f"drpruning {dp.__version__} on Python {sys.version.split()[0]}, {sys.platform}: rows and weights as expected"
    )


if __name__ == "__main__":
    main()
