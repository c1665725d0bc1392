"""A finished run with a comparison run next to it."""

from pathlib import Path

import pytest

from tests.report.synthetic import synthetic, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "quickstart", synthetic())
    write_run(folder / "compare" / "constant", synthetic("constant"))
    return folder
