"""Protected units are never pruned, and count in the size of their row."""

from dataclasses import asdict

import pytest
import torch

from drpruning.errors import ConfigError
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.sizes import expected_sparsity
from drpruning.pruning.target import Protected

from .conftest import build
from .test_masked_model import TARGET, scattered

STAYS = Protected(layers=[0, -1], hidden=[3, 31], heads={1: [0]}, intermediate={-1: [5, 6, 7]})


def test_protected_units_are_active_in_every_sample_and_in_the_result():
    masked = scattered(MaskedModel(build("llama"), TARGET, protected=STAYS)).train()
    for gate in masked.gates.values():
        gate.data -= 8.0  # everything else is nearly always pruned
    generator = torch.Generator().manual_seed(0)
    for mode in (True, False):
        masked.train(mode)
        for _ in range(20):
            masked.sample_masks(generator)
            masks = masked.masks()
            assert masks["layer"][[0, 3]].tolist() == [1, 1]
            assert masks["hidden"][[3, 31]].tolist() == [1, 1]
            assert masks["head"][1, 0] == 1
            assert masks["intermediate"][3, 5:8].tolist() == [1, 1, 1]
    kept = asdict(masked.kept_units())
    assert kept["layers"] == [0, 3]
    assert {3, 31} <= set(kept["hidden"])
    assert {5, 6, 7} <= set(kept["intermediate"][1])


def test_protected_units_count_in_the_size_and_their_gates_get_no_gradient(tokens):
    masked = scattered(MaskedModel(build("llama"), Target(hidden=16), protected=Protected(hidden=[0, 1]))).train()
    masked.sample_masks(torch.Generator().manual_seed(0))
    (masked(tokens, labels=tokens).loss + masked.constraint(0)).backward()
    gradient = masked.gates["hidden"].grad
    assert gradient[:2].tolist() == [0, 0]
    assert (gradient[2:] != 0).any()
    masked.gates["hidden"].data.fill_(-30.0)
    assert expected_sparsity(masked)["hidden"] == pytest.approx(1 - 2 / 32)


@pytest.mark.parametrize(
    ("stays", "message"),
    [
        (Protected(layers=[0, 1, 2]), "3 protected layers, but the target keeps 2"),
        (Protected(layers=[4]), "protected layers: there is no unit 4"),
        (Protected(heads={0: [0, 1, 2]}), "3 protected heads of block 0, but the target keeps 2"),
        (Protected(intermediate={-5: [0]}), "protected intermediate: there is no block -5"),
    ],
)
def test_wrong_indices_are_rejected(stays, message):
    with pytest.raises(ConfigError, match=message):
        MaskedModel(build("llama"), TARGET, protected=stays)


def test_a_kind_without_gates_ignores_protection():
    masked = MaskedModel(build("llama"), Target(layers=3), protected=STAYS)
    assert asdict(masked.kept_units())["hidden"] == list(range(32))
