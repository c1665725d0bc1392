"""Text that every machine with this package has: source, docstrings, stubs, readmes and licences of what it depends on.

Nothing is imported: files are found through installation metadata and docstrings are read by parsing source, so a
look at torch costs no import of torch. Only the packages that drpruning itself requires (and what they require) are
read, so that a developer's further packages do not change the text.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from drpruning.errors import MissingExtraError

ROOTS = (
    "numpy",
    "scipy",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "click",
    "pydantic",
    "PyYAML",
    "rich",
    "tensorboard",
    "jinja2",
    "matplotlib",
)
"""What drpruning requires; the same names as in its package metadata, which is absent when it runs from a checkout."""

NOT_PROSE_OR_CODE = frozenset({"tests", "test", "testing", "site-packages", "dist-packages", "__pycache__", "idlelib"})
"""Folders left out: tests, which distributions of Linux strip, and packages nested in the library's folder."""

LICENCE_NAME = re.compile(r"^(licen[cs]e|copying|notice)", re.IGNORECASE)


@cache
def distributions() -> dict[str, Distribution]:
    """Installed distributions of :data:`ROOTS` and, in turn, of what they require, by normalised name, sorted.

    Requirements of extras are not followed, and what is not installed (another platform's) is passed over.
    """
    found: dict[str, Distribution] = {}
    waiting = list(ROOTS)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for requirement in found[name].requires or []:
            described, _, marker = requirement.partition(";")
            if "extra" not in marker and (match := re.match(r"[\w.-]+", described.strip())):
                waiting.append(match.group())
    return dict(sorted(found.items()))


def package_folder(package: str) -> Path:
    """Where an installed package's files are, without importing it.

    Raises:
        MissingExtraError: It is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"the demo corpus is made from {package}, which is not installed", "pip install drpruning"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def standard_library() -> list[Path]:
    """Python sources of the standard library."""
    return _files(Path(sysconfig.get_paths()["stdlib"]), {".py"})


def package_sources(packages: Iterable[str]) -> list[Path]:
    """Python sources of installed packages."""
    return _mixed(path for package in packages for path in _files(package_folder(package), {".py"}))


def torch_headers() -> list[Path]:
    """C++ headers that torch brings, without the thousands that are generated from one template each."""
    include = package_folder("torch") / "include"
    generated = include / "ATen" / "ops"
    return [path for path in _files(include, {".h", ".hpp", ".cuh"}) if generated not in path.parents]


def stubs() -> list[Path]:
    """Type stubs (``.pyi``) inside the installed packages."""
    return _mixed(path for path in _distributed() if path.suffix == ".pyi")


def licences() -> list[Path]:
    """Licence, copying and notice files of the installed packages."""
    return _mixed(
        path for path in _distributed() if LICENCE_NAME.match(path.name) and path.suffix not in {".py", ".pyc", ".pyi"}
    )


def readmes() -> Iterator[str]:
    """The long descriptions of the installed packages."""
    for found in distributions().values():
        _, _, description = (found.read_text("METADATA") or "").replace("\r\n", "\n").partition("\n\n")
        if description.strip():
            yield description


def docstrings(source: str, at_least: int = 80) -> str:
    r"""The docstrings of a module, its classes and functions, in order, a blank line between.

    Args:
        source: Python source.
        at_least: Shorter ones, in characters, are left out.

    >>> docstrings('def mean(x):\n    "The mean."\n\ndef total(x):\n    "The sum."', at_least=0)
    'The mean.\n\nThe sum.'
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # a template, or source for another Python
        return ""
    found = (ast.get_docstring(node) for node in _documented(tree))
    return "\n\n".join(text for text in found if text and len(text) >= at_least)


def versions() -> dict[str, str]:
    """Version of every distribution the text comes from."""
    return {name: found.version for name, found in distributions().items()}


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """``node`` and what is defined in its body, in the order of the source.

    Definitions under an ``if`` or ``try`` are passed over, and expressions not entered: :func:`ast.walk` enters them,
    which takes ten times as long.
    """
    yield node
    for statement in node.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(statement)


@cache
def _distributed() -> tuple[Path, ...]:
    """Files of :func:`distributions` that exist, tests left out."""
    listed = (
        (Path(str(file)), Path(str(found.locate_file(file))))
        for found in distributions().values()
        for file in found.files or ()
        if file.suffix == ".pyi" or LICENCE_NAME.match(file.name)
    )
    return tuple(path for name, path in listed if not NOT_PROSE_OR_CODE & set(name.parts) and path.is_file())


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    return _mixed(
        path
        for path in folder.rglob("*")
        if path.suffix in suffixes and not NOT_PROSE_OR_CODE & set(path.relative_to(folder).parts)
    )


def _mixed(paths: Iterable[Path]) -> list[Path]:
    """``paths`` in an order that is the same on every machine and unrelated to their names.

    The cap on a domain then takes a fair sample of it, not the packages that come first in the alphabet. The last
    three parts of a path decide, since the rest depends on where Python is installed.
    """
    return sorted(set(paths), key=lambda path: (hashlib.sha256("/".join(path.parts[-3:]).encode()).digest(), path))
