"""Checkpoints: tensors by torch.distributed.checkpoint, all else as JSON; a checkpoint is complete or absent.

A checkpoint is a folder ``STAGE-STEP``:

    tensors/        model and optimizer in DCP's format; every rank writes its part
    state.json      all else
    complete.json   size and sha256 of every other file, written last

It is written to a temporary folder, flushed to the disk, and renamed, so a folder of that name is complete. A
checkpoint whose files differ from its ``complete.json`` is damaged: it is reported, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from drpruning.errors import DiskError, StateError
from drpruning.files import clear_partial, new_folder
from drpruning.formatting import size_in_words
from drpruning.train.cpu_staging import CpuStaging
from drpruning.train.distributed.ranks import Ranks, is_rank_loss

FORMAT = 4
TENSORS, STATE, COMPLETE = "tensors", "state.json", "complete.json"
_NAME = re.compile(r"^(?P<stage>[a-z]+)-(?P<step>\d{9})$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk."""

    path: Path
    stage: str
    step: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: The folder of the checkpoints.
        keep: Number of checkpoints of a stage to keep; older ones are deleted once a newer one is complete.
        recipe: Hash of the recipe; checkpoints of another recipe are skipped.
        ranks: The processes of the run; each makes the same calls in the same order.
        background: Copy the tensors, and write the copies while training continues; :meth:`wait` for the end.
    """

    def __init__(
        self, folder: Path, keep: int, *, recipe: str = "", ranks: Ranks | None = None, background: bool = False
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.recipe = recipe
        self.ranks = ranks or Ranks()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._under_way: Future[None] | None = None
        self._staging = CpuStaging()

    def save(self, stage: str, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """Write a checkpoint; a usable one of that stage and step is kept, a damaged one replaced.

        Newer checkpoints of the stage, which :meth:`newest` skipped as damaged, are deleted.

        Args:
            stage: Name of the stage, lower-case letters.
            step: Optimizer steps taken.
            tensors: Nested dict of tensors and plain numbers, e.g. ``{"model": ..., "optimizer": ...}``.
            state: JSON-able data.

        Raises:
            DiskError: It cannot be written; the checkpoints before it are intact. In the background the next call
                raises this.
        """
        self.wait()
        target = self.folder / f"{stage}-{step:09d}"
        if self.ranks.agree(target.exists):
            if self._verified(target)[1] is not None:
                return
            self.ranks.do(lambda: shutil.rmtree(target))
        body = {"stage": stage, "step": step, "recipe": self.recipe, "state": state}
        text = json.dumps(body, allow_nan=False)
        if self._writer is None:
            self._write(target, tensors, text, self.ranks.control)
        else:
            copy = self._staging.copy(tensors)
            self._under_way = self._writer.submit(self._write, target, copy, text, self.ranks.background)

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
        for name in self.ranks.agree(lambda: [path.name for path in self._found(stage)]):
            problem, checkpoint = self._verified(self.folder / name)
            if checkpoint is not None:
                return checkpoint, damaged
            damaged.append(f"checkpoint {self.folder / name} {problem}")
        return None, damaged

    def restore(self, checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
        """Load a checkpoint into ``tensors``, a nested dict as it was saved, in place, on any number of ranks.

        Raises:
            StateError: The checkpoint holds other tensors.
        """
        _silence_dcp()
        try:
            load(tensors, checkpoint_id=checkpoint.path / TENSORS, process_group=self.ranks.control)
        except (RuntimeError, ValueError, KeyError, CheckpointException) as error:
            if not self.ranks.alone and is_rank_loss(error):
                raise
            raise StateError(f"checkpoint {checkpoint.path} does not fit this model: {error}") from error

    def drop(self, stage: str) -> None:
        """Delete the checkpoints and skipped batches of a stage that has ended."""
        self.wait()

        def delete() -> None:
            for path in self._found(stage):
                shutil.rmtree(path)
            self.skipped_batches_file(stage).unlink(missing_ok=True)

        self.ranks.do(delete)

    def skipped_batches_file(self, stage: str) -> Path:
        """Return the path of the batches that a stage skips after rollbacks, see :mod:`.rollback`."""
        return self.folder / f"{stage}-skipped-batches.json"

    # ---- inside

    def _write(self, target: Path, tensors: dict[str, Any], text: str, group: distributed.ProcessGroup | None) -> None:
        """Write this rank's part into the folder that rank 0 creates; rank 0 completes and renames the folder."""
        _silence_dcp()
        stage, _, step = target.name.partition("-")
        self.ranks.mark(f"the checkpoint of step {int(step)} of the {stage} stage", group=group)
        agree = partial(self.ranks.agree, group=group)
        try:
            with ExitStack() as stack:
                partial_folder = agree(lambda: stack.enter_context(self._partial_folder(target)))
                sums = self._write_tensors(partial_folder, tensors, group)

                def complete() -> None:
                    (partial_folder / STATE).write_text(text, encoding="utf-8")
                    sums[STATE] = _size_and_sum(partial_folder / STATE)
                    listed = json.dumps({"format": FORMAT, "files": sums})
                    (partial_folder / COMPLETE).write_text(listed, encoding="utf-8")
                    stack.close()  # to the disk, and renamed

                agree(complete)
        except (OSError, RuntimeError, CheckpointException) as error:
            if not self.ranks.alone and is_rank_loss(error):
                raise
            raise self._cannot_write(target, tensors, error) from error
        if self.ranks.first:
            found = self._found(target.name.partition("-")[0])
            newest = found.index(target)
            for spare in (*found[:newest], *found[newest + self.keep :]):
                shutil.rmtree(spare)

    @contextmanager
    def _partial_folder(self, target: Path) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_partial(self.folder)
        with new_folder(target) as partial_folder:
            yield partial_folder

    def _write_tensors(
        self, partial_folder: Path, tensors: dict[str, Any], group: distributed.ProcessGroup | None
    ) -> dict[str, tuple[int, str]]:
        """Write this rank's part of the tensors; return size and checksum of the files of all ranks."""
        written = partial(self.ranks.mark, group=group)
        save(tensors, storage_writer=_MarkingWriter(partial_folder / TENSORS, written), process_group=group)
        own = [path for path in (partial_folder / TENSORS).iterdir() if path.name.startswith(f"__{self.ranks.rank}_")]
        if self.ranks.first:
            own.append(partial_folder / TENSORS / ".metadata")
        sums = {f"{TENSORS}/{path.name}": _size_and_sum(path) for path in sorted(own)}
        return {name: pair for part in self.ranks.gather(sums, group) for name, pair in part.items()}

    def _cannot_write(self, target: Path, tensors: dict[str, Any], error: BaseException) -> DiskError:
        needed, free = _num_bytes(tensors), shutil.disk_usage(_existing(self.folder)).free
        if free < needed * 1.1:
            why = f"it needs {size_in_words(needed)}, and {size_in_words(free)} are free"
        else:
            why = _first_cause(error)
        last = next((path.name for path in self._found(target.name.partition("-")[0])), None)
        intact = "there is no earlier one" if last is None else f"the last one, {last}, is intact"
        return DiskError(
            f"the checkpoint {target} could not be written: {why}; {intact}",
            "Free disk space, then rerun with --resume.",
        )

    def _verified(self, path: Path) -> tuple[str, Checkpoint | None]:
        """Return what is damaged, or the checkpoint; the ranks share the files, each is read once."""
        problem, files = self.ranks.agree(lambda: _listed(path))
        if not problem:
            mine = sorted(files)[self.ranks.rank :: self.ranks.world_size]
            problem = next(filter(None, self.ranks.gather(_first_problem(path, files, mine))), "")
        if problem:
            return f"is damaged: {problem}", None
        body = self.ranks.agree(lambda: json.loads((path / STATE).read_text(encoding="utf-8")))
        if body["recipe"] != self.recipe:
            return "belongs to another recipe", None
        return "", Checkpoint(path=path, stage=body["stage"], step=body["step"], state=body["state"])

    def _found(self, stage: str) -> list[Path]:
        """Return the folders of a stage, newest first."""
        if not self.folder.is_dir():
            return []
        named = [(match, path) for path in self.folder.iterdir() if (match := _NAME.match(path.name))]
        return [
            path
            for match, path in sorted(named, key=lambda item: int(item[0]["step"]), reverse=True)
            if match["stage"] == stage
        ]


