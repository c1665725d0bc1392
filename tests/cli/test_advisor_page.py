"""The commands of docs/advisor.md print the output on the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "advisor.md"


def test_the_page_shows_what_the_commands_print(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (table,) = re.findall(r"^```csv\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "losses.csv").write_text(table)
    command = tmp_path / "bin" / "drpruning"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m drpruning "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    sessions = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(sessions) == 2
    for session in sessions:
        for typed, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
            result = subprocess.run(
                ["sh", "-c", typed], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
            )
            assert [line.rstrip() for line in result.stdout.splitlines()] == printed.splitlines()
