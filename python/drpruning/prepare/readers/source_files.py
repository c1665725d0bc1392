"""What stands behind the paths of a domain: files, in an order that depends on their names alone.

A folder stands for all files in it that can be read, a pattern for what it matches, ``-`` for the standard input, and
``hf:owner/name`` for a data set on the Hugging Face hub, which its own library downloads.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drpruning.errors import ConfigError
from drpruning.prepare.compressed import STDIN, SUFFIXES, uncompressed_name
from drpruning.prepare.hub import CARD, HUB, downloaded

Kind = Literal["text", "lines", "json", "parquet", "arrow", "mds"]

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".mds": "mds",
}
COMPRESSIBLE: tuple[Kind, ...] = ("text", "lines", "json", "mds")
MDS_INDEX = "index.json"
MDS_COLUMNS = ("column_names", "column_encodings", "column_sizes")
WANTED = (
    f".txt, .md, .jsonl, .ndjson, .json (each also with {', '.join(SUFFIXES)}), .parquet, .arrow, "
    "or a folder with MDS shards"
)

NOT_TEXT = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""What the datasets library leaves beside its ``.arrow`` files."""


@dataclass(frozen=True)
class SourceFile:
    """A file to read.

    Args:
        path: Where it is.
        kind: How it is read.
        size: Bytes on disk; 0 for the standard input.
    """

    path: Path
    kind: Kind
    size: int

    @property
    def compressed(self) -> bool:
        """Whether it has to be read from its beginning."""
        return self.path.suffix in SUFFIXES or self.path == STDIN


def source_files(paths: Iterable[Path | str]) -> list[SourceFile]:
    """The files of one domain.

    Args:
        paths: Files, folders, patterns, ``-`` and hub names, in order; a folder's files are taken in the order of
            their paths.

    Raises:
        ConfigError: A path does not exist, nothing under it can be read, or a file is named twice.
        MissingExtraError: A hub name without huggingface_hub.
    """
    files = [file for path in paths for file in _expand(path)]
    seen: set[Path] = set()
    for file in files:
        if file.path in seen:
            raise ConfigError(f"{file.path} is named twice in one domain")
        seen.add(file.path)
    return files


def kind_of(path: Path) -> Kind | None:
    """How a file of this name is read; None if it is not.

    >>> kind_of(Path("a.jsonl.zst")), kind_of(Path("a.parquet.gz"))
    ('lines', None)
    """
    kind = KINDS.get(Path(uncompressed_name(path)).suffix)
    return None if kind is not None and path.suffix in SUFFIXES and kind not in COMPRESSIBLE else kind


def _expand(named: Path | str) -> Iterator[SourceFile]:
    if isinstance(named, str) and named.startswith(HUB):
        folder, pattern = downloaded(named)
        if pattern is None:
            found = [file for file in _inside(folder) if file != folder / CARD]
        else:
            found = [file for file in _matched(folder.glob(pattern)) if kind_of(file)]
        yield from _described(found, named)
        return
    path = Path(named)
    if path == STDIN:
        yield SourceFile(path, "lines", 0)
    elif path.is_dir():
        yield from _described(_inside(path), str(path))
    elif path.exists():
        yield from _described([path], str(path))
    elif glob.has_magic(str(path)):
        matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207 -- absolute ones
        yield from _described(_matched(map(Path, matches)), str(path))
    else:
        raise ConfigError(f"{path} does not exist")


def _matched(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths`` and those in its folders, each once: ``**`` matches a folder and what is in it."""
    inside = (file for path in sorted(set(paths)) for file in (_inside(path) if path.is_dir() else [path]))
    return list(dict.fromkeys(inside))


def _inside(folder: Path) -> list[Path]:
    """The files of a folder that can be read, sorted; of MDS shards only those that the index names."""
    files = [
        file
        for file in folder.rglob("*")
        if file.is_file()
        and kind_of(file)
        and file.name not in NOT_TEXT
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    indexes = {file.parent for file in files if _is_mds(file)}
    return sorted(file for file in files if file.parent not in indexes or _is_mds(file))


def _described(files: list[Path], named: str) -> list[SourceFile]:
    for file in files:
        if kind_of(file) is None:
            raise ConfigError(f"{file}: cannot read this kind of file; wanted {WANTED}")
        if kind_of(file) == "mds":
            raise ConfigError(f"{file} is one shard of MDS", "Name its folder, which has the index.json.")
    if not files:
        raise ConfigError(f"{named} holds no file to read; wanted {WANTED}")
    described = []
    for file in files:
        if _is_mds(file):
            described += _mds_shards(file)
        else:
            kind = kind_of(file)
            assert kind is not None
            described.append(SourceFile(file, kind, file.stat().st_size))
    return described


def _is_mds(path: Path) -> bool:
    if path.name != MDS_INDEX:
        return False
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(body, dict) and isinstance(body.get("shards"), list)


def _mds_shards(index: Path) -> list[SourceFile]:
    """The shards that an ``index.json`` names, uncompressed where that file is there."""
    shards = []
    for shard in json.loads(index.read_bytes())["shards"]:
        missing = [key for key in MDS_COLUMNS if not isinstance(shard.get(key), list)]
        if missing:
            raise ConfigError(f"{index} names a shard without {missing[0]}; wanted shards in the format MDS")
        names = [shard[key]["basename"] for key in ("raw_data", "zip_data") if shard.get(key)]
        found = next((index.parent / name for name in names if (index.parent / name).is_file()), None)
        if found is None:
            raise ConfigError(f"{index} names the shard {names[0]}, which is not there")
        shards.append(SourceFile(found, "mds", found.stat().st_size))
    return shards
