"""Files from outside: opened without waiting, read in bounded memory, parsed as JSON or YAML with typed errors.

Whatever a file holds, a function of this module returns plain data or raises one of ``errors.py``, in time and memory
proportional to the size of the file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import stat
from collections.abc import Callable
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError, DiskError, DrpruningError
from drpruning.files import open_flags
from drpruning.formatting import printable

LARGEST_TEXT = 1 << 20
"""Bytes of a recipe or of another YAML file; the largest shipped one has 5 kB."""
LARGEST_JSON = 1 << 28
"""Bytes of a JSON file; a ``corpus.json`` of 100,000 shards has 40 MB."""
DEEPEST = 100
"""Levels of nesting in YAML."""
MOST_VALUES = 100_000
"""Values in YAML, where an alias counts as often as it is used: nine levels of nine aliases are 387 million."""
LONGEST_NUMBER = 100
"""Characters of a number or a date in YAML."""

EXPECTED = {
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping",
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than or equal to": "at most",
    "less than": "below",
}
"""Beginnings of what pydantic expects, and the words for them."""

INVALID_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV, errno.EISDIR)
"""Error numbers for a path that no regular file can have."""
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def open_file(path: str | Path, error: type[DrpruningError] = ConfigError) -> BufferedReader:
    """Open a regular file for reading; never wait for the writer of a pipe, and never read a device.

    Args:
        path: The file. A symbolic link is followed.
        error: Class of the exception for a path without a regular file.

    Raises:
        DrpruningError: Of class ``error``: there is no file of that path, or it is a folder, a pipe, a socket or a
            device.
        DiskError: The operating system cannot open it.
    """
    try:
        handle = os.open(path, open_flags("O_RDONLY", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))
    except (OSError, ValueError) as problem:
        if isinstance(problem, PermissionError) and Path(path).is_dir():  # as Windows reports it
            raise error(f"{path}: expected a file, found a folder") from None
        raise unreadable(path, problem, error) from None
    kind = os.fstat(handle).st_mode
    if not stat.S_ISREG(kind):
        os.close(handle)
        found = "a folder" if stat.S_ISDIR(kind) else "a pipe" if stat.S_ISFIFO(kind) else "a device"
        raise error(f"{path}: expected a file, found {found}")
    return os.fdopen(handle, "rb")


def unreadable(path: str | Path, problem: Exception, error: type[DrpruningError] = ConfigError) -> DrpruningError:
    """Return the exception for a file that cannot be opened or read.

    Args:
        path: The file.
        problem: The ``OSError``, or the ``ValueError`` of a path with a NUL or a lone surrogate.
        error: Class of the exception for a path without a regular file.
    """
    number = getattr(problem, "errno", None)
    if isinstance(problem, (FileNotFoundError, NotADirectoryError)):
        return error(f"{path}: expected a file, found none")
    if not isinstance(problem, OSError) or number in INVALID_PATH:
        reason = getattr(problem, "strerror", None) or "no name of a file"
        return error(f"{path}: expected the path of a file, found an invalid one: {reason.lower()}")
    return disk_error(path, problem)


def disk_error(path: str | Path, problem: OSError) -> DiskError:
    """Return the ``DiskError`` for a file or folder that the operating system cannot read or write."""
    next_step = "Free disk space or fix permissions, then run the command again."
    if problem.errno in NO_DESCRIPTORS:
        next_step = "Allow more open files, for example `ulimit -n 65536`, then run the command again."
    error = DiskError(f"{path}: {problem.strerror or problem}", next_step)
    error.errno, error.strerror = problem.errno, problem.strerror
    return error


def read_file(path: str | Path, error: type[DrpruningError] = ConfigError, largest: int = LARGEST_TEXT) -> bytes:
    """Read a regular file of at most ``largest`` bytes.

    Raises:
        DrpruningError: Of class ``error``: as :func:`open_file`, or the file is larger.
        DiskError: The operating system cannot read it.
    """
    with open_file(path, error) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise error(f"{path}: expected at most {largest:,} bytes, found more")
        try:
            return file.read()
        except OSError as problem:
            raise unreadable(path, problem, error) from None


def read_text(path: str | Path, error: type[DrpruningError] = ConfigError, largest: int = LARGEST_TEXT) -> str:
    """Read a regular file of at most ``largest`` bytes as UTF-8.

    Raises:
        DrpruningError: Of class ``error``: as :func:`read_file`, or the file is not UTF-8.
        DiskError: The operating system cannot read it.
    """
    try:
        return read_file(path, error, largest).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: expected UTF-8, found {problem.reason} at byte {problem.start}") from None


def parse_json(content: bytes | str, where: str | Path, error: type[DrpruningError] = ConfigError) -> Any:
    """Parse JSON in UTF-8 without repeated keys or lone surrogates.

    Args:
        content: The JSON.
        where: Name of the file, for errors.
        error: Class of the exception.

    Raises:
        DrpruningError: Of class ``error``: ``content`` is not such JSON, is nested too deeply, or has an integer of
            more than 4,300 digits.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        body = json.loads(text, object_pairs_hook=_reject_repeated_keys)
        if _SURROGATE_ESCAPE.search(content if isinstance(content, bytes) else text.encode()):
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: expected JSON, found something else: {shown(problem, 200)}") from None
    return body


