"""The command line: help, errors in two lines, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from drpruning.cli import COMMANDS, group, main
from drpruning.recipes import shipped_recipes


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drpruning", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_help_lists_every_command_with_its_purpose() -> None:
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert name in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(name: str) -> None:
    result = CliRunner().invoke(group, [name, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from drpruning.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'scipy', 'numpy', 'pydantic', 'rich', 'matplotlib', 'yaml', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_recipes_are_listed_and_printed() -> None:
    listed = CliRunner().invoke(group, ["recipes"])
    assert all(name in listed.output for name in shipped_recipes())
    shown = CliRunner().invoke(group, ["recipes", "quickstart"])
    assert shown.output.startswith("# Prune a small model,")


def test_train_without_a_recipe_shows_them() -> None:
    result = CliRunner().invoke(group, ["train"])
    assert result.exit_code == 0
    assert "drpruning train quickstart" in result.output


def test_an_error_is_two_lines_and_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "quickstart", "--set", "reweight.roh=1"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "ConfigError: unknown setting reweight.roh\nDid you mean rho?\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere.yaml"], "ConfigError: no recipe 'nowhere.yaml'"),
        (
            ["train", "quickstart", "--set", "data.corpus=nowhere"],
            "ConfigError: data.corpus 'nowhere' holds no corpus.json",
        ),
        (["report", "nowhere"], "nowhere"),
        (["inspect", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_leaves_nothing_behind(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []
