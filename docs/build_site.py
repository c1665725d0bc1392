"""Build the documentation site: `site/html`, from the Markdown pages, the docstrings and rustdoc.

The pages stay ordinary Markdown with relative links. This file copies them into a source folder for Sphinx, with the
links adjusted:

- `docs/README.md` is the front page. Its table is the navigation and `llms.txt`: a bold row begins a section.
- Each module with a list of public names gets a page (`api/`).
- A source file or folder that a page links to becomes a page with its text (`files/`).

Warnings, broken links and anchors, and public names without a docstring are errors. `--no-rust` leaves out rustdoc.
"""

from __future__ import annotations

import argparse
import ast
import html
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

from sphinx.cmd.build import build_main

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BUILD = ROOT / "site"
SOURCE, SITE = BUILD / "source", BUILD / "html"
OUTSIDE = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "RELEASE.md": "releases.md",
    "SECURITY.md": "security.md",
    "benches/README.md": "benches.md",
}
"""Pages outside `docs/`, and their names in the site."""
MODULES = [
    "drpruning",
    "drpruning.corpus",
    "drpruning.mixture",
    "drpruning.scaling",
    "drpruning.loss_table",
    "drpruning.swarm",
    "drpruning.prepare",
    "drpruning.prepare.readers",
    "drpruning.pruning",
    "drpruning.config",
    "drpruning.planning",
    "drpruning.train.optimizers",
    "drpruning.report",
    "drpruning.tables",
    "drpruning.torch",
    "drpruning.errors",
    "drpruning._native",
]
"""The modules of the API reference. A name is described once; the first module exports names of the others, too."""
REFERENCE_CELL = ("docstrings and rustdoc, in the site", "[API reference](api/index.md)")
TITLE = ("# Documentation", "# drpruning")
"""What the front page has for the title and for the API reference, as a file and in the site."""
CRATES = ("chi2_ball", "drpruning_core")
LANGUAGES = {".py": "python", ".rs": "rust", ".json": "json", ".yaml": "yaml", ".toml": "toml"}
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
FILE_NAME = re.compile(r"\[(?:[\w/.-]+/)?([\w-]+)\.md\]\(")
"""A link whose text is the name of a Markdown file; the site shows the title or, in a sentence, the bare name."""
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """A row of the front page's table: a goal, and the pages for it."""

    section: str
    goal: str
    pages: list[str]


def main(arguments: list[str]) -> int:
    """Build the site; return Sphinx's exit code."""
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--no-rust", action="store_true", help="leave out the reference of the Rust crates")
    options = parser.parse_args(arguments)
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(DOCS / "_static", SOURCE / "_static")
    shutil.copy(DOCS / "conf.py", SOURCE)
    write_pages()
    write_reference()
    rows = list(read_rows(DOCS / "README.md"))
    benchmarks = list(read_rows(DOCS / "benchmarks" / "README.md"))
    front_page = SOURCE / "index.md"
    text = front_page.read_text(encoding="utf-8").replace(*REFERENCE_CELL).replace(*TITLE)
    front_page.write_text(text + navigation(rows), encoding="utf-8")
    _append(Path("benchmarks", "README.md"), toctree([name for row in benchmarks for name in row.pages]))
    shutil.rmtree(SITE, ignore_errors=True)
    flags = ["--fail-on-warning", "--keep-going", "--quiet", "--fresh-env", "-d", str(BUILD / "doctrees")]
    code = build_main([*flags, "-b", "html", str(SOURCE), str(SITE)])
    if code:
        return code
    (SITE / "llms.txt").write_text(
        llms_txt([*rows, *(replace(row, section="Benchmarks") for row in benchmarks)]), encoding="utf-8"
    )
    if not options.no_rust:
        write_rustdoc()
        if dead := check_links():
            sys.exit("dead links:\n" + "\n".join(dead))
    print(f"site: {SITE.relative_to(ROOT)}/index.html")
    return 0


def write_pages() -> None:
    """Write the Markdown pages, the notebooks, and the files that they link to."""
    pages = [*sorted(DOCS.rglob("*.md")), *sorted(DOCS.rglob("*.ipynb")), *(ROOT / name for name in OUTSIDE)]
    linked: set[Path] = set()

    def follow(target: Path) -> None:
        if target not in pages and not (SOURCE / place(target)).exists():
            linked.add(target)

    for page in pages:
        _write(place(page), adjust_links(page, page.read_text(encoding="utf-8"), follow))
    for target in sorted(linked):
        if target.suffix in (".png", ".svg"):
            (SOURCE / place(target)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, SOURCE / place(target))
        else:
            _write(place(target), file_page(target))


