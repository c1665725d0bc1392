"""Heartbeats of the ranks of a run, by which a rank that waits finds out which other rank it waits for.

An operation of gloo or NCCL that waits for a lost rank fails without its number, and one of NCCL does not return at
all. So each rank publishes in torch's store, from a thread, a counter of beats and its position: how many marks its
threads have passed, and where. All ranks pass the same marks in the same order. A rank without beats is dead or
stopped; among the others, those with the fewest marks are what the rest waits for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined] # documented there

from drpruning.errors import RankError

MAIN, BACKGROUND = "main", "background"
"""Threads of a rank that pass marks: training, and the writer of checkpoints."""

BEAT = 1.0  # seconds between beats: 3 KB/s to and from the store for each of 8 ranks
BEATS_OF_LIMIT = 10  # at least so many beats within a limit, for limits below 10 s
RANKS_PER_SECOND = 64  # more ranks beat less often: each reads the positions of all, 4,096 a second together
SILENT = 10  # beats missed in a row by a rank that is dead or stopped: a busy machine delays a thread by a few
GRACE = 10.0  # seconds for the main thread to leave an operation of gloo, whose limit is the same


@dataclass(frozen=True)
class Position:
    """Where a thread of a rank is.

    Attributes:
        marks: How many marks it has passed.
        place: The last one that has a name, e.g. ``step 5 of the prune stage``.
        since: When it passed the last one, by this process's monotonic clock.
    """

    marks: int = 0
    place: str = "the start of the run"
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Loss:
    """Ranks that do not answer, and how that shows; no ranks where it is not known which."""

    ranks: tuple[int, ...]
    how: str


@dataclass
class Peer:
    """What this rank has read of another.

    Attributes:
        beat: Its counter of beats.
        heard: When the counter changed, by this process's monotonic clock.
        positions: Marks and place of each of its threads.
        end: How it ended: empty for a success; None while it is at work.
        loss: Why it ended, where that was the loss of a rank.
    """

    beat: int = -1
    heard: float = field(default_factory=time.monotonic)
    positions: dict[str, tuple[int, str]] = field(default_factory=dict)
    end: str | None = None
    loss: Loss | None = None


def end_process(error: RankError) -> None:
    """Print ``error`` and ends this process at once: its main thread waits for a device and cannot raise."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


