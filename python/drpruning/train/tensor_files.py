"""Tensors of a checkpoint: a safetensors file per rank, and an index in JSON; no byte of either is executed.

Tensors have names: their keys in a nested dict, joined by ``/``. Numbers, texts and lists of the dict are in the index:

    {"tensors": {"model/embed.weight": {"dtype": "F32", "shape": [4, 2], "rows": [["00000.safetensors", 0, 2], ...]}},
     "values": {"optimizer/param_groups": [...]}}

``rows`` has a file for each range of rows of the whole tensor, in their order and without gaps; a scalar counts as one
row. So any number of ranks reads what any number of ranks wrote, and each reads only its own rows.

Each file is hashed while it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from drpruning.hf.models import local_shard
from drpruning.hf.tensor_stream import DTYPE_NAMES, DTYPES, LazyTensor, write_safetensors
from drpruning.train.distributed.ranks import Ranks


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in the index.

    Attributes:
        dtype: A key of :data:`drpruning.hf.tensor_stream.DTYPES`.
        shape: Shape of the whole tensor.
        rows: File, first row and end of each range of rows, ascending.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class TensorPart:
    """A rank's rows of a tensor.

    Attributes:
        name: Name of the tensor.
        local: The rows; shares its memory with the tensor.
        shape: Shape of the whole tensor.
        first: Number of its first row in the whole tensor.
        written: Whether this rank writes it: of several equal copies one is written.
    """

    name: str
    local: Tensor
    shape: tuple[int, ...]
    first: int
    written: bool = True

    @property
    def rows(self) -> int:
        """Number of rows; a scalar has one, an empty tensor none."""
        return num_rows(tuple(self.local.shape))

    def entry(self, file: str) -> TensorEntry:
        """Return the entry of the tensor in the index, with these rows only."""
        rows = ((file, self.first, self.first + self.rows),) if self.rows else ()
        return TensorEntry(DTYPE_NAMES[self.local.dtype], self.shape, rows)

    def lazy(self) -> LazyTensor:
        """Return the rows as a tensor to write."""
        return LazyTensor(self.name, self.local.dtype, tuple(self.local.shape), lambda: self.local)


@dataclass(frozen=True)
class Index:
    """The index of a checkpoint's tensors.

    Attributes:
        tensors: The tensors, by name.
        values: Everything else, by name: null, booleans, numbers, texts and lists of these.
    """

    tensors: dict[str, TensorEntry]
    values: dict[str, Any]

    @classmethod
    def of(cls, written: Iterable[Mapping[str, TensorEntry]], values: dict[str, Any]) -> Index:
        """Return the index of all ranks' parts.

        Args:
            written: The entries of each rank's parts, by name.
            values: Everything else.
        """
        tensors: dict[str, TensorEntry] = {}
        for entries in written:
            for name, entry in entries.items():
                rows = sorted((*tensors.get(name, entry).rows, *entry.rows), key=lambda each: each[1])
                tensors[name] = replace(entry, rows=tuple(dict.fromkeys(rows)))
        return cls(tensors, values)

    @classmethod
    def parse(cls, body: Any, files: Iterable[str]) -> Index:
        """Read the result of :meth:`to_json`.

        Args:
            body: Decoded JSON, not trusted.
            files: Names of the checkpoint's files of tensors; each range of rows is in one of these.

        Raises:
            ValueError: The body is not such an index, or the rows of a tensor overlap or are incomplete.
        """
        if not isinstance(body, dict) or not all(isinstance(body.get(key), dict) for key in ("tensors", "values")):
            raise ValueError("expected an object with tensors and values")
        names = set(files)
        return cls({name: _entry(name, entry, names) for name, entry in body["tensors"].items()}, body["values"])

    def to_json(self) -> dict[str, Any]:
        """Return the index as JSON-able data."""
        tensors = {
            name: {"dtype": entry.dtype, "shape": list(entry.shape), "rows": [list(rows) for rows in entry.rows]}
            for name, entry in self.tensors.items()
        }
        return {"tensors": tensors, "values": self.values}

    def mismatch(self, path: Path) -> str:
        """Return the first difference between a file's header and the index, or an empty string.

        Raises:
            SafetensorError: It is not a safetensors file, or its header does not fit its size.
            OSError: It cannot be read.
        """
        expected = {
            name: (entry.dtype, [end - first, *entry.shape[1:]] if entry.shape else [])
            for name, entry in self.tensors.items()
            for file, first, end in entry.rows
            if file == path.name
        }
        with safe_open(path, framework="pt") as file:
            if different := sorted(expected.keys() ^ set(file.keys())):
                return f"has {'no ' if different[0] in expected else ''}tensor {different[0]!r}, unlike the index"
            for name, (dtype, shape) in expected.items():
                part = file.get_slice(name)
                if (part.get_dtype(), part.get_shape()) != (dtype, shape):
                    return f"has {name!r} as {part.get_dtype()} {part.get_shape()}; the index has {dtype} {shape}"
        return ""


def _entry(name: str, body: Any, files: set[str]) -> TensorEntry:
    """Check and convert the entry of one tensor."""
    try:
        dtype, shape, rows = body["dtype"], tuple(body["shape"]), tuple(map(tuple, body["rows"]))
    except (TypeError, KeyError) as error:
        raise ValueError(f"tensor {name!r}: expected dtype, shape and rows ({error})") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r}: expected a dtype of {', '.join(DTYPES)}, got {str(dtype)[:20]!r}")
    if not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise ValueError(f"tensor {name!r}: expected a list of sizes as shape")
    place = 0
    for each in rows:
        if [type(item) for item in each] != [str, int, int] or each[0] not in files or not place == each[1] < each[2]:
            raise ValueError(f"tensor {name!r}: expected ranges of rows in the files, one after the other")
        place = each[2]
    if place != num_rows(shape):
        raise ValueError(f"tensor {name!r}: the files have {place} of {num_rows(shape)} rows")
    return TensorEntry(dtype, shape, rows)


def num_rows(shape: tuple[int, ...]) -> int:
    """Return the number of rows of a tensor: one of a scalar, none of an empty tensor."""
    return (shape[0] if shape else 1) if prod(shape) else 0


def split(tensors: dict[str, Any], ranks: Ranks) -> tuple[list[TensorPart], dict[str, Any]]:
    """Return this rank's parts of the tensors of a nested dict, and the other values, by name.

    Rank 0 writes a tensor that every rank holds whole. The replicas of sharded tensors (hybrid sharding) take turns.

    Args:
        tensors: Nested dict of tensors, sharded by rows or not, and of JSON-able values.
        ranks: The processes of the run.
    """
    parts, values = [], {}
    for number, (name, container, key) in enumerate(_leaves(tensors)):
        value = container[key]
        if not isinstance(value, Tensor):
            values[name] = value
            continue
        written = ranks.first
        if isinstance(value, DTensor):
            mesh, placements = value.device_mesh, value.placements
            replicas = [place for place, placement in enumerate(placements) if placement.is_replicate()]
            written = all(mesh.get_local_rank(place) == number % mesh.size(place) for place in replicas)
        local, rows = local_shard(value)
        parts.append(TensorPart(name, local, tuple(value.shape), rows.start, written))
    return parts, values


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the name of each value of a nested dict, the dict it is in, and its key there."""
    for key, value in tree.items():
        assert "/" not in key, key
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", tree, key


