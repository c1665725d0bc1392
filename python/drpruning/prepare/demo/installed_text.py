"""Text of the installed packages: source, docstrings, stubs, readmes and licences of the dependencies of drpruning.

No package is imported: installation metadata lists the files, and docstrings are parsed from source. Only packages that
drpruning requires, directly or indirectly, are read, so that other packages of a developer do not change the text.
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
from typing import NamedTuple

from drpruning.errors import MissingExtraError, install_command

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
"""Requirements of drpruning: the names in its package metadata, which is absent when it runs from a checkout."""

EXCLUDED_FOLDERS = frozenset({"tests", "test", "testing", "site-packages", "dist-packages", "__pycache__", "idlelib"})
"""Folders left out: tests, which Linux distributions strip, and packages nested in the library's folder."""

MARKUP = frozenset({".md", ".rst"})

LICENCE_NAME = re.compile(r"^(licen[cs]e|copying|notice)", re.IGNORECASE)


class InstalledFile(NamedTuple):
    """A file: its path, and its name relative to the folder of the installation, the same on every machine."""

    path: Path
    name: str


@cache
def distributions() -> dict[str, Distribution]:
    """List the installed distributions of :data:`ROOTS` and of their requirements, by normalised name, sorted.

    Requirements of extras are not followed. Distributions that are not installed (for another platform) are skipped.
    """
    by_name: dict[str, Distribution] = {}
    pending = list(ROOTS)
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in by_name:
            continue
        try:
            by_name[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for requirement in by_name[name].requires or []:
            specifier, _, marker = requirement.partition(";")
            if "extra" not in marker and (match := re.match(r"[\w.-]+", specifier.strip())):
                pending.append(match.group())
    return dict(sorted(by_name.items()))


def package_folder(package: str) -> Path:
    """Find the folder of an installed package without importing it.

    Raises:
        MissingExtraError: It is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"the demo corpus is made from {package}, which is not installed", install_command(package)
        )
    return Path(next(iter(spec.submodule_search_locations)))


def standard_library() -> list[InstalledFile]:
    """List the Python sources of the standard library; names are relative to its folder."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return _shuffle_by_hash(_list_files(folder, folder, {".py"}))


def package_sources(packages: Iterable[str]) -> list[InstalledFile]:
    """List the Python sources of installed packages."""
    folders = [package_folder(package) for package in packages]
    return _shuffle_by_hash(file for folder in folders for file in _list_files(folder, folder.parent, {".py"}))


def torch_headers() -> list[InstalledFile]:
    """List the C++ headers in torch, without the thousands that are generated from templates."""
    torch = package_folder("torch")
    generated = torch / "include" / "ATen" / "ops"
    files = _list_files(torch / "include", torch.parent, {".h", ".hpp", ".cuh"})
    return _shuffle_by_hash(file for file in files if generated not in file.path.parents)


def stubs() -> list[InstalledFile]:
    """List the type stubs (``.pyi``) in the installed packages."""
    return _shuffle_by_hash(file for file in _distributed_files() if file.path.suffix == ".pyi")


def licences() -> list[InstalledFile]:
    """List the licence, copying and notice files of the installed packages."""
    return _shuffle_by_hash(
        file
        for file in _distributed_files()
        if LICENCE_NAME.match(file.path.name) and file.path.suffix not in {".py", ".pyc", ".pyi"}
    )


def markup() -> list[InstalledFile]:
    """List the Markdown and reStructuredText files in the installed packages, without licences."""
    return _shuffle_by_hash(
        file
        for file in _distributed_files()
        if file.path.suffix in MARKUP and not LICENCE_NAME.match(file.path.name) and ".dist-info" not in file.name
    )


def long_descriptions() -> Iterator[tuple[str, str]]:
    """Yield the name and the long description of each installed package."""
    for name, package in distributions().items():
        _, _, description = (package.read_text("METADATA") or "").replace("\r\n", "\n").partition("\n\n")
        if description.strip():
            yield name, description


def docstrings(source: str, min_length: int = 80) -> str:
    r"""Extract the docstrings of a module, its classes and functions, in order, separated by blank lines.

    Args:
        source: Python source.
        min_length: Shorter docstrings, in characters, are left out.

    >>> docstrings('def mean(x):\n    "The mean."\n\ndef total(x):\n    "The sum."', min_length=0)
    'The mean.\n\nThe sum.'
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # deprecated escapes in the strings of other packages
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # a template, or source for another Python
        return ""
    texts = (ast.get_docstring(node) for node in _definitions(tree))
    return "\n\n".join(text for text in texts if text and len(text) >= min_length)


def package_versions() -> dict[str, str]:
    """Return the version of every distribution that the text comes from."""
    return {name: package.version for name, package in distributions().items()}


def _definitions(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield ``node`` and the definitions in its body, in the order of the source.

    Definitions under an ``if`` or ``try`` are skipped. Expressions are not visited, which makes this ten times as
    fast as :func:`ast.walk`.
    """
    yield node
    for statement in node.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(statement)


@cache
def _distributed_files() -> tuple[InstalledFile, ...]:
    """List the existing files of :func:`distributions`, without tests."""
    listed = (
        InstalledFile(Path(str(package.locate_file(file))), str(file).replace(f"-{package.version}.", "."))
        for package in distributions().values()
        for file in package.files or ()
        if file.suffix in {".pyi", *MARKUP} or LICENCE_NAME.match(file.name)
    )
    return tuple(file for file in listed if not EXCLUDED_FOLDERS & set(Path(file.name).parts) and file.path.is_file())


def _list_files(folder: Path, root: Path, suffixes: set[str]) -> Iterator[InstalledFile]:
    """Yield the files in ``folder`` with one of the suffixes; names are relative to ``root``."""
    for path in folder.rglob("*"):
        if path.suffix in suffixes and not EXCLUDED_FOLDERS & set(path.relative_to(folder).parts):
            yield InstalledFile(path, path.relative_to(root).as_posix())


def _shuffle_by_hash(files: Iterable[InstalledFile]) -> list[InstalledFile]:
    """Sort ``files``, each path once, in an order that is the same on every machine and unrelated to their names.

    The size limit of a domain then takes a fair sample, not the packages that come first in the alphabet. The last
    three parts of a path decide, since the rest depends on the installation folder of Python.
    """
    once = {file.path: file for file in files}
    return sorted(
        once.values(),
        key=lambda file: (hashlib.sha256("/".join(file.path.parts[-3:]).encode()).digest(), file.path),
    )
