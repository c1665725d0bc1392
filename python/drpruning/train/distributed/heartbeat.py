"""Heartbeats of the ranks of a run: a rank that waits finds the rank it waits for.

An operation of gloo that waits for a lost rank fails without the rank's number, and one of NCCL does not return. So
each rank publishes in torch's store, from a thread, a counter of beats and its position: the number of marks that its
threads have passed, and the last one's name. All ranks pass the same marks in the same order. A rank without beats is
dead or stopped; among the others, the rest waits for those with the fewest marks.
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
from drpruning.train.distributed.process_identity import end_lost_process, process_identity

MAIN, BACKGROUND = "main", "background"
"""Threads of a rank that pass marks: the training loop, and the writer of checkpoints."""

BEAT = 1.0  # seconds between beats: 3 KB/s to and from the store for each of 8 ranks
BEATS_PER_TIMEOUT = 10  # beats within a timeout, for timeouts below 10 s
RANKS_PER_SECOND = 64  # more ranks beat less often: each reads all positions, 4,096 a second in total
SILENT = 10  # beats missed in a row by a rank that is dead or stopped: a busy machine delays a thread by a few
RECENT = 2  # beats missed at most by a rank that is known to be alive; between the two, the next beats decide
GRACE = 5.0  # seconds for the main thread to leave an operation of gloo, which has the same timeout and raises
FAREWELL = 10.0  # seconds that the store's host waits for the others to read its end


@dataclass(frozen=True)
class Position:
    """The position of a rank's thread in the program.

    Attributes:
        marks: Number of marks passed.
        place: Name of the last named one, e.g. ``step 5 of the prune stage``.
        since: Time of the last one, by this process's monotonic clock.
    """

    marks: int = 0
    place: str = "the start of the run"
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class RankLoss:
    """Ranks that do not answer, and the symptom; no ranks where they are unknown."""

    ranks: tuple[int, ...]
    how: str


@dataclass
class Peer:
    """The state of another rank, as last read.

    Attributes:
        beat: Its counter of beats.
        heard: Time of the counter's last change, by this process's monotonic clock.
        positions: Marks and place of each of its threads.
        end: Its error: empty for a success; None while it runs.
        loss: The loss of a rank that ended it, if any.
        process: Its identity, from :func:`process_identity`.
    """

    beat: int = -1
    heard: float = field(default_factory=time.monotonic)
    positions: dict[str, tuple[int, str]] = field(default_factory=dict)
    end: str | None = None
    loss: RankLoss | None = None
    process: str | None = None


def end_process(error: RankError) -> None:
    """Print ``error`` and end this process at once: its main thread waits for a device and cannot raise."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


