"""NumPy reference of the sampler: short plain Python that `rust/core` must match draw by draw.

Run as a program, it writes `golden/sampler.json`, which the tests in Rust and Python read. A change in that file
changes the rows that a seed yields, which is value-breaking and belongs in the changelog.
"""

import itertools
import json
import math
import operator
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import numpy as np

TOTAL = 1 << 42
TABLE_ROWS = 1 << 11
DRAW, BATCH, EPOCH = range(3)
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def philox(seed: int, counter: list[int]) -> list[int]:
    """Return a block of Philox4x32-10 (Salmon et al. 2011)."""
    x, key = counter, [seed & U32, seed >> 32]
    for _ in range(10):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(right >> 32) ^ x[1] ^ key[0], right & U32, (left >> 32) ^ x[3] ^ key[1], left & U32]
        key = [(key[0] + 0x9E3779B9) & U32, (key[1] + 0xBB67AE85) & U32]
    return x


def words(seed: int, purpose: int, domain: int, index: int) -> Iterator[int]:
    for block in itertools.count():
        x = philox(seed, [index & U32, index >> 32, block, domain << 2 | purpose])
        yield x[0] | x[1] << 32
        yield x[2] | x[3] << 32


def fisher_yates(items: list, random: Iterator[int]) -> list:
    """Shuffle with two positions per 64-bit word: the second comes from the low half of the first product."""
    items = list(items)
    word = 0
    for k, left in enumerate(range(len(items), 1, -1)):
        if k % 2 == 0:
            word = next(random)
        other, word = divmod(word * left, 1 << 64)
        items[left - 1], items[other] = items[other], items[left - 1]
    return items


def keyed(x: int, key: int, n: int) -> int:
    h = (x ^ key) * 0x9E3779B97F4A7C15 & U64
    h ^= h >> 32
    h = h * 0x9FB21C651E98DF25 & U64
    return (h >> 32) * n >> 32


def feistel(x: int, n: int, keys: list[int]) -> int:
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    while True:
        left, right = divmod(x, b)
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            left = (left + keyed(right, first, a)) % a
            right = (right + keyed(left, second, b)) % b
        x = left * b + right
        if x < n:
            return x


