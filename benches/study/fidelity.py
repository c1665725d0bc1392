"""Fills in the column "worth" of docs/fidelity.md: `python benches/study/fidelity.py [PART RESULTS]`.

With PART, a value of PARTS, and RESULTS, the results.json of `drpruning compare`, these are committed first.
`make fidelity` makes both.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from drpruning.comparison.metrics import MEAN, WORST, RunMetrics
from drpruning.comparison.results import Results

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "fidelity.md"
PARTS = {"": "fidelity", " on an even ratio": "fidelity-even"}
"""What follows a row's name in the page, and the file of its numbers."""
CELL = re.compile(r"`([a-z0-9-]+)`( on an even ratio)?(?: \(to `([a-z0-9-]+)`\))?: [^|\n]*\|")


def filled(page: str, results: dict[str, Results]) -> str:
    """The page with the numbers of each cell that names a row; a dash where it was not run."""
    measured = {part: RunMetrics(each) for part, each in results.items()}

    def cell(match: re.Match[str]) -> str:
        row, where, to = match.group(1), match.group(2) or "", match.group(3) or "default"
        part = PARTS[where]
        found = []
        if part in results and {run.method for run in results[part].runs} >= {row, to}:
            found = [measured[part].difference(metric, row, to) for metric in (WORST, MEAN)]
        numbers = [f"{each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]" for each in found if each is not None]
        named = f" (to `{to}`)" if match.group(3) else ""
        return f"`{row}`{where}{named}: {'; '.join(numbers) or '–'} |"

    return CELL.sub(cell, page)


def main() -> None:
    from page import commit, committed  # this folder's page.py: where the numbers are kept

    if len(sys.argv) > 1:
        commit(sys.argv[1], Results.model_validate_json(Path(sys.argv[2]).read_bytes()))
    there = {part: committed(part) for part in PARTS.values() if (HERE / f"{part}.json.gz").exists()}
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), there), encoding="utf-8")


if __name__ == "__main__":
    main()
