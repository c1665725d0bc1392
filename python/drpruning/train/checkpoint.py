"""Checkpoints: tensors by torch.distributed.checkpoint, everything else as JSON, complete or not there.

A checkpoint is a folder ``STAGE-STEP`` with ``tensors/`` (model and optimizer, in DCP's format) and ``state.json``. It
is written aside and renamed, so that a folder of that name is complete. ``state.json`` lists the size of every tensor
file; one that does not fit is damaged, named, and the checkpoint before it is used.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from drpruning.errors import StateError
from drpruning.files import clear_partial, new_folder

FORMAT = 1
_NAME = re.compile(r"^(?P<stage>[a-z]+)-(?P<step>\d{9})$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk."""

    path: Path
    stage: str
    step: int
    state: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: Where they are.
        keep: How many of a stage stay; older ones are deleted once a newer one is complete.
    """

    folder: Path
    keep: int

    def save(self, stage: str, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> Path:
        """Writes a checkpoint and returns its folder; one of that stage and step that exists already is kept.

        Args:
            stage: Name of the stage, lower-case letters.
            step: Optimizer steps taken.
            tensors: Nested dict of tensors and plain numbers, e.g. ``{"model": ..., "optimizer": ...}``.
            state: JSON-able data.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_partial(self.folder)
        target = self.folder / f"{stage}-{step:09d}"
        if target.exists():
            return target
        with new_folder(target) as aside:
            with _quiet():
                save(tensors, checkpoint_id=aside / "tensors")
            sizes = {path.name: path.stat().st_size for path in sorted((aside / "tensors").iterdir())}
            body = {"format": FORMAT, "stage": stage, "step": step, "sizes": sizes, "state": state}
            (aside / "state.json").write_text(json.dumps(body, allow_nan=False), encoding="utf-8")
        for old in self._found(stage)[self.keep :]:
            shutil.rmtree(old)
        return target

    def newest(self, stage: str) -> tuple[Checkpoint | None, list[str]]:
        """The newest usable checkpoint of a stage, and a sentence for each damaged one that was passed over."""
        damaged: list[str] = []
        for path in self._found(stage):
            try:
                return _read(path), damaged
            except StateError as error:
                damaged.append(error.message)
        return None, damaged

    def restore(self, checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
        """Fills ``tensors``, a nested dict of the shape that was saved, in place.

        Raises:
            StateError: The checkpoint holds other tensors than those asked for.
        """
        try:
            with _quiet():
                load(tensors, checkpoint_id=checkpoint.path / "tensors")
        except (RuntimeError, ValueError, KeyError, CheckpointException) as error:
            raise StateError(f"checkpoint {checkpoint.path} does not fit this model: {error}") from error

    def drop(self, stage: str) -> None:
        """Deletes the checkpoints of a stage that is over."""
        for path in self._found(stage):
            shutil.rmtree(path)

    def _found(self, stage: str) -> list[Path]:
        """Folders of a stage, newest first."""
        if not self.folder.is_dir():
            return []
        named = [(match, path) for path in self.folder.iterdir() if (match := _NAME.match(path.name))]
        return [
            path
            for match, path in sorted(named, key=lambda item: int(item[0]["step"]), reverse=True)
            if match["stage"] == stage
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns that it takes the process to be alone, which it is, and before torch 2.7 of its own use of storages."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is .*assuming the intent is to")
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        yield


def _read(path: Path) -> Checkpoint:
    try:
        body = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, size in body["sizes"].items():
            found = (path / "tensors" / name).stat().st_size
            if found != size:
                raise StateError(f"checkpoint {path} is damaged: {name} has {found} bytes, expected {size}")
        if body["format"] != FORMAT:
            raise StateError(f"checkpoint {path} has format {body['format']}; this version reads {FORMAT}")
        return Checkpoint(path=path, stage=body["stage"], step=body["step"], state=body["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"checkpoint {path} is damaged: {error}") from error