def row(seed: int, domain: int, n: int, position: int) -> int:
    epochs = max(1, TABLE_ROWS // n)
    period, within = divmod(position, epochs * n)
    random = words(seed, EPOCH, domain, period)
    if n > TABLE_ROWS:
        return feistel(within, n, list(itertools.islice(random, 8)))
    table = [fisher_yates(list(range(n)), random) for _ in range(within // n + 1)]
    return table[-1][within % n]


def quantise(weights: list[float]) -> list[int]:
    largest = max(weights)
    scaled = [w / largest for w in weights]
    total = reduce(operator.add, scaled)  # `sum` rounds otherwise from Python 3.12 on
    exact = [w / total * TOTAL for w in scaled]
    units = [math.floor(x) for x in exact]
    by_remainder = sorted((i for i, w in enumerate(weights) if w > 0), key=lambda i: (-(exact[i] - units[i]), i))
    for i in itertools.islice(itertools.cycle(by_remainder), TOTAL - sum(units)):
        units[i] += 1
    return units


class Balanced:
    """Earliest deadline first (EDF): Tijdeman's chairman assignment (1980), with credits across changes of weights."""

    def __init__(self, weights: list[float]) -> None:
        self.units = quantise(weights)
        self.credit = [0] * len(weights)

    def set_weights(self, weights: list[float]) -> None:
        self.units = quantise(weights)
        self.credit = [c if u else 0 for c, u in zip(self.credit, self.units, strict=True)]
        total = sum(self.credit)
        size = sum(c for c in self.credit if c * total > 0)
        self.credit = [c - _toward_zero(c * total, size) if c * total > 0 else c for c in self.credit]
        for i, c in enumerate(self.credit):
            left = sum(self.credit)
            if c * left > 0:
                self.credit[i] -= min(left, c, key=abs)

    def draw(self) -> int:
        n = sum(unit > 0 for unit in self.units)
        release = -(-TOTAL // max(1, 2 * n - 2))
        limit = TOTAL - release
        self.credit = [c + u for c, u in zip(self.credit, self.units, strict=True)]
        # Draws until the deadline, when the credit exceeds the limit: 0 for a domain that must be drawn now.
        due = {i: (limit - c) // u + 1 for i, (c, u) in enumerate(zip(self.credit, self.units, strict=True)) if u}
        best = min((i for i in due if self.credit[i] >= release), key=lambda i: (due[i], i))
        if due[best] < 0:
            best = max((i for i in due if due[i] <= 0), key=lambda i: (self.credit[i], -i))
        self.credit[best] -= TOTAL
        return best


def _toward_zero(x: int, y: int) -> int:
    return abs(x) // abs(y) * (1 if (x > 0) == (y > 0) else -1)


class Sampler:
    """Batches of (domain, row)."""

    def __init__(self, rows: list[int], weights: list[float], batch_size: int, seed: int, draw: str) -> None:
        self.rows, self.batch_size, self.seed, self.kind = rows, batch_size, seed, draw
        self.mixture = Balanced(weights)
        self.drawn = [0] * len(rows)
        self.step = 0

    def set_weights(self, weights: list[float]) -> None:
        self.mixture.set_weights(weights)

    def next_batch(self) -> list[tuple[int, int]]:
        batch = []
        random = words(self.seed, DRAW, 0, self.step)
        for _ in range(self.batch_size):
            domain = self.mixture.draw() if self.kind == "balanced" else self._independent(next(random))
            batch.append((domain, row(self.seed, domain, self.rows[domain], self.drawn[domain])))
            self.drawn[domain] += 1
        if self.kind == "balanced":
            batch = fisher_yates(batch, words(self.seed, BATCH, 0, self.step))
        self.step += 1
        return batch

    def _independent(self, word: int) -> int:
        left = word >> 22
        for domain, unit in enumerate(self.mixture.units):
            if left < unit:
                return domain
            left -= unit
        raise AssertionError("the units sum to TOTAL")


def documents(tokens: np.ndarray, end_token: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the document ends in the concatenated rows, and each token's position in its document."""
    last = tokens == end_token
    last[:, -1] = True
    ends = np.concatenate([[0], np.flatnonzero(last) + 1])
    starts = np.repeat(ends[:-1], np.diff(ends))
    return ends, (np.arange(tokens.size) - starts).reshape(tokens.shape)


def shuffle_case(seed: int, domain: int, rows: int, positions: list[int]) -> dict:
    return {
        "seed": seed,
        "domain": domain,
        "rows": rows,
        "positions": positions,
        "expected": [row(seed, domain, rows, position) for position in positions],
    }


def stream_case(rows: list[int], seed: int, batch_size: int, draw: str, history: list[tuple[list[float], int]]) -> dict:
    sampler = Sampler(rows, history[0][0], batch_size, seed, draw)
    stages = []
    for stage, (weights, count) in enumerate(history):
        if stage:
            sampler.set_weights(weights)
        stages.append({"weights": weights, "batches": [sampler.next_batch() for _ in range(count)]})
    return {"rows": rows, "seed": seed, "batch_size": batch_size, "draw": draw, "stages": stages}


RED_PAJAMA = [0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15]


def golden() -> dict:
    return {
        "shuffles": [
            shuffle_case(17, 0, 1, [0, 1, 2]),
            shuffle_case(17, 0, 6, list(range(18))),
            shuffle_case(2**64 - 1, 3, 1000, [0, 1, 999, 1000, 2000, 1_000_000_007]),
            shuffle_case(17, 1, 2**11, [0, 1, 2047, 2048]),
            shuffle_case(17, 1, 2**11 + 1, [0, 1, 2048, 2049]),
            shuffle_case(17, 16_383, 10**9 + 7, [0, 1, 2, 10**9 + 6, 10**12]),
            shuffle_case(1, 0, 2**48 - 59, [0, 1, 2, 2**47, 2**62]),
        ],
        "streams": [
            stream_case([500, 40, 30, 5, 60, 20, 100_000], 17, 32, "balanced", [(RED_PAJAMA, 4)]),
            stream_case(
                [50, 7, 20],
                2**40 + 1,
                12,
                "balanced",
                [([0.5, 0.3, 0.2], 2), ([0.0, 0.9, 0.1], 3), ([1.0, 0.0, 0.0], 1), ([0.31, 0.3, 0.39], 3)],
            ),
            stream_case([50, 7, 20], 3, 12, "random", [([0.5, 0.3, 0.2], 3), ([0.0, 0.9, 0.1], 3)]),
            stream_case([9], 0, 4, "balanced", [([2.0], 5)]),
        ],
    }


if __name__ == "__main__":
    text = json.dumps(golden(), indent=1)
    (Path(__file__).parent / "golden" / "sampler.json").write_text(text + "\n")
