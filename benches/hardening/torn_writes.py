"""Replay the recorded writes of a command as a crash may leave them, and check that each state is old or new.

    python -m benches.hardening.torn_writes                             # all commands
    python -m benches.hardening.torn_writes checkpoint --random 50

``file_faults.c`` records the file operations of a command. A crash after the k-th keeps what was flushed before: the
content of a file by ``fsync`` of the file, the names in a folder by ``fsync`` of the folder. Every other operation is
kept or lost, in any combination; of a write, one half may be kept (Pillai et al., "All File Systems Are Not Created
Equal", 2014, section 3). A rename is atomic, as in that model. For each k these states are made: nothing else kept,
everything, all names without content, with halves, all content without names, one single operation, and random choices.
Equal states are read once. In some old states of a command, it is run again and must write the bytes of an undisturbed
run. ``docs/reliability.md`` has the results.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benches.hardening.file_faults import (
    OFF,
    Command,
    Fault,
    Runner,
    checksum,
    commands,
    import_package,
    load_shim,
    make_source,
)

LOST, HALF, KEPT = range(3)
HEAD = struct.Struct("=qqqiiii")
"""Inode, position, bytes, bytes of both paths, kind, padding."""


@dataclass(frozen=True)
class Operation:
    """A recorded operation: its kind (see ``file_faults.c``), inode, paths, position, bytes."""

    kind: str
    inode: int
    path: str
    other: str
    at: int
    content: bytes


def read_journal(path: Path) -> list[Operation]:
    """Return the operations that ``file_faults.c`` has recorded."""
    operations = []
    with path.open("rb") as file:
        while head := file.read(HEAD.size):
            inode, at, count, first, second, kind, _ = HEAD.unpack(head)
            names = [os.path.normpath(file.read(size).decode()) if size else "" for size in (first, second)]
            operations.append(Operation(chr(kind), inode, *names, at, file.read(count)))
    return operations


@dataclass
class File:
    """A file or folder, apart from its name."""

    content: bytes = b""
    is_folder: bool = False


@dataclass(frozen=True)
class Change:
    """A change of one file's content, or of names in folders.

    Attributes:
        flushed: Number of operations after which a crash keeps it; more than there are if it is never flushed.
        write: File, position and bytes of a write; without bytes, the file is truncated there.
        names: Folder, name and file (None: removed) of each new name.
    """

    number: int
    flushed: int
    write: tuple[int, int, bytes] | None = None
    names: tuple[tuple[int, str, int | None], ...] = ()


class Recording:
    """The changes of a command, and the states that a crash may leave.

    Args:
        folder: The folder; its content is the state before the command.
        operations: The operations below it.
    """

    def __init__(self, before: Path, folder: Path, operations: list[Operation]) -> None:
        self.folder, self.operations = folder, operations
        self.files: list[File] = []
        self.names: dict[tuple[int, str], int] = {}
        self._scan(before)
        self.changes = self._changes()

    def _scan(self, folder: Path) -> int:
        number = len(self.files)
        self.files.append(File(is_folder=True))
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                self.names[number, path.name] = self._scan(path)
            else:
                self.names[number, path.name] = len(self.files)
                self.files.append(File(path.read_bytes()))
        return number

    def _changes(self) -> list[Change]:
        """Follow the operations in order: the files that their paths mean, and the flush that keeps each change."""
        names, by_inode = dict(self.names), dict[int, int]()
        flushes: list[tuple[int, int]] = []
        found: list[tuple[int, tuple[int, int, bytes] | None, list[tuple[int, str, int | None]]]] = []

        def find(path: str) -> int | None:
            if not Path(path).is_relative_to(self.folder):
                return None
            file: int | None = 0
            for part in Path(path).relative_to(self.folder).parts:
                file = None if file is None else names.get((file, part))
            return file

        def place(path: str) -> tuple[int, str] | None:
            folder = find(str(Path(path).parent))
            return None if folder is None else (folder, Path(path).name)

        def rename(number: int, new: list[tuple[int, str, int | None]]) -> None:
            for folder, name, file in new:
                names.pop((folder, name), None)
                if file is not None:
                    names[folder, name] = file
            found.append((number, None, new))

        for number, operation in enumerate(self.operations, 1):
            where, file = place(operation.path), find(operation.path)
            known = by_inode.get(operation.inode)
            if operation.kind in "SWT" and file is None and known is not None and where:
                # Some libraries rename by their own system call, which the shim does not see.
                before = [key for key, value in names.items() if value == known]
                rename(number, [(*where, known), *((*key, None) for key in before)])
                file = known
            if operation.kind == "S" and file is not None:
                flushes.append((number, file))
            elif operation.kind in "WT" and file is not None:
                found.append((number, (file, operation.at, operation.content), []))
            elif operation.kind in "CM" and where:
                self.files.append(File(is_folder=operation.kind == "M"))
                by_inode[operation.inode] = len(self.files) - 1
                rename(number, [(*where, len(self.files) - 1)])
            elif operation.kind == "U" and where:
                rename(number, [(*where, None)])
            elif operation.kind == "R" and where and file is not None and (target := place(operation.other)):
                rename(number, [(*target, file), (*where, None)])
        changes = []
        for number, write, new in found:
            owner = write[0] if write else new[0][0]
            flushed = next((at for at, file in flushes if at >= number and file == owner), len(self.operations) + 1)
            changes.append(Change(number, flushed, write, tuple(new)))
        return changes

    def state(self, upto: int, choose: Callable[[Change], int]) -> dict[str, bytes | None]:
        """Return the files (None: a folder) after a crash.

        Args:
            upto: Operations before the crash.
            choose: LOST, HALF or KEPT for each change that was not flushed.
        """
        contents, names = {number: file.content for number, file in enumerate(self.files)}, dict(self.names)
        for change in self.changes:
            if change.number > upto:
                break
            kept = KEPT if change.flushed <= upto else choose(change)
            if kept == LOST:
                continue
            if change.write:
                file, at, new = change.write
                old = contents[file]
                if new:
                    new = new[: len(new) // 2] if kept == HALF else new
                    contents[file] = old[:at].ljust(at, b"\0") + new + old[at + len(new) :]
                else:
                    contents[file] = old[:at].ljust(at, b"\0")
            for folder, name, found in change.names:
                names.pop((folder, name), None)
                if found is not None:
                    names[folder, name] = found
        children: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), number in names.items():
            children.setdefault(folder, []).append((name, number))
        tree: dict[str, bytes | None] = {}

        def walk(number: int, prefix: str) -> None:
            for name, child in sorted(children.get(number, [])):
                folder = self.files[child].is_folder
                tree[prefix + name] = None if folder else contents[child]
                if folder:
                    walk(child, f"{prefix}{name}/")

        walk(0, "")
        return tree

    def crashes(self, generator: random.Random, num_random: int) -> Iterator[tuple[int, dict[str, bytes | None]]]:
        """Yield the number of operations before the crash, and each different state that it may leave."""
        seen = set()
        for upto in range(len(self.operations) + 1):
            open_changes = [change for change in self.changes if change.number <= upto < change.flushed]
            rules: list[Callable[[Change], int]] = [
                lambda _: LOST,
                lambda _: KEPT,
                lambda change: LOST if change.write else KEPT,
                lambda change: HALF if change.write else KEPT,
                lambda change: KEPT if change.write else LOST,
            ]
            rules += [lambda change, one=one: KEPT if change is one else LOST for one in open_changes if one.names]  # type: ignore[misc]
            for _ in range(num_random if open_changes else 0):
                choice = {change.number: generator.randrange(3) for change in open_changes}
                rules.append(lambda change, choice=choice: choice[change.number])  # type: ignore[misc]
            for rule in rules:
                tree = self.state(upto, rule)
                digest = hashlib.sha256(repr(sorted(tree.items())).encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield upto, tree


def write_tree(folder: Path, tree: dict[str, bytes | None]) -> None:
    """Make the files of a state in a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in tree.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