class Heartbeat:
    """Publishes this rank's position, reads those of the others, and finds lost ranks.

    Two threads: one exchanges beats through the store, which may block if the store's host is stopped; the other ends
    the process if the main thread has passed no mark for ``timeout`` seconds because of a lost rank, and does not
    return from its operation.

    Args:
        store: A connection without other users.
        rank: Rank of this process.
        world_size: Number of ranks.
        timeout: Seconds that a rank waits for another.
        host: The rank whose process hosts the store; None where ``torchrun`` hosts it.
        give_up: Called from a thread with the error, in place of raising it; does not return.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        timeout: float,
        *,
        host: int | None = None,
        give_up: Callable[[RankError], None] = end_process,
    ) -> None:
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self.interval = max(min(BEAT, timeout / BEATS_PER_TIMEOUT), world_size / RANKS_PER_SECOND)
        self._store, self._host, self._give_up = store, host, give_up
        self._positions = {MAIN: Position(), BACKGROUND: Position()}
        self._peers = {number: Peer() for number in range(world_size) if number != rank}
        self._process = process_identity(os.getpid())
        self._beat = 0
        self._exchanged = time.monotonic()
        self._store_error: str | None = None
        self._loss: RankLoss | None = None
        self._end: str | None = None
        self._stopped = threading.Event()
        self._met = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"heartbeat{target.__name__}", daemon=True)
            for target in (self._exchange, self._watch)
        ]

    def start(self) -> None:
        """Publish the first beat and start the threads."""
        self._publish()
        for thread in self._threads:
            thread.start()

    def meet(self) -> None:
        """Wait until this rank has read the others' first beats, with which it can end a lost one of its machine."""
        self._met.wait(self.timeout)

    def mark(self, place: str | None = None, *, thread: str = MAIN, count: int = 1) -> None:
        """Pass a mark, as every rank does at this point of the program.

        Args:
            place: Name of the mark; None: the name of the one before.
            thread: :data:`MAIN` or :data:`BACKGROUND`.
            count: Number of marks.
        """
        before = self._positions[thread]
        self._positions[thread] = Position(before.marks + count, place or before.place)

    def explain(self, error: BaseException) -> RankError:
        """Return the error with the lost rank for torch's error of a dead or silent rank.

        Waits until the beats of a dead rank are missed.
        """
        until = time.monotonic() + 2 * SILENT * self.interval
        while (loss := self.find()) is None and time.monotonic() < until:
            time.sleep(self.interval / 4)
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return self.error(
            loss or RankLoss((), f"the connection between ranks failed, and all send heartbeats: {first_line}")
        )

    def find(self) -> RankLoss | None:
        """Return the lost ranks, where beats and marks show any by now."""
        peers = self._peers.items()
        if ended := [number for number, peer in peers if peer.end and peer.loss is None]:
            return RankLoss(tuple(ended), f"{self._ranks(ended)} ended with {self._peers[ended[0]].end}")
        for number, peer in peers:  # the first to find it, whose end this rank noticed
            if peer.loss is not None and self.rank in peer.loss.ranks:
                return RankLoss((number,), f"{self._ranks([number])} ended, because it assumed that this rank was lost")
            if peer.loss is not None and peer.loss.ranks:
                return peer.loss
        if (loss := self._without_store()) is not None:
            return loss
        silent = [number for number, peer in peers if peer.end is None and self._is_silent(peer)]
        if behind := self._behind():
            thread, numbers = behind
            silent = [number for number in numbers if number in silent]
            if not silent and not all(self._is_alive(self._peers[number]) for number in numbers):
                return None
            if not silent:
                place = self._peers[numbers[0]].positions[thread][1]
                return RankLoss(
                    tuple(numbers),
                    f"{self._ranks(numbers)} sends heartbeats but did not arrive in time: it is in {place}",
                )
        if not silent:
            return None
        return RankLoss(
            tuple(silent), f"{self._ranks(silent)} sends no heartbeat: it was killed or stopped, or its machine was"
        )

    def error(self, loss: RankLoss) -> RankError:
        """Return the error of a loss, with ranks, place and timeout; :meth:`leave` publishes the loss."""
        self._loss = loss
        return RankError(
            f"{loss.how}; rank {self.rank} waited in {self._positions[MAIN].place} "
            f"(limit: training.distributed_timeout_s, {self.timeout:g} s)",
            "The newest checkpoint is complete: start all ranks again with --resume.",
            ranks=loss.ranks,
        )

    def leave(self, error: BaseException | None = None) -> None:
        """Publish this rank's end and stop the threads; the store's host then waits for the others, briefly.

        Ranks of this machine whose loss ends this rank are ended too, if they are silent.
        """
        self._end = "" if error is None else f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        self._stopped.set()
        exchange = self._threads[0]
        exchange.join(SILENT * self.interval)  # it publishes the end; where the store is stopped, it does not return
        self._end_lost_ranks()
        if exchange.is_alive() or self._store_error is not None or self.rank != self._host:
            return
        until = time.monotonic() + min(FAREWELL, self.timeout)
        while self._any_running() and time.monotonic() < until:
            time.sleep(self.interval / 4)
            self._read()

    # ---- inside

    def _end_lost_ranks(self) -> None:
        """End the silent ranks of the loss that run on this machine: a stopped one handles no SIGTERM."""
        for number in self._loss.ranks if self._loss is not None else ():
            peer = self._peers.get(number)
            if peer is not None and peer.end is None and time.monotonic() - peer.heard > SILENT * self.interval:
                end_lost_process(peer.process)

    def _without_store(self) -> RankLoss | None:
        """Return the loss of the store's host, if the store does not answer."""
        if self._store_error is None and time.monotonic() - self._exchanged <= SILENT * self.interval:
            return None
        why = self._store_error or f"no answer for {time.monotonic() - self._exchanged:.3g} s"
        if self._host is None:
            return RankLoss((), f"the store of torchrun does not answer ({why}), so the lost rank is not known")
        return RankLoss((self._host,), f"{self._ranks([self._host])}, the host of the store, does not answer ({why})")

    def _behind(self) -> tuple[str, list[int]] | None:
        """Return a thread and its ranks with the fewest marks, if this rank has more and waited for its timeout."""
        for thread, own in self._positions.items():
            if time.monotonic() - own.since < 0.9 * self.timeout:  # gloo counts its timeout from a moment later
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
        """Return whether several beats are missed, as of this rank's last read."""
        return self._exchanged - peer.heard > SILENT * self.interval

    def _is_alive(self, peer: Peer) -> bool:
        """Return whether at most :data:`RECENT` beats are missed, as of this rank's last read."""
        return self._exchanged - peer.heard <= RECENT * self.interval

    def _ranks(self, numbers: Iterable[int]) -> str:
        """Return ranks in words, as a subject in the singular."""
        listed = [str(number) for number in numbers]
        return f"{'rank' if len(listed) == 1 else 'each of ranks'} {', '.join(listed)} of {self.world_size}"

    def _any_running(self) -> bool:
        """Return whether another rank beats and has not ended."""
        return any(peer.end is None and not self._is_silent(peer) for peer in self._peers.values())

    def _publish(self) -> None:
        self._beat += 1
        body: dict[str, Any] = {"beat": self._beat, "end": self._end}
        body["positions"] = {thread: (at.marks, at.place) for thread, at in self._positions.items()}
        body["process"] = self._process
        body["loss"] = None if self._loss is None else asdict(self._loss)
        self._store.set(str(self.rank), json.dumps(body))

    def _read(self) -> None:
        """Read the state of the others; every rank has published before any reads."""
        values = self._store.multi_get([str(number) for number in self._peers])
        now = time.monotonic()
        for peer, value in zip(self._peers.values(), values, strict=True):
            body = json.loads(value)
            if body["beat"] != peer.beat:
                peer.beat, peer.heard = body["beat"], now
            peer.positions = {thread: (marks, place) for thread, (marks, place) in body["positions"].items()}
            peer.end, peer.process = body["end"], body["process"]
            if (loss := body["loss"]) is not None:
                peer.loss = RankLoss(tuple(loss["ranks"]), loss["how"])
        self._exchanged = now

    def _exchange(self) -> None:
        """Publish and read until this rank has ended, its end included, or the store is gone."""
        stopped, pause = False, 0.0
        while not stopped:
            stopped, pause = self._stopped.wait(pause), self.interval
            try:
                self._publish()
                self._read()
            except RuntimeError as error:
                self._store_error = (str(error).strip() or type(error).__name__).splitlines()[0]
                return
            finally:
                self._met.set()

    def _watch(self) -> None:
        """Call ``give_up`` if the main thread has passed no mark for the timeout and does not leave its operation."""
        found: float | None = None
        while not self._stopped.wait(self.interval):
            waits = time.monotonic() - self._positions[MAIN].since > self.timeout
            loss = self.find() if waits else None
            if loss is None:
                found = None
                continue
            found = found or time.monotonic()
            if time.monotonic() - found > min(GRACE, self.timeout):
                error = self.error(loss)
                self._end_lost_ranks()
                self._give_up(error)
                return