def place(path: Path) -> Path:
    """Return the name in the source folder of a file or folder of the repository."""
    name = path.relative_to(ROOT).as_posix()
    if name in OUTSIDE:
        return Path(OUTSIDE[name])
    if path == DOCS / "README.md":
        return Path("index.md")
    if path.is_relative_to(DOCS) and path.suffix in (".md", ".ipynb", ".png", ".svg"):
        return path.relative_to(DOCS)
    return Path("files", f"{name}.md")


def adjust_links(page: Path, text: str, follow: Callable[[Path], None]) -> str:
    """Return the text with each relative link outside of code pointing to the name in the source folder.

    Args:
        page: The file that holds the text.
        text: Markdown, or the JSON of a notebook.
        follow: Called with the target of each link.

    Raises:
        FileNotFoundError: if the target of a link does not exist.
    """

    def replaced(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(page.parent / match[1]))
        if not target.exists():
            raise FileNotFoundError(f"{page}: link to {match[1]}, which does not exist")
        if target.is_dir() and (target / "README.md").exists():
            target /= "README.md"
        follow(target)
        return os.path.relpath(place(target), place(page).parent)

    def prose(text: str) -> str:
        shown = "" if page.name == "README.md" else r"\1"  # lists of pages show the titles
        return FILE_NAME.sub(rf"[{shown}](", LINK.sub(replaced, text))

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [prose(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, prose(text[end:])])


def file_page(path: Path) -> str:
    """Return the page of a source file; of a folder, with all its files."""
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    name = path.relative_to(ROOT).as_posix()
    parts = [f"---\norphan: true\n---\n\n# {name}\n"]
    for file in files:
        if path.is_dir():
            parts.append(f"## {file.name}\n")
        text = file.read_text(encoding="utf-8")
        parts.append(f"````{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n````\n")
    return "\n".join(parts)


def read_rows(page: Path) -> Iterator[Row]:
    """Yield the rows of a page's table that link to pages, in order."""
    section = ""
    for goal, links in re.findall(r"^\| (.*?) \| (.*?) ?\|$", page.read_text(encoding="utf-8"), re.MULTILINE):
        if goal.startswith("**"):
            section = goal.strip("*")
        targets = [Path(os.path.normpath(page.parent / target)) for target in re.findall(r"\]\(([^)#]+)", links)]
        targets = [target / "README.md" if (target / "README.md").exists() else target for target in targets]
        names = [place(target).as_posix() for target in targets if target.is_file()]
        if names:
            yield Row(section, goal, names)


def navigation(rows: list[Row]) -> str:
    """Return one toctree for each section; each page is in the first section that names it."""
    sections: dict[str, list[str]] = {}
    seen: set[str] = set()
    for row in rows:
        names = [name for name in row.pages if name not in seen]
        seen.update(names)
        sections.setdefault(row.section, []).extend(names)
    sections["Reference"].insert(2, "api/index.md")  # after commands and settings
    return "".join(toctree(names, caption) for caption, names in sections.items())


def toctree(names: list[str], caption: str = "") -> str:
    """Return a hidden list of pages for the navigation."""
    title = {"overview.md": "Overview </overview>", "benches.md": "Benchmark programs </benches>"}
    options = f":hidden:\n:caption: {caption}\n" if caption else ":hidden:\n"
    listed = "\n".join(title.get(name, f"/{name.rsplit('.', 1)[0]}") for name in names)
    return f"\n```{{toctree}}\n{options}\n{listed}\n```\n"


def llms_txt(rows: list[Row]) -> str:
    """Return the list of pages for language models (llmstxt.org): goal and Markdown source of each page."""
    lines = ["# drpruning", "", f"> {summary(import_module('drpruning'))}"]
    goals: dict[str, list[str]] = {}
    sections: dict[str, list[str]] = {}
    for row in rows:
        for name in row.pages:
            if name not in goals:
                sections.setdefault(row.section, []).append(name)
            goals.setdefault(name, []).append(re.sub(r"[*]{2}|`", "", row.goal))
    for section, names in sections.items():
        lines += ["", f"## {section}", ""]
        lines += [f"- [{name.rsplit('.', 1)[0]}](_sources/{name}.txt): {'; '.join(goals[name])}" for name in names]
    lines += ["", "## API", ""]
    for name in MODULES:
        lines.append(f"- [{name}](api/{name}.html): {summary(import_module(name))}")
    return "\n".join(lines) + "\n"


