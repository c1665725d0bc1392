"""Source files of a domain: expands files, folders, patterns and Hugging Face datasets, in a reproducible order.

A folder means all readable files in it, a pattern its matches, ``-`` the standard input, and a URI
``hf://datasets/OWNER/NAME`` a dataset on the Hugging Face hub, which huggingface_hub parses and downloads.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from drpruning.errors import ConfigError, MissingExtraError
from drpruning.prepare.readers.blocks import FileFormat, SourceFile
from drpruning.prepare.readers.compressed import STDIN, SUFFIXES, uncompressed_name
from drpruning.prepare.readers.mds import is_mds_index, mds_shards

FORMATS: dict[str, FileFormat] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".mds": "mds",
}
"""Format of a file by suffix."""

TEXT: FileFormat = "text"
COMPRESSIBLE: tuple[FileFormat, ...] = ("text", "lines", "json", "mds")
Formats = Mapping[str, FileFormat]
READABLE = (
    f".txt, .md, .jsonl, .ndjson, .json (each also with {', '.join(SUFFIXES)}), .parquet, .arrow, "
    "or a folder with MDS shards"
)

METADATA_FILES = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that the datasets library writes next to its ``.arrow`` files."""

HUB_PREFIX = "hf://"
HUB_EXAMPLE = "For example hf://datasets/allenai/c4/en/*.json.gz"
DATASET_CARD = "README.md"
"""Every dataset on the hub has one. It describes the text and is not part of it."""


def source_files(paths: Iterable[Path | str], text_suffixes: Iterable[str] = ()) -> list[SourceFile]:
    """List the files of one domain.

    Args:
        paths: Files, folders, patterns, ``-`` and hub URIs, in order. The files of a folder are sorted by path.
        text_suffixes: More suffixes of files that are one document each, such as ``.py``.

    Raises:
        ConfigError: A path does not exist, contains no readable file, or names a file twice; or a suffix is not one.
        MissingExtraError: A hub URI needs huggingface_hub.
    """
    formats = {**FORMATS, **dict.fromkeys(map(_check_suffix, text_suffixes), TEXT)}
    files = [file for path in paths for file in _expand(path, formats)]
    seen: set[Path] = set()
    for file in files:
        if file.path in seen:
            raise ConfigError(f"{file.path} occurs twice in one domain")
        seen.add(file.path)
    return files


def skipped_suffixes(paths: Iterable[Path | str], text_suffixes: Iterable[str] = ()) -> dict[str, int]:
    """Count the files in folders that :func:`source_files` does not list because of their format.

    Files that are never text are not counted: hidden ones, parts of MDS shards, metadata of the datasets library.

    Args:
        paths: As for :func:`source_files`; only folders among them are looked at.
        text_suffixes: As for :func:`source_files`.

    Returns:
        Number of files by suffix, the most frequent first; files without a suffix are counted under ``""``.
    """
    formats = {**FORMATS, **dict.fromkeys(text_suffixes, TEXT)}
    folders = [Path(path) for path in paths if os.path.isdir(path)]  # noqa: PTH112 - Path's raises for a long name
    counts: Counter[str] = Counter()
    for folder in folders:
        files = _visible_files(folder)
        mds_folders = {file.parent for file in files if is_mds_index(file)}
        for file in files:
            if file_format(file, formats) is None and file.parent not in mds_folders:
                counts["".join(file.suffixes[-2:] if file.suffix in SUFFIXES else file.suffixes[-1:])] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _check_suffix(suffix: str) -> str:
    if not suffix.startswith(".") or suffix.count(".") > 1 or len(suffix) < 2 or "/" in suffix:
        raise ConfigError(f"text suffix {suffix!r}: expected a dot and letters", "For example --text-suffix .py")
    if FORMATS.get(suffix, TEXT) != TEXT or suffix in SUFFIXES:
        raise ConfigError(f"text suffix {suffix!r}: files with this suffix are read in another way")
    return suffix


def file_format(path: Path, formats: Formats = FORMATS) -> FileFormat | None:
    """Return the format of a file by its name; None if it cannot be read.

    >>> file_format(Path("a.jsonl.zst")), file_format(Path("a.parquet.gz"))
    ('lines', None)
    """
    kind = formats.get(Path(uncompressed_name(path)).suffix)
    return None if kind is not None and path.suffix in SUFFIXES and kind not in COMPRESSIBLE else kind


