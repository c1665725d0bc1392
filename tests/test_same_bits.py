"""Threads, time zone, locale, encoding and the seed of hashes change no bit of a corpus, its rows or the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from benches.hardening.states import saved_state
import drpruning as dp
from drpruning.chi2 import worst_case
from drpruning.cli import main
from drpruning.mixture import DRPruning

source, out = map(Path, sys.argv[1:])
domains = [word for name in ("web", "books") for word in ("--domain", f"{name}={source / name}.jsonl")]
assert not main(["prepare", str(out), "--tokenizer", str(source / "tokenizer"), "--workers", "1", *domains])
files = sorted(path for path in out.rglob("*") if path.is_file())
whole = b"".join(str(path.relative_to(out)).encode() + path.read_bytes() for path in files)
print("corpus", len(files), hashlib.sha256(whole).hexdigest())
sampler = dp.DomainSampler(dp.Corpus.open(out), {"web": 0.7, "books": 0.3}, seq_len=16, batch_size=8, seed=3)
print("rows", hashlib.sha256(b"".join(next(sampler).tokens.tobytes() for _ in range(50))).hexdigest())
losses, p = np.random.default_rng(5).random((2, 5001))
print("ball", hashlib.sha256(worst_case(losses, p / p.sum(), 0.1).weights.tobytes()).hexdigest())
print("law and mixture", json.dumps(saved_state(DRPruning(min_points=6)), sort_keys=True))
"""

ENVIRONMENTS = {
    "one thread": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2"},
    "four threads, other surroundings": {
        "OMP_NUM_THREADS": "4",
        "OPENBLAS_NUM_THREADS": "4",
        "RAYON_NUM_THREADS": "4",
        "TZ": "Asia/Kathmandu",
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii:backslashreplace",
        "PYTHONHASHSEED": "12345",
    },
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from drpruning.prepare.tokenize.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("source")
    texts = {
        name: [f"{name} {number * 7919} übersetzt – {word * (number % 5 + 1)}" for number in range(300)]
        for name, word in (("web", "left "), ("books", "right "))
    }
    for name, lines in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines), encoding="utf-8")
    tokenizer = train_tokenizer((line for lines in texts.values() for line in lines), 300, name="test")
    tokenizer.save(folder / "tokenizer")
    return folder


def test_surroundings_change_no_bit(source: Path, tmp_path: Path) -> None:
    printed = {}
    for number, (name, changes) in enumerate(ENVIRONMENTS.items()):
        out = tmp_path / str(number)
        environment = {"PYTHONHASHSEED": "0", **os.environ, **changes, "DRPRUNING_CACHE": str(tmp_path / "cache")}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(source), str(out)],
            capture_output=True,
            check=False,
            env=environment,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr.decode(errors="replace")[-2000:]
        printed[name] = [
            line for line in result.stdout.decode().splitlines() if line[:4] in ("corp", "rows", "ball", "law ")
        ]
        assert len(printed[name]) == 4
    assert printed == dict.fromkeys(printed, printed["one thread"])
