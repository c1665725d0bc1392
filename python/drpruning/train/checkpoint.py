"""Checkpoints: tensors in safetensors files, all else as JSON; a checkpoint is complete or absent.

A checkpoint is a folder ``STAGE-STEP``:

    tensors/        model and optimizer; every rank writes its part (:mod:`.tensor_files`)
    tensors.json    their index, and the settings of the optimizer
    state.json      all else
    complete.json   size and sha256 of every other file, written last

It is written to a temporary folder, flushed to the disk, and renamed, so a folder of that name is complete. A
checkpoint whose files differ from its ``complete.json``, or whose JSON has other keys or types than this version
writes, is damaged: it is reported, and the one before it is used. Sums detect damage, not an attack: who writes a
checkpoint decides the weights, but no byte of it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import distributed

from drpruning.errors import DiskError, StateError
from drpruning.files import clear_partial, new_folder, open_regular_file
from drpruning.formatting import size_in_words
from drpruning.train.cpu_staging import CpuStaging
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.tensor_files import Index, TensorEntry, TensorPart, read_tensors, split, write_tensors

FORMAT = 5
TENSORS, INDEX, STATE, COMPLETE = "tensors", "tensors.json", "state.json", "complete.json"
MAX_LISTING = 2**24
"""Bytes of a ``complete.json`` that are read: 100 bytes a file."""
_NAME = re.compile(r"(?P<stage>[a-z]+)-(?P<step>[0-9]{9})")
_SHARD = re.compile(rf"{TENSORS}/[0-9]{{5}}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk."""

    path: Path
    stage: str
    step: int
    state: dict[str, Any]
    index: Index