def parse_yaml(content: bytes | str, where: str | Path, *, any_tag: bool = False) -> Any:
    r"""Parse YAML with the safe loader: mappings, lists, texts, numbers, dates, null.

    Args:
        content: The YAML, UTF-8.
        where: Name of the file or the option, for errors.
        any_tag: Whether values with other tags are None; they are errors otherwise.

    Raises:
        ConfigError: ``content`` is not YAML, or too large: :data:`LARGEST_TEXT`, :data:`DEEPEST`,
            :data:`MOST_VALUES`.

    Example:
        >>> parse_yaml("a: &x [1, 2]\nb: *x", "example")
        {'a': [1, 2], 'b': [1, 2]}
    """
    import yaml  # noqa: PLC0415 - most programs that import this module read no YAML

    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        if len(text) > LARGEST_TEXT:
            raise ValueError(f"expected at most {LARGEST_TEXT:,} characters, found {len(text):,}")
        _check_yaml_size(text)
        return yaml.load(text, Loader=_loader(any_tag))  # noqa: S506 - derived from SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        reason = str(problem).replace('in "<unicode string>", ', "at ")
        raise ConfigError(f"{where} is not YAML: {shown(ValueError(reason), 300)}") from None


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        ConfigError: As :func:`read_file` and :func:`parse_yaml`.
        DiskError: The operating system cannot read it.
    """
    return parse_yaml(read_file(path), path)


def shown(value: object, limit: int = 80) -> str:
    """Format any value for a message, in at most ``limit`` printable characters, whatever its size and depth.

    An exception is formatted as its text, any other value as Python writes it.

    >>> shown({"a": [1, "b"]}), shown(10**5000), len(shown("x" * 1000))
    ("{'a': [1, 'b']}", 'an integer of 16610 bits', 80)
    """
    if isinstance(value, BaseException):
        text = str(value)
    elif isinstance(value, str):
        text = repr(value[:limit]) if len(value) <= limit else repr(value[: limit + 1])
    else:
        text = _SHORT.repr(value)
    text = " ".join(text[: 4 * limit].split())
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


class _ShortRepr(reprlib.Repr):
    """Formats the first entries of the first levels, since shared lists unfold exponentially."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = 80

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() <= 512 else f"an integer of {value.bit_length()} bits"


_SHORT = _ShortRepr()


def expected_value(message: str) -> str:
    """Return what a message of pydantic expects, in the words of this package's errors.

    Args:
        message: The entry ``msg`` of a validation error.

    Returns:
        A message that begins with ``expected``; another one than "Input should be" without the prefix "Value error".

    Example:
        >>> expected_value("Input should be a valid integer, unable to parse string as an integer")
        'expected an integer'
        >>> expected_value("Input should be greater than or equal to 1")
        'expected at least 1'
    """
    text = message.removeprefix("Value error, ")
    value = text.removeprefix("Input should be ")
    if value == text:
        return text
    for words, replacement in EXPECTED.items():
        if value.startswith(words):
            rest = "" if words.startswith("a valid") else value.removeprefix(words)
            return f"expected {replacement}{rest}"
    return f"expected {value}"


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError(f"the key {shown(repeated([name for name, _ in pairs]))} occurs twice")
    return body


def repeated(names: list[str]) -> str | None:
    """Return the first name that occurs a second time; None if there is none.

    >>> repeated(["a", "b", "c", "b", "a"])
    'b'
    """
    found: set[str] = set()
    return next((name for name in names if name in found or found.add(name)), None)  # type: ignore[func-returns-value]


def _check_yaml_size(text: str) -> None:
    """Raise ``ValueError`` if YAML is nested too deeply or has too many values, aliases unfolded."""
    import yaml  # noqa: PLC0415

    anchored: dict[str, int] = {}
    open_anchors: set[str] = set()
    levels: list[tuple[str | None, int]] = [(None, 0)]  # anchor of each open collection, and the values in it
    for event in yaml.parse(text, Loader=_base_loader()):
        values, anchor = 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append((anchor, 1))
            if anchor is not None:
                open_anchors.add(anchor)
            if len(levels) > DEEPEST + 1:
                raise ValueError(f"expected at most {DEEPEST} levels of nesting, found more")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values = levels.pop()
            open_anchors.discard(anchor or "")
        elif isinstance(event, yaml.AliasEvent) and anchor is not None:
            if anchor in open_anchors:
                raise ValueError(f"the alias *{shown(anchor)[1:-1]} is inside the value that it names")
            values, anchor = anchored.get(anchor, 1), None
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
            if _SURROGATE.search(event.value):
                raise ValueError(f"expected Unicode text, found a lone surrogate in {shown(event.value)}")
        if anchor is not None and values:
            anchored[anchor] = values
        levels[-1] = (levels[-1][0], levels[-1][1] + values)
        if levels[-1][1] > MOST_VALUES:
            raise ValueError(f"expected at most {MOST_VALUES:,} values, aliases unfolded, found more")


def _base_loader() -> Any:
    """Return libyaml's safe loader, which is ten times as fast as PyYAML's, if it is installed."""
    import yaml  # noqa: PLC0415

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def _loader(any_tag: bool) -> Any:
    import yaml  # noqa: PLC0415

    class Loader(_base_loader()):  # type: ignore[misc]
        """A safe loader that names the place of a scalar that its tag does not fit."""

    def checked(what: str, construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def build(loader: Any, node: Any) -> Any:
            found = shown(node.value)
            if not isinstance(node.value, str) or len(node.value) <= LONGEST_NUMBER:
                try:
                    return construct(loader, node)
                except (ValueError, AttributeError, KeyError, IndexError, OverflowError):
                    pass
            raise yaml.constructor.ConstructorError(None, None, f"expected {what}, found {found}", node.start_mark)

        return build

    for tag, what in (("int", "an integer"), ("float", "a number"), ("bool", "a boolean"), ("timestamp", "a date")):
        name = f"tag:yaml.org,2002:{tag}"
        Loader.add_constructor(name, checked(what, Loader.yaml_constructors[name]))
    if any_tag:
        Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    return Loader
