"""A small corpus of ours, and those that other programs wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MakeCorpus

GOLDEN_FOLDER = Path(__file__).parents[1] / "golden" / "corpus"
GOLDEN = json.loads((GOLDEN_FOLDER / "expected.json").read_text())
MEGATRON = GOLDEN_FOLDER / "megatron"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(make_corpus: MakeCorpus) -> Path:
    return make_corpus({"web": [500, 300], "code": [200]})


def golden_ids(count: int, dtype: str) -> NDArray[np.int64]:
    """Token i is 7919 i modulo a number that makes use of the dtype."""
    modulus = {"uint8": 200, "int8": 100, "int16": 30_000, "uint16": 60_000}.get(dtype, 2**20)
    return np.arange(count) * 7919 % modulus