class _MarkingWriter(FileSystemWriter):
    """Writes a rank's part, then calls ``written``, so that heartbeats show a rank that is stuck in a write.

    Args:
        path: Folder of the files.
        written: Called once this rank's part is written.
    """

    def __init__(self, path: Path, written: Callable[[], None]) -> None:
        super().__init__(path)
        self._written = written

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        """Write the files of ``plan``; return the future of torch's writer."""
        results = super().write_data(plan, planner)
        self._written()
        return results


def _listed(path: Path) -> tuple[str, dict[str, Any]]:
    """Return what is damaged in ``complete.json``, or its list of files."""
    try:
        body = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            return f"{COMPLETE} has format {body['format']}; this version reads {FORMAT}", {}
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in body["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{COMPLETE} cannot be used ({type(error).__name__}: {error})", {}
    needed = {STATE, f"{TENSORS}/.metadata"}
    if not needed <= files.keys():
        return f"{COMPLETE} does not list {' and '.join(sorted(needed - files.keys()))}", {}
    return "", files


def _first_problem(path: Path, files: dict[str, Any], names: Iterable[str]) -> str:
    for name in names:
        size, digest = files[name]
        try:
            found, sum_found = _size_and_sum(path / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != size:
            return f"{name} has {found} bytes, expected {size}"
        if sum_found != digest:
            return f"{name} was altered (sha256 {sum_found[:12]}, expected {digest[:12]})"
    return ""


def _size_and_sum(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _num_bytes(tensors: Any) -> int:
    """Return the bytes of this rank's part of a nested dict of tensors."""
    if isinstance(tensors, torch.Tensor):
        local = tensors.to_local() if hasattr(tensors, "to_local") else tensors
        return local.numel() * local.element_size()
    if isinstance(tensors, dict):
        return sum(map(_num_bytes, tensors.values()))
    return sum(map(_num_bytes, tensors)) if isinstance(tensors, (list, tuple)) else 0


def _existing(folder: Path) -> Path:
    """Return ``folder``, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _first_cause(error: BaseException) -> str:
    """Return the cause in one line; DCP wraps the errors of each rank."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {inner}" for rank, (inner, _) in error.failures.items())
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _silence_dcp() -> None:
    """Silence DCP's warnings of a single process, which is right, and before torch 2.7 of its use of storages.

    This is no context manager, since the filters of a context are those of all threads.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is .*assuming the intent is to")
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
