"""Fills in the column "worth" of docs/fidelity.md: `python benches/study/fidelity.py [RESULTS]`.

RESULTS, the results.json of `drpruning compare benches/study/recipe.yaml --methods fidelity`, is committed first.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from drpruning.comparison.results import Results, read_results
from drpruning.comparison.statistics import MEAN, WORST, Measured
from page import commit, committed

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
PART = "fidelity"
CELL = re.compile(r"`([a-z0-9-]+)`(?: \(to `([a-z-]+)`\))?: [^|\n]*\|")


def filled(page: str, results: Results) -> str:
    """The page with each cell that names a row of the study; a dash where it was not run."""
    measured = Measured(results)

    def cell(match: re.Match[str]) -> str:
        row, to = match.group(1), match.group(2) or "default"
        found = [measured.difference(metric, row, to) for metric in (WORST, MEAN)] if row in results.methods else []
        words = "; ".join(
            f"{each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]" for each in found if each is not None
        )
        return f"`{row}`{f' (to `{to}`)' if match.group(2) else ''}: {words or '–'} |"

    return CELL.sub(cell, page)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        commit(PART, read_results(Path(sys.argv[1])))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), committed(PART)), encoding="utf-8")