def _accept(state: dict[str, Any]) -> None:
    """Accept any state."""


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: The folder of the checkpoints.
        keep: Number of checkpoints of a stage to keep; older ones are deleted once a newer one is complete.
        recipe: Hash of the recipe; checkpoints of another recipe are skipped.
        ranks: The processes of the run; each makes the same calls in the same order.
        background: Copy the tensors, and write the copies while training continues; :meth:`wait` for the end.
        check: Raises StateError for a state that is damaged; called on rank 0.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        *,
        recipe: str = "",
        ranks: Ranks | None = None,
        background: bool = False,
        check: Callable[[dict[str, Any]], None] = _accept,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.recipe = recipe
        self.ranks = ranks or Ranks()
        self.check = check
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._under_way: Future[None] | None = None
        self._staging = CpuStaging()

    def save(self, stage: str, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """Write a checkpoint; a usable one of that stage and step is kept, a damaged one replaced.

        Newer checkpoints of the stage, which :meth:`newest` skipped as damaged, are deleted.

        Args:
            stage: Name of the stage, lower-case letters.
            step: Optimizer steps taken.
            tensors: Nested dict of tensors and JSON-able values, e.g. ``{"model": ..., "optimizer": ...}``.
            state: JSON-able data.

        Raises:
            DiskError: It cannot be written; the checkpoints before it are intact. In the background the next call
                raises this.
        """
        self.wait()
        target = self.folder / f"{stage}-{step:09d}"
        if self.ranks.agree(target.exists):
            if self._read_verified(target)[1] is not None:
                return
            self.ranks.do(lambda: _delete(target))
        body = {"stage": stage, "step": step, "recipe": self.recipe, "state": state}
        text = json.dumps(body, allow_nan=False)
        parts, values = split(tensors, self.ranks)
        parts = [part for part in parts if part.written]
        values = json.loads(json.dumps(values, allow_nan=False))  # training continues
        if self._writer is None:
            self._write(target, parts, values, text, self.ranks.control)
        else:
            copies = self._staging.copy({part.name: part.local for part in parts})
            parts = [replace(part, local=copies[part.name]) for part in parts]
            self._under_way = self._writer.submit(self._write, target, parts, values, text, self.ranks.background)

    def wait(self) -> None:
        """Wait until a checkpoint that is being written is complete.

        Raises:
            DiskError: It could not be written.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def finish(self) -> None:
        """Wait, and free the memory of the copies: the next stage has other tensors.

        Raises:
            DiskError: As :meth:`wait`.
        """
        self.wait()
        self._staging.release()

    def close(self) -> None:
        """Wait, and end the background thread."""
        if self._writer is not None:
            self._writer.shutdown(wait=True)
        self.finish()

    def newest(self, stage: str) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest usable checkpoint of a stage, and a message for each damaged one that was skipped."""
        self.wait()
        damaged: list[str] = []
        for name in self.ranks.agree(lambda: [path.name for path in self._folders_of(stage)]):
            problem, checkpoint = self._read_verified(self.folder / name)
            if checkpoint is not None:
                return checkpoint, damaged
            damaged.append(f"checkpoint {self.folder / name} {problem}")
        return None, damaged

    def restore(self, checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
        """Load a checkpoint into ``tensors``, a nested dict as it was saved, in place, on any number of ranks.

        Raises:
            StateError: The checkpoint holds other tensors, or cannot be read.
        """
        problem = ""
        try:
            read_tensors(checkpoint.path / TENSORS, checkpoint.index, tensors, self.ranks)
        except ValueError as error:
            problem = f"does not fit this model: {error}"
        except (OSError, SafetensorError) as error:
            problem = f"cannot be read: {error}"
        if problem := next(filter(None, self.ranks.gather(problem)), ""):
            raise StateError(f"checkpoint {checkpoint.path} {problem}", "Start again with another --out.")

    def drop(self, stage: str) -> None:
        """Delete the checkpoints and skipped batches of a stage that has ended, and what killed writers left."""
        self.wait()

        def delete() -> None:
            for path in self._folders_of(stage):
                _delete(path)
            clear_partial(self.folder)
            self.skipped_batches_file(stage).unlink(missing_ok=True)

        self.ranks.do(delete)

    def skipped_batches_file(self, stage: str) -> Path:
        """Return the path of the batches that a stage skips after rollbacks, see :mod:`.rollback`."""
        return self.folder / f"{stage}-skipped-batches.json"

    # ---- inside

    def _write(
        self,
        target: Path,
        parts: list[TensorPart],
        values: dict[str, Any],
        text: str,
        group: distributed.ProcessGroup | None,
    ) -> None:
        """Write this rank's part into the folder that rank 0 creates; rank 0 completes and renames the folder."""
        stage, _, step = target.name.partition("-")
        self.ranks.mark(f"the checkpoint of step {int(step)} of the {stage} stage", group=group)
        agree = partial(self.ranks.agree, group=group)
        try:
            with ExitStack() as stack:
                partial_folder = agree(lambda: stack.enter_context(self._partial_folder(target)))
                sums, entries = self._write_tensors(partial_folder, parts, group)

                def complete() -> None:
                    index = json.dumps(Index.of(entries, values).to_json())
                    for name, content in ((INDEX, index), (STATE, text)):
                        (partial_folder / name).write_text(content, encoding="utf-8")
                        sums[name] = _size_and_sum(partial_folder / name)
                    listed = json.dumps({"format": FORMAT, "files": sums})
                    (partial_folder / COMPLETE).write_text(listed, encoding="utf-8")
                    stack.close()  # to the disk, and renamed

                agree(complete)
        except OSError as error:
            raise self._cannot_write(target, parts, error) from error
        if self.ranks.first:
            found = self._folders_of(stage)
            newest = found.index(target)
            for spare in (*found[:newest], *found[newest + self.keep :]):
                _delete(spare)

    @contextmanager
    def _partial_folder(self, target: Path) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_partial(self.folder)
        with new_folder(target) as partial_folder:
            (partial_folder / TENSORS).mkdir()
            yield partial_folder

    def _write_tensors(
        self, partial_folder: Path, parts: list[TensorPart], group: distributed.ProcessGroup | None
    ) -> tuple[dict[str, tuple[int, str]], list[dict[str, TensorEntry]]]:
        """Write this rank's part of the tensors.

        Returns:
            Size and checksum of the files of all ranks; and the entries of each rank's parts in the index.
        """
        name, listed, problem = f"{self.ranks.rank:05d}.safetensors", (0, ""), ""
        try:
            listed = write_tensors(partial_folder / TENSORS / name, parts)
        except OSError as error:
            problem = f"rank {self.ranks.rank}: {_first_line(error)}"
        self.ranks.mark(group=group)  # heartbeats show a rank that is stuck in the write
        entries = {part.name: part.entry(name) for part in parts}
        outcomes = self.ranks.gather((problem, name, listed, entries), group)
        if problems := [each for each, *_ in outcomes if each]:
            raise OSError("; ".join(problems))
        return {f"{TENSORS}/{file}": pair for _, file, pair, _ in outcomes}, [each for *_, each in outcomes]

    def _cannot_write(self, target: Path, parts: list[TensorPart], error: BaseException) -> DiskError:
        needed = sum(part.local.nbytes for part in parts)
        free = shutil.disk_usage(_existing(self.folder)).free
        if free < needed * 1.1:
            why = f"it needs {size_in_words(needed)}, and {size_in_words(free)} are free"
        else:
            why = _first_line(error)
        last = next((path.name for path in self._folders_of(target.name.partition("-")[0])), None)
        intact = "there is no earlier one" if last is None else f"the last one, {last}, is intact"
        return DiskError(
            f"the checkpoint {target} could not be written: {why}; {intact}",
            "Free disk space, then rerun with --resume.",
        )

    def _read_verified(self, path: Path) -> tuple[str, Checkpoint | None]:
        """Return a problem, as a clause, or the checkpoint; the ranks share the files, each is read once."""
        problem, files, checkpoint = self.ranks.agree(lambda: self._read(path))
        if checkpoint is None:
            return problem, None
        mine = sorted(files)[self.ranks.rank :: self.ranks.world_size]
        damage = next(filter(None, (_damage(checkpoint, name, *files[name]) for name in mine)), "")
        damage = next(filter(None, self.ranks.gather(damage)), "")
        return (f"is damaged: {damage}", None) if damage else ("", checkpoint)

    def _read(self, path: Path) -> tuple[str, dict[str, tuple[int, str]], Checkpoint | None]:
        """Read and check all JSON files of a checkpoint.

        Returns:
            A problem, as a clause; size and checksum of the files of tensors; the checkpoint, if there is no problem.
        """
        try:
            files = _file_hashes(path)
            index, body = (_read_json(path / name, *files.pop(name)) for name in (INDEX, STATE))
            stage, step, recipe, state = _fields(body, stage=str, step=int, recipe=str, state=dict)
            if f"{stage}-{step:09d}" != path.name:
                raise ValueError(f"{STATE} is of step {step} of the {stage[:20]} stage")
            if recipe != self.recipe:
                return "belongs to another recipe", {}, None
            self.check(state)
            found = Index.parse(index, [Path(name).name for name in files])
        except (OSError, ValueError, OverflowError, RecursionError, StateError) as error:
            return f"is damaged: {_first_line(error)}", {}, None
        return "", files, Checkpoint(path, stage, step, state, found)

    def _folders_of(self, stage: str) -> list[Path]:
        """Return the folders of a stage, newest first."""
        if not self.folder.is_dir():
            return []
        named = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [
            path
            for match, path in sorted(named, key=lambda item: int(item[0]["step"]), reverse=True)
            if match["stage"] == stage
        ]


def _file_hashes(path: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of each file of a checkpoint, by its path in the folder.

    Raises:
        ValueError: ``complete.json`` or the folder is damaged.
        OSError: It cannot be read.
    """
    for folder in (path, path / TENSORS):
        if folder.is_symlink() or not folder.is_dir():
            raise ValueError(f"{folder.name} is not a folder")
    with open_regular_file(path / COMPLETE) as file:
        version, files = _fields(_parse(file.read(MAX_LISTING), COMPLETE), format=int, files=dict)
    if version != FORMAT:
        raise ValueError(f"{COMPLETE} has format {version}; this version reads {FORMAT}")
    if missing := sorted({INDEX, STATE} - files.keys()):
        raise ValueError(f"{COMPLETE} does not list {missing[0]}")
    for name, pair in files.items():
        if name not in {INDEX, STATE} and not _SHARD.fullmatch(name):
            raise ValueError(f"{COMPLETE} lists {name[:40]!r}, which is not a file of a checkpoint")
        if not isinstance(pair, list) or [type(item) for item in pair] != [int, str] or pair[0] < 0:
            raise ValueError(f"{COMPLETE} lists {name} with {str(pair)[:40]}; expected size and sha256")
    return {name: (size, digest) for name, (size, digest) in files.items()}


def _read_json(path: Path, size: int, digest: str) -> Any:
    """Read a JSON file of known size and SHA-256.

    Raises:
        ValueError: It is altered, or no JSON.
        OSError: It cannot be read.
    """
    with open_regular_file(path) as file:
        if (found := os.fstat(file.fileno()).st_size) != size:
            raise ValueError(f"{path.name} has {found} bytes, expected {size}")
        content = file.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path.name} was altered: its sha256 differs")
    return _parse(content, path.name)


def _parse(content: bytes, name: str) -> Any:
    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number[:20]} is not a finite number")
        return value

    try:
        return json.loads(content, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from None


def _fields(body: Any, **types: type) -> list[Any]:
    """Return the values of a JSON object that has these keys and types.

    Raises:
        ValueError: A key is missing, or its value has another type.
    """
    for key, kind in types.items():
        if not isinstance(body, dict) or type(body.get(key)) is not kind:
            raise ValueError(f"expected an object with the key {key}, of type {kind.__name__}")
    return [body[key] for key in types]


def _damage(checkpoint: Checkpoint, name: str, size: int, digest: str) -> str:
    """Return the damage of a file of tensors, or an empty string."""
    path = checkpoint.path / name
    try:
        found, sum_found = _size_and_sum(path)
        if found != size:
            return f"{name} has {found} bytes, expected {size}"
        if sum_found != digest:
            return f"{name} was altered (sha256 {sum_found[:12]}, expected {digest[:12]})"
        problem = checkpoint.index.mismatch(path)
    except (OSError, SafetensorError) as error:
        return f"{name} cannot be read ({_first_line(error)})"
    return problem and f"{name} {problem}"


def _size_and_sum(path: Path) -> tuple[int, str]:
    with open_regular_file(path) as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _delete(path: Path) -> None:
    """Delete a checkpoint; of a symbolic link the link only."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _existing(folder: Path) -> Path:
    """Return ``folder``, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