def write_tensors(path: Path, parts: Iterable[TensorPart]) -> tuple[int, str]:
    """Write parts into a new safetensors file and flush it to the disk; return its size and SHA-256.

    Besides the parts, the memory holds one tensor: one on a GPU, or one that is not contiguous, is copied.

    Raises:
        OSError: The file exists or cannot be written.
    """
    digest = hashlib.sha256()
    size = write_safetensors(path, (part.lazy() for part in parts if part.rows), digest=digest)
    return size, digest.hexdigest()


@torch.no_grad()
def read_tensors(folder: Path, index: Index, tensors: dict[str, Any], ranks: Ranks) -> None:
    """Read this rank's rows of all tensors, and the values, into a nested dict as it was written, in place.

    Files are mapped into memory, so besides the tensors there is no copy of their content.

    Args:
        folder: Folder of the files.
        index: Their index.
        tensors: Nested dict of tensors, sharded or not, and of values.
        ranks: The processes of the run; any number.

    Raises:
        ValueError: The index has other names, shapes or types; ``tensors`` are unchanged.
        SafetensorError, OSError: A file cannot be read.
    """
    parts, values = split(tensors, ranks)
    expected = {part.name: (DTYPE_NAMES.get(part.local.dtype, ""), part.shape) for part in parts}
    found = {name: (entry.dtype, entry.shape) for name, entry in index.tensors.items()}
    for own, saved in ((expected, found), (values, index.values)):
        if different := sorted(own.keys() ^ saved.keys()):
            name = different[0]
            raise ValueError(f"it has {name!r}, unknown here" if name in saved else f"it has no {name!r}")
    if wrong := next((name for name in expected if expected[name] != found[name]), None):
        raise ValueError(f"it has {wrong!r} as {_describe(found[wrong])}, expected {_describe(expected[wrong])}")
    restored = {name: _like(value, index.values[name], name) for name, value in values.items()}

    needed: dict[str, list[tuple[TensorPart, int, int]]] = {}
    for part in parts:
        for file, first, end in index.tensors[part.name].rows:
            if max(first, part.first) < min(end, part.first + part.rows):
                needed.setdefault(file, []).append((part, first, end))
    for name, in_file in needed.items():
        with safe_open(folder / name, framework="pt") as file:
            for part, first, end in in_file:
                if not part.shape:
                    part.local.copy_(file.get_tensor(part.name))
                    continue
                low, high = max(first, part.first), min(end, part.first + part.rows)
                rows = file.get_slice(part.name)[low - first : high - first]
                part.local[low - part.first : high - part.first].copy_(rows)
    for name, container, key in _leaves(tensors):
        if name in restored:
            container[key] = restored[name]


def _describe(tensor: tuple[str, tuple[int, ...]]) -> str:
    return f"{tensor[0]} {list(tensor[1])}"


def _like(own: Any, saved: Any, name: str) -> Any:
    """Return a saved value with the types of this run's value: a list becomes a tuple where that is one.

    Numbers may differ in value and between integer and float, and an option that is None may be set; texts, which are
    names, are equal.

    Raises:
        ValueError: The types differ.
    """
    if isinstance(own, dict) and isinstance(saved, dict) and own.keys() == saved.keys():
        return {key: _like(own[key], saved[key], f"{name}/{key}") for key in own}
    if isinstance(own, list | tuple) and isinstance(saved, list) and len(own) == len(saved):
        return type(own)(_like(one, two, name) for one, two in zip(own, saved, strict=True))
    kinds = {bool: "flag", int: "number", float: "number", NoneType: "none"}
    one, two = kinds.get(type(own)), kinds.get(type(saved))
    if (own == saved and type(own) is type(saved)) or (one and two and (one == two or "none" in (one, two))):
        return saved
    raise ValueError(f"it has {str(saved)[:40]!r} as {name}, expected a value like {str(own)[:40]!r}")
