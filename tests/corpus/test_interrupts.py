"""Ctrl-C while a whole compressed shard is read: the exception of the handler, soon, and no copy in the cache."""

from __future__ import annotations

import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

import drpruning as dp
from tests.corpus.test_bombs import write_shard

SIZE = 512 << 20
"""Bytes of the shard: at least a tenth of a second of processor time; a test ends it after the second hundredth."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs timers of processor time")


@contextmanager
def interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block at the second signal of a timer of processor time, and expect it from there.

    Signals during a call that checks for none are one signal at its end. The timer counts system time too, most of the
    time of writing a copy.
    """
    number_of_signals, over = 0, False

    def count(number: int, frame: FrameType | None) -> None:
        nonlocal number_of_signals
        number_of_signals += 1
        if number_of_signals == 2 and not over:
            signal.setitimer(signal.ITIMER_PROF, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGPROF, count)
    try:
        signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        over = True  # an exception outside of the block would end pytest
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a compressed shard."""
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder, struct.pack("<IIII", 1, 12, SIZE, SIZE - 16) + bytes(SIZE - 16), samples=1)
    return folder


def test_ctrl_c_ends_a_verification(shard: Path) -> None:
    corpus = dp.Corpus({"web": str(shard)}, dtype="uint16")
    with interrupted():
        corpus.verify()


def test_ctrl_c_ends_the_writing_of_a_copy(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path))
    corpus = dp.Corpus({"web": str(shard)}, dtype="uint16")
    with interrupted():
        corpus.read_rows("web", [0], 8)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_dropped_sampler_ends_the_writing_of_a_copy(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path))
    corpus = dp.Corpus({"web": str(shard)}, dtype="uint16")
    sampler = dp.DomainSampler(corpus, {"web": 1.0}, seq_len=8, batch_size=2, prefetch=1)

    def stop(number: int, frame: FrameType | None) -> None:
        if any(path.is_file() for path in tmp_path.rglob("*")):  # the thread is writing
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with pytest.raises(KeyboardInterrupt):
        next(sampler)
    signal.signal(signal.SIGALRM, before)
    del sampler
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
