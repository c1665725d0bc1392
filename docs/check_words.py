"""Check the language of code and docs: plain technical terms, and function docstrings that begin with a verb.

`make lint` runs this file over everything that git tracks; paths as arguments restrict it. A finding is printed as
path:line, the words found and what to write. CONTRIBUTING has the rules and the glossary.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".md", ".py", ".pyi", ".rs", ".yaml", ".toml", ".html", ".js")
SKIPPED = ("docs/check_words.py", "CHANGELOG.md", "Cargo.lock")

WRITE_INSTEAD = {
    r"told|tells?": "passed, passes; reports; given",
    r"foretold|foretells?|foretelling": "lookahead; predicted",
    r"anew": "again; from the start",
    r"beside": "next to; with; compared with",
    r"shall|whoever|nobody|hence|thereof|henceforth": "must; any user; no process; so",
    r"of (?:its|their|his) own": "own; separate",
    r"as far as": "where; if",
    r"at hand|give leave|brought along|kept aside|under way|all the same": "available; permit; included; held out",
    r"(?:go|goes|gone|going|went) on": "continue, resume",
    r"(?:go|goes|gone|going|went) back": "roll back, return",
    r"what (?:came of|is ahead|goes wrong|is left of)": "a noun: result, prefetched batches, errors, the rest",
    r"stands?|stood": "is; is stored; is written",
    r"lies|lay": "is; is stored",
    r"asks?|asked|asking": "request; pass; query; call",
    r"knows|knew|wants?|wanted|wishes": "has; reads; needs; expects",
    r"says|said": "is; reports; prints; states",
    r"teaches|taught": "distils; the teacher's",
    r"elsewhere": "name the place",
    r"settled?|settles": "flush; final; static",
    r"set(?:s|ting)? aside": "hold out",
    r"mends?|mended": "fix",
    r"(?:as (?:it|they) (?:is|are)|as it was)(?=$|[.,;:)\"'`])": "unchanged; raw",
    r"(?:after|for|with|within|at most|the mean of|the median of|of) so many": "the number",
    r"(?:cannot|can|does not|do not) know": "has no; lacks",
    r"reads? ahead|reading ahead": "prefetch",
    r"the other way round|thus|whence|therein|thereby|whereby": "vice versa; so; by which",
    r"gets? somewhere|cousins?|the trap|nothing of this|cut short|(?:written|writes?) aside": "a literal statement",
    r"by and by|for good|as it were|so to speak|to and fro": "a plain adverb, or nothing",
}
PATTERNS = [
    (re.compile(rf"(?<!\.)\b(?:{words})\b", re.IGNORECASE), instead) for words, instead in WRITE_INSTEAD.items()
]
DEFINED = re.compile(r"^\s*(?:pub )?(?:def|class|fn) (\w+_\w+)")
"""A name of several words that a line of Python or Rust defines."""
NO_VERB = set(
    re.findall(
        r"\w+",
        "the a an this that these those it its each every all any one two both none no whether how which what who "
        "where when why of for in at on by from with without under over after before up to if as and or not nothing "
        "true false same other another least most more less only",
    )
)


def tracked(paths: list[str]) -> Iterator[Path]:
    """Yield the files under ``paths`` (everything without any) that git tracks and that hold prose or code."""
    listed = subprocess.run(  # noqa: S603 - the paths are a developer's
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in listed:
        if name.endswith(SUFFIXES) and name not in SKIPPED and (ROOT / name).is_file():
            yield ROOT / name


def private_words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, the words found and the words to write, for each word of the list in ``text``."""
    for number, line in enumerate(text.splitlines(), 1):
        names = " ".join(DEFINED.findall(line)).replace("_", " ")
        for pattern, instead in PATTERNS:
            for match in [*pattern.finditer(line), *pattern.finditer(names)]:
                yield number, match[0], instead


def docstrings_without_verb(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, first words and advice for each function docstring in Python ``text`` that begins with no verb.

    Properties are exempt: they are read like attributes, and a noun describes them.
    """
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        docstring = ast.get_docstring(node)
        if docstring and (words := docstring.split()) and words[0].strip("`*,.:;").lower() in NO_VERB:
            yield node.lineno, " ".join(words[:3]), "a docstring that begins with a verb: Return, Write, Check"


def main(paths: list[str]) -> int:
    """Print all findings; return how many there are, at most 1 as an exit code."""
    found = 0
    for path in tracked(paths):
        text = path.read_text(encoding="utf-8")
        findings = [*private_words(text), *(docstrings_without_verb(text) if path.suffix in (".py", ".pyi") else ())]
        for line, words, instead in sorted(findings):
            print(f"{path.relative_to(ROOT)}:{line}: {words!r}: write {instead}")
        found += len(findings)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
