"""The loops in docs/examples run, resume exactly, and need only the packages that they name."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml

from drpruning.prepare import prepare
from drpruning.prepare.tokenize.tokenizer import train_tokenizer

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
WITHOUT_TORCH = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(60)]
    paths = {}
    for name, vocabulary in (("few", words[:10]), ("many", words)):
        texts = [" ".join(generator.choice(vocabulary, 200)) for _ in range(40)]
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer(words, 300).save(folder / "tokenizer")
    prepare(folder / "corpus", paths, str(folder / "tokenizer"))
    return folder / "corpus"


def run(name: str, *arguments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_without_arguments_prints_its_usage(example: Path) -> None:
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"python docs/examples/{example.name} corpus/" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("example", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_an_example_fits_on_a_page(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 42


def test_numpy_alone_is_enough_for_a_loop(corpus: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(EXAMPLES / "numpy_loop.py"), str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["step", "50"]
    losses = {name: [float(line[2]) for line in lines if line[0] == name] for name in ("few", "many")}
    assert all(len(values) == 4 and values[-1] < values[0] for values in losses.values())
    # The domain with more to learn gets more.
    assert [float(line[4]) > 0.5 for line in lines if line[0] == "many"] == [True] * 4


def test_a_torch_loop_resumes_at_its_position(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    kept: list[str] = []
    save = torch.save

    def save_and_stop_at(step: int | None) -> None:
        def saving(parts: dict[str, dict[str, int]], path: Path) -> None:
            save(parts, path)
            if parts["sampler"]["step"] == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", saving)

    for checkpoint, stop in (("whole.pt", None), ("parts.pt", 40), ("parts.pt", None)):
        save_and_stop_at(stop)
        torch.manual_seed(17)
        try:
            run("torch_loop.py", corpus, tmp_path / checkpoint, monkeypatch=monkeypatch)
        except KeyboardInterrupt:
            assert stop is not None
        kept.append(capsys.readouterr().out)
    whole, _, rest = kept
    assert [line.split()[0] for line in whole.splitlines()] == ["20", "40", "60"]
    assert rest == whole.splitlines(keepends=True)[-1]


def test_the_trainer_resumes_to_the_row(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    from shutil import rmtree

    out = tmp_path / "out"
    run("hf_trainer.py", corpus, out, monkeypatch=monkeypatch)
    last = out / "checkpoint-12"
    whole = [(last / name).read_bytes() for name in ("model.safetensors", "sampler.json")]
    state = json.loads(whole[1])
    assert state["step"] == 12
    assert state["rows"][1] - state["rows"][0] == 6 * 8  # even for six steps, then the second domain alone
    for step in (8, 12):
        rmtree(out / f"checkpoint-{step}")
    run("hf_trainer.py", corpus, out, monkeypatch=monkeypatch)
    assert [(last / name).read_bytes() for name in ("model.safetensors", "sampler.json")] == whole
    capsys.readouterr()


def test_the_files_for_clouds_and_containers_are_valid(tmp_path: Path) -> None:
    task = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text(encoding="utf-8"))
    assert {"resources", "envs", "setup", "run"} <= set(task)
    image = (EXAMPLES / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.partition(" ") for line in image.splitlines() if line and not line.startswith("#")]
    assert {name for name, _, _ in steps} <= {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"}
    manual = (EXAMPLES.parent / "distributed.md").read_text(encoding="utf-8")
    slurm = textwrap.dedent(manual[manual.index("    #!/bin/bash") :].split("\n\n")[0])
    for script in (task["setup"], task["run"], slurm, *(text for name, _, text in steps if name == "RUN")):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "drpruning train" in task["run"]