def _expand(name: Path | str, formats: Formats) -> Iterator[SourceFile]:
    if isinstance(name, str) and name.startswith(HUB_PREFIX):
        folder, pattern = download_dataset(name)
        if pattern is None:
            paths = [file for file in _readable_files(folder, formats) if file != folder / DATASET_CARD]
        else:
            paths = [file for file in _expand_matches(folder.glob(pattern), formats) if file_format(file, formats)]
        yield from _to_source_files(paths, name, formats)
        return
    path = Path(name)
    if path == STDIN:
        yield SourceFile(path, "lines", 0)
    elif os.path.isdir(path):  # noqa: PTH112 - Path's methods raise for a long name
        yield from _to_source_files(_readable_files(path, formats), str(path), formats)
    elif os.path.exists(path):  # noqa: PTH110
        yield from _to_source_files([path], str(path), formats)
    elif glob.has_magic(str(path)):
        matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207 -- absolute ones
        yield from _to_source_files(_expand_matches(map(Path, matches), formats), str(path), formats)
    else:
        raise ConfigError(
            f"{path} does not exist; expected a file, a folder or a pattern of text",
            "Correct the path of --domain NAME=PATH or of the recipe.",
        )


def _expand_matches(paths: Iterable[Path], formats: Formats) -> list[Path]:
    """List the files among ``paths`` and in their folders once each: ``**`` matches a folder and its content."""
    files = (
        file for path in sorted(set(paths)) for file in (_readable_files(path, formats) if path.is_dir() else [path])
    )
    return list(dict.fromkeys(files))


def _readable_files(folder: Path, formats: Formats) -> list[Path]:
    """List the readable files of a folder, sorted. Of MDS folders only the index is listed."""
    files = [file for file in _visible_files(folder) if file_format(file, formats)]
    mds_folders = {file.parent for file in files if is_mds_index(file)}
    return sorted(file for file in files if file.parent not in mds_folders or is_mds_index(file))


def _visible_files(folder: Path) -> list[Path]:
    return [
        file
        for file in folder.rglob("*")
        if (file.is_file() or _is_broken_link(file))
        and file.name not in METADATA_FILES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _is_broken_link(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def _to_source_files(files: list[Path], name: str, formats: Formats) -> list[SourceFile]:
    for file in files:
        if not (file.is_file() or _is_broken_link(file)):  # the reader counts a broken link as an input error
            raise ConfigError(f"{file}: expected a file, found a pipe or a device")
        if file_format(file, formats) is None:
            advice = f"If it is text, add --text-suffix {file.suffix}" if file.suffix else None
            raise ConfigError(f"{file}: unknown file format; expected {READABLE}", advice)
        if file_format(file, formats) == "mds":
            raise ConfigError(f"{file} is a single MDS shard", "Pass its folder, which contains the index.json.")
    if not files:
        raise ConfigError(f"{name} contains no readable file; expected {READABLE}", _advise_suffix(name))
    sources = []
    for file in files:
        if is_mds_index(file):
            sources += mds_shards(file)
        else:
            kind = file_format(file, formats)
            assert kind is not None
            sources.append(SourceFile(file, kind, 0 if _is_broken_link(file) else file.stat().st_size))
    return sources


def _advise_suffix(name: str) -> str | None:
    """Return the option that reads the most frequent suffix of a folder, for instance of source code."""
    path = Path(name)
    found = Counter(file.suffix for file in path.rglob("*") if file.is_file()) if path.is_dir() else Counter[str]()
    suffix = next((suffix for suffix, _ in found.most_common() if suffix), None)
    return None if suffix is None else f"If its {suffix} files are text, add --text-suffix {suffix}"


def download_dataset(uri: str) -> tuple[Path, str | None]:
    """Download the dataset ``hf://datasets/OWNER/NAME[@REVISION][/PATTERN]``, or find it in the hub's cache.

    Returns:
        The folder of the snapshot, and the pattern of the files to read if ``uri`` has one.

    Raises:
        ConfigError: The URI is malformed, or the download fails: no network, no such dataset, no access.
        MissingExtraError: huggingface_hub is not installed, or is too old.
    """
    try:
        from huggingface_hub import parse_hf_uri, snapshot_download  # noqa: PLC0415 -- slow to import
        from huggingface_hub.errors import HfHubHTTPError, HfUriError, LocalEntryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f"{uri} needs a recent huggingface_hub", "pip install --upgrade huggingface_hub"
        ) from error
    try:
        location = parse_hf_uri(uri)
    except HfUriError as error:
        raise ConfigError(f"{uri} is not a Hugging Face URI: {error}", HUB_EXAMPLE) from None
    if location.type != "dataset":
        raise ConfigError(f"{uri} names a {location.type}; expected a dataset", HUB_EXAMPLE)
    pattern = location.path_in_repo or None
    try:
        folder = snapshot_download(
            location.id,
            repo_type="dataset",
            revision=location.revision,
            allow_patterns=None if pattern is None else [pattern],
        )
    except (OSError, ValueError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"cannot download the dataset {location.id} from the Hugging Face hub: {reason}",
            "Without a network, pass files or folders instead; with one, check the name and your access to it.",
        ) from None
    return Path(folder), pattern