def write_reference() -> None:
    """Write the pages of the API reference.

    Raises:
        SystemExit: if a public name has no docstring.
    """
    described: dict[int, str] = {}
    missing: list[str] = []
    for name in [*MODULES[1:], MODULES[0]]:
        module = import_module(name)
        own, others = [], []
        for public in public_names(name):
            value = getattr(module, public)
            setattr(module, public, value)  # autodoc does not find names that are imported on first use
            if not is_described(name, public):
                missing.append(f"{name}.{public}")
            is_documented = isinstance(value, type) or callable(value)
            first = described.setdefault(id(value), name) if is_documented else name
            (own if first == name else others).append((public, first))
        _write(Path("api", f"{name}.md"), reference_page(name, own, others))
    if missing:
        sys.exit("public names without a docstring:\n" + "\n".join(missing))
    rows = [f"| [{name}]({name}.md) | {summary(import_module(name))} |" for name in MODULES]
    crates = ", ".join(f'<a href="../rust/{crate}/index.html"><code>{crate}</code></a>' for crate in CRATES)
    index = ["# API reference\n", "| Python module | content |\n|---|---|", *rows]
    index.append(f"\nRust crates: {crates}.\n")
    _write(Path("api", "index.md"), "\n".join(index) + toctree([f"api/{name}.md" for name in MODULES]))


def summary(value: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(value) or "").partition("\n")[0]


def public_names(name: str) -> list[str]:
    """Return the public names of a module: `__all__`, or what it defines itself."""
    module = import_module(name)
    listed = getattr(module, "__all__", None)
    if listed is None:
        values = vars(module).items()
        listed = [key for key, value in values if getattr(value, "__module__", None) == name and key[0] != "_"]
    return [each for each in listed if each != "__version__"]


def is_described(name: str, public: str) -> bool:
    """Return whether a public name has a docstring; a constant, whether a string follows its assignment."""
    module = import_module(name)
    value = getattr(module, public)
    if inspect.isclass(value) or inspect.isroutine(value):
        return bool(value.__doc__) and not value.__doc__.startswith(f"{public}(")  # the latter is a dataclass's own
    return any(public in _described_constants(source) for source in Path(str(module.__file__)).parent.rglob("*.py"))


def _described_constants(path: Path) -> set[str]:
    """Return the names of a file whose assignment is followed by a string."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
            for line, following in pairwise(body if isinstance(body, list) else []):
                if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                    targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
                    names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def reference_page(name: str, own: list[tuple[str, str]], others: list[tuple[str, str]]) -> str:
    """Return the page of a module: the names described here, and links to those described on other pages."""
    members = ", ".join(public for public, _ in own)
    parts = [
        f"# {name}\n",
        f"```{{eval-rst}}\n.. automodule:: {name}\n   :members: {members}\n   :imported-members:\n```\n",
    ]
    if others:
        parts.append("## Names described on other pages\n\n| name | content |\n|---|---|")
        module = import_module(name)
        parts += [
            f"| [`{public}`](#{first}.{public}) | {summary(getattr(module, public))} |" for public, first in others
        ]
    return "\n".join(parts)


def check_links() -> list[str]:
    """Return the links of the site, apart from rustdoc's, whose target or anchor does not exist."""
    anchors: dict[Path, set[str]] = {}
    dead = []
    for page in SITE.rglob("*.html"):
        if page.is_relative_to(SITE / "rust"):
            continue
        for link in set(re.findall(r'href="([^":?]*)"', page.read_text(encoding="utf-8"))):
            name, _, anchor = html.unescape(link).partition("#")
            target = Path(os.path.normpath(page.parent / name)) if name else page
            if target.suffix == ".html" and target.exists() and target not in anchors:
                anchors[target] = set(re.findall(r'\bid="([^"]+)"', target.read_text(encoding="utf-8")))
            if not target.exists() or (anchor and anchor not in anchors[target]):
                dead.append(f"{page.relative_to(SITE)}: {link}")
    return dead


def write_rustdoc() -> None:
    """Build the reference of the Rust crates into the site; warnings are errors."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    command = ["cargo", "doc", "--no-deps", "--quiet", "--package", "chi2-ball", "--package", "drpruning-core"]
    subprocess.run(  # noqa: S603 - a fixed command
        command, cwd=ROOT, check=True, env={**os.environ, "RUSTDOCFLAGS": "--deny warnings"}
    )
    shutil.copytree(target / "doc", SITE / "rust", dirs_exist_ok=True)


def _write(name: Path, text: str) -> None:
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _append(name: Path, text: str) -> None:
    with (SOURCE / name).open("a", encoding="utf-8") as page:
        page.write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
