"""The tutorials and notebooks run, and print what they show; the troubleshooting page quotes messages of the source."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from drpruning.cli import main

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PARTS = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+−]?\d[\d.,]*(?:e[-+]?\d+)?")


def commands(console: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a console block and the lines that it should print."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, lines = "", part.splitlines()
        while lines:
            line = lines.pop(0)
            command += line.removesuffix("\\")
            if not line.endswith("\\"):
                break
        yield command, lines


def printed(command: str) -> str:
    """Run a command, `drpruning` in this process; return stdout, without what goes to a file, and stderr."""
    if not command.startswith("drpruning "):
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)  # noqa: S602 - our pages
        return done.stdout + done.stderr
    arguments, _, file = command.partition(" > ")
    output = io.StringIO()
    errors = io.StringIO() if file else output
    with redirect_stdout(output), redirect_stderr(errors):
        main(shlex.split(arguments)[1:])
    if file:
        Path(file).write_text(output.getvalue(), encoding="utf-8")
    return errors.getvalue()


def comparable(line: str) -> str:
    """Return a line without what differs between machines and terminals: numbers and widths of columns."""
    return " ".join(NUMBER.sub("0", line).split())


def check_lines(shown: list[str], output: str) -> None:
    """Check that the lines of a page occur in the output, in order; `...` in a line matches any text."""
    rest = iter([comparable(line) for line in output.splitlines()])
    for line in shown:
        if line.strip() not in ("", "..."):
            pattern = re.escape(comparable(line)).replace(r"\.\.\.", ".*")
            assert any(re.fullmatch(pattern, each) for each in rest), f"not printed: {line}\n{output}"


def test_a_line_that_is_not_printed_is_found() -> None:
    check_lines(["loss 2.1", "...", "weight  0.5 web"], "loss 3.25\nother\nweight 0.75   web\n")
    with pytest.raises(AssertionError, match="not printed: weights"):
        check_lines(["weights 0.5"], "weight 0.5")


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore")  # of other packages, which a reader sees as well
def test_a_tutorial_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path / "cache"))
    names: dict[str, Any] = {"__name__": "__main__"}
    found = PARTS.findall(page.read_text(encoding="utf-8"))
    assert found
    for kind, text in found:
        if kind == "python":
            exec(compile(text, str(page), "exec"), names)  # noqa: S102 - our own documentation
        else:
            for command, shown in commands(text):
                check_lines(shown, printed(command))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path / "cache"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            output = io.StringIO()
            with redirect_stdout(output):
                exec(compile("".join(cell["source"]), str(notebook), "exec"), names)  # noqa: S102
            stored = [line for each in cell["outputs"] if each.get("name") == "stdout" for line in each["text"]]
            check_lines(stored, output.getvalue())


def messages() -> list[str]:
    """Return a pattern for each string of the source that has enough text to be a message."""
    patterns = []
    for path in (ROOT / "python" / "drpruning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            if sum(len(part) for part in parts if part) >= 12:
                patterns.append("".join(".*" if part is None else re.escape(part) for part in parts))
    return patterns


def test_the_troubleshooting_page_quotes_messages_of_the_source() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^```text\n\w+: (.*)$", page, re.MULTILINE)
    assert len(quoted) >= 20
    assert len(set(quoted)) == len(quoted)
    where = r"(?:[\w.]+: |the recipe: )?"  # the section of a recipe, which wraps a message
    patterns = [re.compile(where + pattern) for pattern in messages()]
    assert [line for line in quoted if not any(pattern.fullmatch(line) for pattern in patterns)] == []
