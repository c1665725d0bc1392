"""The command line: help, errors in two lines, exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from drpruning.cli import COMMANDS, DISK_ERRORS, group, main
from drpruning.recipes import load_recipe, recipe_text, shipped_recipes
from tests.report.synthetic import synthetic, write_run


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drpruning", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_help_lists_every_command_with_its_purpose() -> None:
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.short_help is not None
        assert f"  {name} " in result.output
        assert command.short_help in result.output


def every_command() -> list[list[str]]:
    """Return all commands and subcommands, by their words."""
    words = []
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        inner = sorted(command.commands) if isinstance(command, click.Group) else []
        words += [[name], *([name, each] for each in inner)]
    return words


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_each_command_has_help_with_json(words: list[str]) -> None:
    result = CliRunner().invoke(group, [*words, "--help"])
    assert result.exit_code == 0
    if words[0] != "recipes" or len(words) == 1:
        assert "Examples:" in result.output
        assert "Exit codes: 0 success" in result.output
        assert max(map(len, result.output.partition("Exit codes")[2].splitlines())) <= 80
        assert "--json" in result.output or words == ["benchmark"]


def test_each_option_has_a_help_text() -> None:
    for words in every_command():
        command: click.Command = group
        for word in words:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), word)
            assert found is not None
            command = found
        assert (command.callback.__name__ == "_".join(words)) or words[-1] in {"eval", "inspect"}
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help or option.hidden, (words, option.name)


def test_help_imports_nothing_heavy() -> None:
    loaded = _loaded_by(["--help"])
    heavy = {"torch", "transformers", "scipy", "numpy", "pydantic", "rich", "matplotlib", "yaml", "tokenizers"}
    assert heavy & loaded == set()


def test_a_command_loads_no_other_command() -> None:
    commands = {path.rpartition(".")[0] for path in COMMANDS.values()}
    assert commands & _loaded_by(["train", "--help"]) == {"drpruning.cli.train"}
    assert commands & _loaded_by(["--version"]) == set()


def _loaded_by(arguments: list[str]) -> set[str]:
    """Return the modules that a command line has imported when it ends."""
    code = (
        "import sys\n"
        "from drpruning.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print(' '.join(sys.modules), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stderr.split())


def test_recipes_are_listed_and_printed() -> None:
    listed = CliRunner().invoke(group, ["recipes"])
    assert all(name in listed.output for name in shipped_recipes())
    assert json.loads(CliRunner().invoke(group, ["recipes", "--json"]).output) == shipped_recipes()
    shown = CliRunner().invoke(group, ["recipes", "show", "quickstart"])
    assert shown.output.startswith("# Prune a small model,")


def test_a_copy_is_the_recipe_and_its_schema_accepts_all_that_are_shipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine" / "a.yaml"
    main(["recipes", "copy", "quickstart", str(mine)])
    assert capsys.readouterr().out == f"{mine}\n"
    assert load_recipe(str(mine)) == load_recipe("quickstart")
    assert "# yaml-language-server: $schema=drpruning-recipe.schema.json\n" in mine.read_text()
    schema = json.loads((mine.parent / "drpruning-recipe.schema.json").read_text())
    jsonschema = pytest.importorskip("jsonschema")
    for name in shipped_recipes():
        jsonschema.validate(yaml.safe_load(recipe_text(name)), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(recipe_text("quickstart")) | {"sede": 1}, schema)
    with pytest.raises(SystemExit):
        main(["recipes", "copy", "quickstart", str(mine)])
    assert "exists already" in capsys.readouterr().err


def test_train_without_a_recipe_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no run to resume
    result = CliRunner().invoke(group, ["train"])
    assert result.exit_code == 2
    assert "Try: drpruning train quickstart" in result.stderr


def test_train_without_a_recipe_prints_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_run(Path("runs/mine"), synthetic()[:50])
    message = CliRunner().invoke(group, ["train"]).output
    assert f"drpruning train {folder / 'recipe.yaml'} --out {folder} --resume" in message
    (folder / "metrics.jsonl").unlink()
    (folder / "recipe.yaml").unlink()
    folder.rmdir()
    write_run(Path("runs/mine"), synthetic())
    assert "drpruning report runs/mine" in CliRunner().invoke(group, ["train"]).output


@pytest.mark.parametrize("number", DISK_ERRORS, ids=lambda number: errno.errorcode[number])
def test_a_disk_that_fails_is_exit_code_three(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fsync(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SystemExit) as caught:
        main(["recipes", "copy", "quickstart", str(tmp_path / "mine.yaml")])
    assert caught.value.code == 3
    assert capsys.readouterr().err.splitlines()[-1] == "Free disk space or choose another disk, then rerun."
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_two_lines_and_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "quickstart", "--set", "mixture.roh=1"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "ConfigError: unknown setting mixture.roh\nDid you mean rho?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_wrong_input_leaves_nothing_behind(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--nonsense"], "UsageError: No such option"),
        (["trian"], "UsageError: No such command 'trian'."),
        (["report"], "UsageError: Missing argument 'RUN...'."),
        (["recipes", "show"], "UsageError: Missing argument 'NAME'."),
    ],
)
def test_wrong_usage_is_two_lines_too(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(message)
    assert "--help` lists" in second


def test_an_option_without_its_value_names_the_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "shape", "models/base", "--params", "600k", "--max-memory"])
    assert capsys.readouterr().err.splitlines()[1] == "`drpruning plan shape --help` lists the options."


def test_colours_are_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, object]] = []
    monkeypatch.setattr(click, "echo", lambda _message, **options: written.append(options))
    for value, color in (("1", False), ("", None)):
        monkeypatch.setenv("NO_COLOR", value)
        with pytest.raises(SystemExit):
            main(["inspect", "nowhere"])
        assert written[-1].get("color") is color or written[-2]["color"] is color


@pytest.mark.parametrize("words", [["recipes", "schema"], ["--help"], ["recipes"], ["plan", "cost", "quickstart"]])
def test_a_reader_that_goes_is_no_error(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "drpruning", *words]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


def test_shells_complete_commands_and_recipes() -> None:
    def complete(*words: str) -> list[str]:
        found = ShellComplete(group, {}, "drpruning", "_X").get_completions(list(words[:-1]), words[-1])
        return [item.value for item in found]

    assert complete("re") == ["report", "recipes"]
    assert complete("train", "quick") == ["quickstart"]
    assert complete("recipes", "show", "llama2-7b-to-2") == ["llama2-7b-to-2.7b"]
    assert "--watch" in complete("report", "--w")
