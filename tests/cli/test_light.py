"""Where torch, transformers and plotting are not installed, each command works or ends with a command that helps.

The commands of the light installation also work without the calls that Windows lacks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpruning.errors import LIGHT_PACKAGES, MODEL_PACKAGES, check_installed, install_command, missing_package
from drpruning.recipes import load_recipe
from drpruning.records import ModelMeasured, to_json
from tests.conftest import MakeCorpus
from tests.report.synthetic import synthetic, write_run

ROOT = Path(__file__).parents[2]
OTHER_PACKAGES = ("tensorboard", "matplotlib")
UNIX = (
    *(
        "O_NONBLOCK",
        "O_CLOEXEC",
        "O_NOFOLLOW",
        "O_NOCTTY",
        "O_DIRECTORY",
        "fork",
        "register_at_fork",
        "getuid",
        "geteuid",
    ),
    *("pread", "killpg", "sched_getaffinity"),
)
"""Names of the module ``os`` that Windows does not have."""
RUN_ALL = (
    f"""
UNIX = {UNIX}
"""
    + """
import contextlib, importlib.machinery, io, json, sys
absent, commands, windows = json.loads(sys.argv[1])
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)
if windows:
    import os, signal, subprocess, tempfile
    for module, names in ((os, UNIX), (signal, ("SIGUSR1", "SIGKILL", "SIGHUP"))):
        for name in set(names) & vars(module).keys():  # Windows itself has none of them
            delattr(module, name)
    sys.modules.pop("fcntl", None)
from drpruning.__main__ import main
for words in commands:
    sys.argv = ["drpruning", *words]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
)
WORK = (
    "recipes",
    "recipes show quickstart",
    "plan cost quickstart",
    "plan cost llama2-7b-to-2.7b",
    "plan shape meta-llama/Llama-3.1-8B --params 3B",
    "plan check llama2-7b-to-1.3b",
    "inspect CORPUS",
    "inspect RUN",
    "inspect MODEL",
    "sample CORPUS --weights web=1,code=1 --steps 2 --seq-len 8 --batch-size 2",
    "report RUN",
    "report RUN --json",
    "advise CSV --ratio web=0.5,code=0.5 --final-step 900",
    "fit CSV --at-step 900",
    "mix --design 4 --prior web=0.8,code=0.2",
)
NEED_MORE = {
    "train quickstart --out NEW": MODEL_PACKAGES,
    "init HuggingFaceTB/SmolLM2-135M --params 70M --corpus CORPUS": MODEL_PACKAGES,
    "plan cost llama2-7b-to-2.7b --gpus 8xH100": MODEL_PACKAGES,
    "compare quickstart --out NEW": MODEL_PACKAGES,
    "prepare NEW --tokenizer T --domain web=CSV": MODEL_PACKAGES,
    "eval loss RUN": MODEL_PACKAGES,
    "eval loss someone/model --corpus CORPUS": MODEL_PACKAGES,
    "eval tasks RUN --task arc_easy": ("lm-eval", "accelerate"),
    "benchmark build CORPUS NEW": MODEL_PACKAGES,
    "export prune MODEL NEW --corpus CORPUS --target layers=1": MODEL_PACKAGES,
    "export gguf MODEL NEW": ("gguf",),
    "export hf MODEL NEW --dtype bfloat16": MODEL_PACKAGES,
    "sample CORPUS --weights web=1,code=1 --show 1": ("tokenizers",),
    "report RUN --figures NEW": ("matplotlib",),
    "fit CSV --at-step 900 --plot NEW.png": ("matplotlib",),
    "plan shape someone/model --params 3B": ("huggingface_hub",),
}


KNOWN_AT_ONCE = {
    "train quickstart --out NEW --set prune.target.layers=30": "target layers=30 is larger than the source's 6",
    "train llama2-7b-to-1.3b --out NEW --set data.corpus=MODEL": "holds no corpus.json",
    "train llama2-7b-to-1.3b --out NEW --set data.corpus=CORPUS": "names the domain 'cc'; the corpus has web, code",
    "train quickstart --out RUN": "exists already",
    "train quickstart --set mixture.strategy=drprunning": "Did you mean drpruning?",
    "eval loss someone/model --corpus CORPUS": "the model 'someone/model' cannot be loaded",
    "eval loss RUN --corpus CORPUS --domain wiki": "there is no domain 'wiki'; the corpus has web, code",
    "export gguf no/such/folder NEW": "there is no such folder",
    "export hf MODEL MODEL --dtype bfloat16": "exists already",
    "export prune someone/model NEW --corpus CORPUS --target layers=1": "the model 'someone/model' cannot be loaded",
    "prepare NEW --tokenizer someone/model --domain web=MODEL/config.json": "cannot load tokenizer 'someone/model'",
    "prepare NEW --tokenizer /no/such --domain web=MODEL/config.json": "there is no such folder",
    "prepare NEW --tokenizer RUN --domain web=MODEL/config.json": "the folder holds none of tokenizer.json",
    "sample CORPUS --weights web=1,cod=1": "The weights name 'cod', which is not a domain of the corpus.",
}
"""Mistakes that need neither torch nor transformers to be found: they are reported without importing them."""


