"""One contender in a process of its own, which does what it is told, line by line on stdin, and answers in JSON.

prepare          write its format
start            open, first batch: {"first", "version"}
mixture BATCHES  draw so many batches from the start: {"off"}
resume BATCHES   draw so many batches, save, open anew from the state: {"seconds", "bytes"}
rate SECONDS     {"rate": rows per second}
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tokens import BATCH, IDS, off_by

DRAINED = 32  # batches: what workers read ahead while others were measured


class Contender:
    """A peer's loader, measured from outside."""

    def __init__(self, name: str, data: Path, seq_len: int, workers: int) -> None:
        self.name, self.where = name, (data, seq_len, workers)
        self.peer = import_module(f"peers.{name}")
        self.loader: Any = None

    def prepare(self) -> dict[str, Any]:
        """Writes its format, once."""
        data, seq_len, _ = self.where
        done = data / f"{self.name}-{seq_len}.done"
        if not done.exists():
            self.peer.prepare(data, seq_len)
            done.touch()
        return {}

    def start(self) -> dict[str, Any]:
        """Seconds until the first batch, imports not counted."""
        started = time.perf_counter()
        self.loader = self.peer.Loader(*self.where)
        batch = np.asarray(next(self.loader))
        first = time.perf_counter() - started
        assert batch.dtype == np.int64, batch.dtype
        assert batch.shape == (BATCH, self.where[1]), batch.shape
        return {"first": first, "version": self.peer.VERSION}

    def mixture(self, batches: int) -> dict[str, Any]:
        """Rows that the worst domain is off, after so many batches."""
        loader = self.peer.Loader(*self.where)
        return {"off": off_by(np.concatenate([np.asarray(next(loader))[:, 0] // IDS for _ in range(batches)]))}

    def resume(self, batches: int) -> dict[str, Any]:
        """Seconds from a state to the next batch, and the size of the state."""
        if not hasattr(self.peer.Loader, "state"):
            return {"seconds": None, "bytes": None}
        loader = self.peer.Loader(*self.where)
        for _ in range(batches):
            next(loader)
        state = loader.state()
        saved = len(pickle.dumps(state))
        del loader
        started = time.perf_counter()
        next(self.peer.Loader(*self.where, state=state))
        return {"seconds": time.perf_counter() - started, "bytes": saved}

    def rate(self, seconds: float) -> dict[str, Any]:
        """Rows per second."""
        for _ in range(DRAINED):
            next(self.loader)
        if self.where[2] and hasattr(self.loader, "rate"):
            return {"rate": self.loader.rate(seconds)}
        batches = 0
        started = time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds:
            batch = next(self.loader)  # the last one is let go when the next is there, as in a for loop
            batches += 1
        del batch
        return {"rate": batches * BATCH / taken}


def main() -> None:
    """Serves until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("seq_len", type=int)
    parser.add_argument("workers", type=int)
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    contender = None
    for line in sys.stdin:
        verb, *numbers = line.split()
        try:
            contender = contender or Contender(**vars(arguments))
            answer = getattr(contender, verb)(*map(float if verb == "rate" else int, numbers))
        except ImportError as error:
            answer = {"missing": str(error)}
        except Exception as error:  # shown in the table in place of a figure
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