@dataclass
class Scenario:
    """What is recorded, and how a state is read.

    Attributes:
        before: Makes the old state in the folder.
        write: The recorded operations; runs in the folder, in a child process.
        read: Returns ``old`` or ``new``, or what else the folder holds.
        again: Runs the command again in a state; returns whether its results are those of an undisturbed run.
    """

    before: Callable[[Path], None]
    write: Callable[[Path], None]
    read: Callable[[Path], str]
    again: Callable[[Path], str] | None = None


@dataclass
class Outcome:
    """Counts of the states of one scenario."""

    operations: int
    read: dict[str, int] = field(default_factory=lambda: {"old": 0, "new": 0})
    rerun: int = 0
    failures: list[str] = field(default_factory=list)


def checkpoint_scenario() -> Scenario:
    """Save a checkpoint over an older one, which is deleted."""
    import torch

    from drpruning.train.checkpoint import Checkpoints

    def tensors(seed: int) -> dict[str, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return {"model": {"weight": torch.randn(64, 32, generator=generator), "bias": torch.ones(7) * seed}}

    def save(folder: Path, step: int) -> None:
        Checkpoints(folder / "checkpoints", keep=1).save("prune", step, tensors(step), {"step": step})

    def read(folder: Path) -> str:
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        found, damaged = checkpoints.newest("prune")
        if found is None:
            return f"no checkpoint: {damaged}"
        filled = tensors(0)
        checkpoints.restore(found, filled)
        same = all(torch.equal(filled["model"][name], saved) for name, saved in tensors(found.step)["model"].items())
        if not same or found.state != {"step": found.step}:
            return "another state"
        return "old" if found.step == 1 else "new"

    return Scenario(lambda folder: save(folder, 1), lambda folder: save(folder, 2), read)


def command_scenario(name: str, command: Command, runner: Runner, scratch: Path) -> Scenario:
    """Run a command that creates its results."""
    place = scratch / "undisturbed"
    place.mkdir()
    code, _ = runner.run(command.arguments(place), place, Fault(OFF), 0)
    expected = checksum(place, command.results)
    if code or not expected:
        raise SystemExit(f"{name} fails ({code}):\n{runner.log.read_text()}")
    shutil.rmtree(place)

    def write(folder: Path) -> None:
        from drpruning.cli import main

        if main(command.arguments(folder)):
            raise SystemExit(f"{name} fails")

    def read(folder: Path) -> str:
        found = checksum(folder, command.results)
        return {"": "old", expected: "new"}.get(found, "a part of the results")

    def again(folder: Path) -> str:
        code, _ = runner.run(command.arguments(folder), folder, Fault(OFF), 0)
        if code:
            return f"the second run fails: {runner.log.read_text(errors='replace').strip()[-300:]}"
        return read(folder)

    return Scenario(lambda folder: None, write, read, again)


def record(shim: object, scenario: Scenario, scratch: Path, log: Path) -> Recording:
    """Run the scenario's writes in a child and return what it did; the replay of all of it gives the same files."""
    folder, before, journal = scratch / "torn" / "place", scratch / "before", scratch / "journal"
    for path in (folder.parent, before):
        shutil.rmtree(path, ignore_errors=True)
    folder.mkdir(parents=True)
    scenario.before(folder)
    shutil.copytree(folder, before)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ["DRPRUNING_CACHE"] = str(scratch / "cache")
            written = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            shim.faults_arm(f"{folder.parent}/".encode(), OFF, 0, 0, 0)  # type: ignore[attr-defined]
            shim.faults_record(written)  # type: ignore[attr-defined]
            scenario.write(folder)
            code = 0
        finally:
            shim.faults_record(-1)  # type: ignore[attr-defined]
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(log.read_text(errors="replace"))
    recording = Recording(before, folder, read_journal(journal))
    found = {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}
    replayed = recording.state(len(recording.operations), lambda _: KEPT)
    if other := sorted(name for name in {*found, *replayed} if found.get(name, 0) != replayed.get(name, 0)):
        raise SystemExit(f"the recorded operations do not give the files of the command: {', '.join(other)}")
    return recording


def campaign(scenario: Scenario, recording: Recording, place: Path, num_random: int, reruns: int) -> Outcome:
    """Read every state; run again from about ``reruns`` of them at equal distances, where results are absent."""
    generator = random.Random(1)  # noqa: S311 - repeatable cases
    outcome = Outcome(len(recording.operations))
    states = list(recording.crashes(generator, num_random))
    stride = max(len(states) // reruns, 1) if reruns else 0
    for number, (upto, tree) in enumerate(states):
        write_tree(place, tree)
        try:
            found = scenario.read(place)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if found in outcome.read:
            outcome.read[found] += 1
        else:
            outcome.failures.append(f"crash after operation {upto}: {found}")
        if scenario.again and found == "old" and stride and number % stride == 0:
            outcome.rerun += 1
            if (result := scenario.again(place)) != "new":
                outcome.failures.append(f"crash after operation {upto}, run again: {result}")
    write_tree(place, recording.state(len(recording.operations), lambda _: LOST))
    if (last := scenario.read(place)) != "new":
        outcome.failures.append(f"a crash after the last operation leaves: {last}")
    return outcome


def main() -> None:
    """Run the campaigns of the command line; exit with 1 if a state is neither the old nor the new one."""
    parser = argparse.ArgumentParser(prog="python -m benches.hardening.torn_writes", description=__doc__.split("\n")[0])
    parser.add_argument("commands", nargs="*", help="of: checkpoint, report, export, prepare; default: all")
    parser.add_argument("--random", type=int, default=10, help="random choices at each operation")
    parser.add_argument("--reruns", type=int, default=40, help="states in which the command is run again")
    options = parser.parse_args()
    shim = load_shim("torn_writes")
    chosen = options.commands or ["checkpoint", "report", "export", "prepare"]
    failed = 0
    print("| command | file operations | states | old | new | run again | failures |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name).resolve()
        runner = Runner(shim, scratch / "log")
        if chosen != ["checkpoint"]:
            corpora = import_package()
            make_source(runner, scratch / "source", corpora)
            known = commands(scratch / "source", corpora)
        for command in chosen:
            scenario = (
                checkpoint_scenario()
                if command == "checkpoint"
                else command_scenario(command, known[command], runner, scratch)
            )
            recording = record(shim, scenario, scratch, scratch / "log")
            outcome = campaign(scenario, recording, scratch / "torn" / "place", options.random, options.reruns)
            states = outcome.read["old"] + outcome.read["new"] + len(outcome.failures)
            print(
                f"| {command} | {outcome.operations} | {states} | {outcome.read['old']} | {outcome.read['new']} "
                f"| {outcome.rerun} | {len(outcome.failures)} |",
                flush=True,
            )
            print("".join(f"  {failure}\n" for failure in outcome.failures[:20]), end="", file=sys.stderr, flush=True)
            failed += len(outcome.failures)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
