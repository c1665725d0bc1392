"""Packs a folder of curves into one file: `python benches/scaling_backtest/pack.py FOLDER`, into `curves.json.gz` here.

FOLDER holds `manifest.json`, a list of runs with `id`, `group`, `source`, `licence`, `schedule`, `params` (or null) and
`losses` (names of domains), and for each run `ID.csv` with the columns `step`, `lr` (may be empty), `params` (optional)
and one for each domain. Runs whose licence does not clearly allow to pass them on are left out and counted.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import curves

LICENCES = {
    "MIT",
    "Apache-2.0",
    "MIT (repo); upstream huggingface/datablations Apache-2.0",
    "same as project",
}
"""Those that are clear for the repository and for what it took over."""


def main() -> None:
    folder = Path(sys.argv[1])
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    runs = [curves.read_run(folder, entry) for entry in entries if entry["licence"] in LICENCES]
    packed = gzip.compress(json.dumps({"runs": runs}, separators=(",", ":")).encode(), 9, mtime=0)
    Path(__file__).with_name("curves.json.gz").write_bytes(packed)
    left_out = Counter(entry["licence"] for entry in entries if entry["licence"] not in LICENCES)
    print(f"{len(runs)} runs, {len(packed)} bytes; left out: {dict(left_out)}")


if __name__ == "__main__":
    main()
