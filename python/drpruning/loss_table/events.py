"""Losses from TensorBoard event files: scalars whose tags follow a pattern."""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from drpruning.errors import LossTableError, MissingExtraError, install_command
from drpruning.inputs import open_file
from drpruning.loss_table.columns import Pattern
from drpruning.loss_table.table import Evaluations, listed

PATTERNS = ("*held_out_loss/<domain>", "*eval/loss/<domain>", "*val/loss/<domain>", "*validation/loss/<domain>")
"""Patterns that are tried in this order if the caller has none; the first is that of ``drpruning train``."""

LONGEST_RECORD = 2**31
LARGEST_RANK = 32
"""Axes of an array of NumPy 1."""


def event_files(folder: Path) -> list[Path]:
    """Return all event files in ``folder`` and below in the order of their start, which their names contain."""
    return sorted(folder.rglob("*tfevents*"), key=lambda path: (path.name, path))


def read_events(files: list[Path], root: Path, found: Evaluations, pattern: Pattern | None) -> None:
    """Add the scalars of ``files``; a tag in a subfolder of ``root`` begins with the subfolder, as in TensorBoard.

    Raises:
        LossTableError: A file is damaged or no event file, no tag follows the pattern, or two tags of one domain do.
        MissingExtraError: tensorboard is not installed.
    """
    try:
        import tensorboard  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "event files need tensorboard, which is not installed", install_command("tensorboard")
        ) from error
    patterns = [pattern] if pattern else [Pattern(text) for text in PATTERNS]
    by_pattern: dict[Pattern, dict[str, str]] = {pattern: {} for pattern in patterns}
    others: dict[str, None] = {}
    points: list[tuple[str, int, float]] = []
    for file in files:
        folder = "" if file.parent == root else f"{file.parent.relative_to(root).as_posix()}/"
        for tag, step, value in _scalars(file, partial(_note, by_pattern, others, folder)):
            points.append((folder + tag, step, value))
    chosen = next((tags for tags in by_pattern.values() if tags), None)
    if chosen is None:
        expected = " or ".join(repr(item.text) for item in patterns)
        raise LossTableError(
            f"{found.source}: no scalar has a tag like {expected}; the tags are {listed(others)}",
            "Name the tags with losses: --columns 'eval/loss/<domain>'.",
        )
    uses = Counter(chosen.values())
    for tag, domain in chosen.items():
        if found.selects(domain) and uses[domain] > 1:
            other = next(name for name, same in chosen.items() if same == domain and name != tag)
            raise LossTableError(
                f"{found.source}: tags {tag!r} and {other!r} both hold domain {domain!r}",
                f"Narrow the pattern: --columns '{tag.removesuffix(domain)}<domain>'.",
            )
    for tag, step, value in points:
        if tag in chosen:
            found.add(f"{found.source}, tag {tag!r}", {chosen[tag]: value}, step=step, tokens=None, params=None)


def _note(by_pattern: dict[Pattern, dict[str, str]], others: dict[str, None], folder: str, name: str) -> bool:
    """Store a tag under the patterns that it matches; return whether there is one."""
    tag, matched = folder + name, False
    for pattern, tags in by_pattern.items():
        domain = pattern.domain(tag)
        if domain is not None:
            tags[tag] = domain
            matched = True
    if not matched:
        others[tag] = None
    return matched


def _scalars(file: Path, select: Callable[[str], bool]) -> Iterator[tuple[str, int, float]]:
    """Yield tag, step and value of every scalar whose tag ``select`` accepts."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415
    from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c  # noqa: PLC0415

    choice: dict[str, bool] = {}
    for place, record, checksum in _records(file):
        try:
            event = Event.FromString(record)
        except DecodeError as error:
            raise _damaged(file, place) from error
        checked = False
        for value in event.summary.value:
            if value.tag not in choice:
                if value.WhichOneof("value") not in {"simple_value", "tensor"}:
                    continue
                choice[value.tag] = select(value.tag)
            if not choice[value.tag]:
                continue
            if not checked and masked_crc32c(record) != checksum:
                raise _damaged(file, place)
            checked = True
            number = _only_value(value.tensor) if value.HasField("tensor") else float(value.simple_value)
            yield value.tag, int(event.step), number


def _only_value(tensor: Any) -> float:
    """Return the only number of a tensor; NaN if it has several, or is none. A shape of a few bytes has any size."""
    from tensorboard.util.tensor_util import make_ndarray  # noqa: PLC0415

    if any(axis.size != 1 for axis in tensor.tensor_shape.dim) or len(tensor.tensor_shape.dim) > LARGEST_RANK:
        return math.nan
    try:
        array = make_ndarray(tensor)
    except (TypeError, ValueError):
        return math.nan
    return float(array.reshape(())) if array.size == 1 and array.dtype.kind == "f" else math.nan


def _records(file: Path) -> Iterator[tuple[int, bytes, int]]:
    """Yield offset, content and checksum of each record: uint64 length, uint32 checksum, content, uint32 checksum.

    An incomplete last record is ignored: the run may be writing it.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c  # noqa: PLC0415

    with open_file(file, LossTableError) as stream:
        place, size = 0, os.fstat(stream.fileno()).st_size
        while len(header := stream.read(12)) == 12:
            length, checksum = struct.unpack("<QI", header)
            if length > LONGEST_RECORD or masked_crc32c(header[:8]) != checksum:
                if place == 0:
                    raise LossTableError(f"{str(file)!r} is not a TensorBoard event file")
                raise _damaged(file, place)
            record, tail = stream.read(min(length, size)), stream.read(4)
            if len(record) < length or len(tail) < 4:
                return
            yield place, record, struct.unpack("<I", tail)[0]
            place += 16 + length


def _damaged(file: Path, place: int) -> LossTableError:
    return LossTableError(f"{str(file)!r} is damaged: the checksum of the record at byte {place} does not match")