def run_all(absent: list[str], commands: list[list[str]], *, windows: bool = False) -> Iterator[tuple[int, str, str]]:
    """Run commands in one process without the modules ``absent``; yield exit code, stdout and stderr of each."""
    arguments = json.dumps([absent, commands, windows])
    whole = subprocess.run([sys.executable, "-c", RUN_ALL, arguments], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    for line in whole.stdout.splitlines():
        code, out, err = json.loads(line)
        yield code, out, err


@pytest.fixture
def places(tmp_path: Path, make_corpus: MakeCorpus) -> dict[str, Path]:
    """Write a corpus, a run, a model without weights and losses; return their paths by the words of commands."""
    model = tmp_path / "model"
    model.mkdir()
    sizes = {"vocab_size": 100, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": 2, **sizes}))
    (model / "tokenizer.json").write_text("{}")
    losses = [f"{step},{2 + 20 / step:.4f},{1 + 30 / step:.4f}" for step in range(100, 800, 100)]
    (tmp_path / "losses.csv").write_text("\n".join(["step,web,code", *losses]))
    run = write_run(tmp_path / "run", synthetic(), load_recipe("quickstart").to_yaml())
    measured = ModelMeasured(model="base", parameters=1, shape={}, losses={}, path=str(model))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(to_json(measured) + "\n")
    return {
        "CORPUS": make_corpus({"web": [600], "code": [600]}, held_out=200, test=200),
        "RUN": run,
        "MODEL": model,
        "CSV": tmp_path / "losses.csv",
        "NEW": tmp_path / "new",
    }


def in_words(command: str, places: dict[str, Path]) -> list[str]:
    """Return the words of a command, with paths in place of the names of places."""
    return [re.sub("CORPUS|RUN|MODEL|CSV|NEW", lambda found: str(places[found[0]]), word) for word in command.split()]


def test_each_command_works_or_names_the_packages_to_install(places: dict[str, Path]) -> None:
    absent = [*MODEL_PACKAGES, *OTHER_PACKAGES, "huggingface_hub", "lm_eval", "accelerate", "gguf"]
    results = list(run_all(absent, [in_words(command, places) for command in (*WORK, *NEED_MORE)]))
    for command, (code, out, err) in zip(WORK, results, strict=False):
        assert (code, bool(out)) == (0, True), f"{command}: {err}"
    for (command, packages), (code, _, err) in zip(NEED_MORE.items(), results[len(WORK) :], strict=True):
        assert code == 2, f"{command}: {err}"
        first, second = err.splitlines()
        assert first.startswith("MissingExtraError: ")
        assert second == install_command(*packages), command
    assert not places["NEW"].exists()


def test_light_commands_work_without_the_calls_that_windows_lacks(places: dict[str, Path]) -> None:
    copied = ("recipes", "copy", "quickstart", str(places["NEW"] / "mine.yaml"))
    absent = [*MODEL_PACKAGES, "fcntl", "resource", "pwd", "grp"]
    results = list(run_all(absent, [list(copied), *(in_words(command, places) for command in WORK)], windows=True))
    for command, (code, out, err) in zip((copied, *WORK), results, strict=True):
        assert (code, bool(out)) == (0, True), f"{command}: {err}"
    assert (places["NEW"] / "mine.yaml").read_text().count("name: quickstart") == 1
    assert not list(places["NEW"].glob("*.partial"))


def test_mistakes_are_reported_before_torch_is_loaded(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    results = run_all(["torch", "transformers"], [in_words(command, places) for command in KNOWN_AT_ONCE])
    for (command, message), (code, _, err) in zip(KNOWN_AT_ONCE.items(), results, strict=True):
        assert code == 2, f"{command}: {err}"
        assert message in err, command
    assert not places["NEW"].exists()


def test_without_click_the_command_names_the_packages_of_the_light_installation() -> None:
    ((code, out, err),) = run_all(["click", "pydantic", "yaml", "rich", "jinja2", "scipy"], [["plan"]])
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first == "MissingExtraError: this command needs click, which is not installed"
    assert second == install_command(*(name for name in LIGHT_PACKAGES if name != "numpy"))


def test_an_unknown_module_is_a_defect_and_not_advice() -> None:
    assert missing_package(ModuleNotFoundError("no", name="drpruning.no_such_module")) is None
    assert missing_package(ModuleNotFoundError("no")) is None


def test_commands_name_packages_with_declared_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.6", "PyYAML>=6", "gguf>=0.17 ; extra == 'gguf'", 'lm-eval>=0.4.13; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: lines)
    assert install_command("torch", "PyYAML", "lm-eval", "pandas") == (
        'pip install "torch>=2.6" "PyYAML>=6" "lm-eval>=0.4.13" pandas'
    )
    check_installed("this needs", "numpy", "PyYAML")


def test_readme_and_pyproject_list_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split("[<>=]", line)[0] for line in project["dependencies"]}
    assert declared == {*LIGHT_PACKAGES, *MODEL_PACKAGES, *OTHER_PACKAGES}
    command = f"pip install {' '.join(LIGHT_PACKAGES)} && pip install --no-deps ."
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