class Heartbeat:
    """Publishes where this rank is, reads where the others are, and names those that are lost.

    Two threads: one exchanges beats through the store, where it may block if the store's host is stopped; the other
    ends the process where the main thread has passed no mark for ``limit`` seconds because of a lost rank, and does
    not return from what it waits for.

    Args:
        store: A connection that nothing else uses.
        rank: Of this process.
        world_size: Number of ranks.
        limit: Seconds a rank waits for another before it gives up.
        host: The rank whose process hosts the store; None where ``torchrun`` does.
        give_up: Called with the error in place of raising it, from a thread; does not return.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        limit: float,
        *,
        host: int | None = None,
        give_up: Callable[[RankError], None] = end_process,
    ) -> None:
        self.rank, self.world_size, self.limit = rank, world_size, limit
        self.interval = max(min(BEAT, limit / BEATS_OF_LIMIT), world_size / RANKS_PER_SECOND)
        self._store, self._host, self._give_up = store, host, give_up
        self._positions = {MAIN: Position(), BACKGROUND: Position()}
        self._peers = {number: Peer() for number in range(world_size) if number != rank}
        self._beat = 0
        self._exchanged = time.monotonic()
        self._store_error: str | None = None
        self._loss: Loss | None = None
        self._end: str | None = None
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"heartbeat{target.__name__}", daemon=True)
            for target in (self._exchange, self._watch)
        ]

    def start(self) -> None:
        """Publish the first beat and starts the threads."""
        self._publish()
        for thread in self._threads:
            thread.start()

    def mark(self, place: str | None = None, *, thread: str = MAIN, count: int = 1) -> None:
        """Pass a mark, as every rank does at this point of the program.

        Args:
            place: Names it; missing: the name of the one before.
            thread: :data:`MAIN` or :data:`BACKGROUND`.
            count: Marks to pass.
        """
        before = self._positions[thread]
        self._positions[thread] = Position(before.marks + count, place or before.place)

    def explain(self, error: BaseException) -> RankError:
        """The error to raise for one of torch's that says that some rank is gone or silent.

        Waits until the beats of a dead rank are missed.
        """
        until = time.monotonic() + 2 * SILENT * self.interval
        while (loss := self.find()) is None and time.monotonic() < until:
            time.sleep(self.interval / 4)
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return self.error(
            loss or Loss((), f"the connection between ranks failed, and all send heartbeats: {first_line}")
        )

    def find(self) -> Loss | None:
        """The ranks that are lost, as far as beats and marks show it by now."""
        peers = self._peers.items()
        if ended := [number for number, peer in peers if peer.end and peer.loss is None]:
            return Loss(tuple(ended), f"{self._ranks(ended)} ended with {self._peers[ended[0]].end}")
        for number, peer in peers:  # those that found out first, and whose end is what this rank noticed
            if peer.loss is not None and self.rank in peer.loss.ranks:
                return Loss((number,), f"{self._ranks([number])} ended, as it took this rank for lost")
            if peer.loss is not None and peer.loss.ranks:
                return peer.loss
        if (loss := self._without_store()) is not None:
            return loss
        silent = [number for number, peer in peers if peer.end is None and self._is_silent(peer)]
        if behind := self._behind():
            thread, numbers = behind
            silent = [number for number in numbers if number in silent]
            if not silent:
                place = self._peers[numbers[0]].positions[thread][1]
                return Loss(
                    tuple(numbers),
                    f"{self._ranks(numbers)} sends heartbeats but did not arrive in time: it is in {place}",
                )
        if not silent:
            return None
        return Loss(
            tuple(silent), f"{self._ranks(silent)} sends no heartbeat: it was killed or stopped, or its machine was"
        )

    def error(self, loss: Loss) -> RankError:
        """A loss as an error: ranks, place and limit; :meth:`leave` publishes the loss."""
        self._loss = loss
        return RankError(
            f"{loss.how}; rank {self.rank} waited in {self._positions[MAIN].place} "
            f"(limit: training.timeout, {self.limit:g} s)",
            "The newest checkpoint is complete: start all ranks again with --resume.",
            ranks=loss.ranks,
        )

    def leave(self, error: BaseException | None = None) -> None:
        """Publish how this rank ended and stops the threads; the store's host then waits for the others, briefly."""
        self._end = "" if error is None else f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        self._stopped.set()
        exchange = self._threads[0]
        exchange.join(SILENT * self.interval)  # it publishes the end; where the store is stopped, it does not return
        if exchange.is_alive() or self._store_error is not None or self.rank != self._host:
            return
        until = time.monotonic() + min(GRACE, self.limit)
        while self._at_work() and time.monotonic() < until:
            time.sleep(self.interval / 4)
            self._read()

    # ---- inside

    def _without_store(self) -> Loss | None:
        """The loss of the store's host, if its store does not answer."""
        if self._store_error is None and time.monotonic() - self._exchanged <= SILENT * self.interval:
            return None
        why = self._store_error or f"no answer for {time.monotonic() - self._exchanged:.3g} s"
        if self._host is None:
            return Loss((), f"the store of torchrun does not answer ({why}), so the lost rank is not known")
        return Loss((self._host,), f"{self._ranks([self._host])}, the host of the store, does not answer ({why})")

    def _behind(self) -> tuple[str, list[int]] | None:
        """The ranks with the fewest marks in one of the threads, where this one has waited for its limit with more."""
        for thread, own in self._positions.items():
            if time.monotonic() - own.since < 0.9 * self.limit:  # gloo counts its limit from a moment later
                continue
            marks = {
                number: peer.positions[thread][0]
                for number, peer in self._peers.items()
                if peer.end is None and thread in peer.positions
            }
            fewest = min(marks.values(), default=own.marks)
            if fewest < own.marks:
                return thread, [number for number, passed in marks.items() if passed == fewest]
        return None

    def _is_silent(self, peer: Peer) -> bool:
        """Whether several beats are missed, as of the last time that this rank read them."""
        return self._exchanged - peer.heard > SILENT * self.interval

    def _ranks(self, numbers: Iterable[int]) -> str:
        """Numbers of ranks in words, as a subject in the singular."""
        listed = [str(number) for number in numbers]
        return f"{'rank' if len(listed) == 1 else 'each of ranks'} {', '.join(listed)} of {self.world_size}"

    def _at_work(self) -> bool:
        """Whether another rank beats and has not ended."""
        return any(peer.end is None and not self._is_silent(peer) for peer in self._peers.values())

    def _publish(self) -> None:
        self._beat += 1
        body: dict[str, Any] = {"beat": self._beat, "end": self._end}
        body["positions"] = {thread: (at.marks, at.place) for thread, at in self._positions.items()}
        body["loss"] = None if self._loss is None else asdict(self._loss)
        self._store.set(str(self.rank), json.dumps(body))

    def _read(self) -> None:
        """Read what the others have published; every rank has published before any reads."""
        values = self._store.multi_get([str(number) for number in self._peers])
        now = time.monotonic()
        for peer, value in zip(self._peers.values(), values, strict=True):
            body = json.loads(value)
            if body["beat"] != peer.beat:
                peer.beat, peer.heard = body["beat"], now
            peer.positions = {thread: (marks, place) for thread, (marks, place) in body["positions"].items()}
            peer.end = body["end"]
            if (loss := body["loss"]) is not None:
                peer.loss = Loss(tuple(loss["ranks"]), loss["how"])
        self._exchanged = now

    def _exchange(self) -> None:
        """Publish and reads until this rank has ended, its end included, or until the store is gone."""
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(self.interval)
            try:
                self._publish()
                self._read()
            except RuntimeError as error:
                self._store_error = (str(error).strip() or type(error).__name__).splitlines()[0]
                return

    def _watch(self) -> None:
        """Give up for a main thread that has passed no mark for the limit, and does not leave its operation either."""
        found: float | None = None
        while not self._stopped.wait(self.interval):
            waits = time.monotonic() - self._positions[MAIN].since > self.limit
            loss = self.find() if waits else None
            if loss is None:
                found = None
                continue
            found = found or time.monotonic()
            if time.monotonic() - found > min(GRACE, self.limit):
                self._give_up(self.error(loss))
                return
