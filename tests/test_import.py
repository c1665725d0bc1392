"""`import drpruning` and the sampler need numpy and nothing else; imports run down the rows of CONTRIBUTING."""

import ast
import graphlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import drpruning

HEAVY = ("torch", "transformers", "scipy", "pydantic")
PACKAGE = Path(drpruning.__file__).parent
FOLDERS = Path(__file__).parents[1] / "CONTRIBUTING.md"


def run(code: str) -> str:
    """Runs `code` in a fresh interpreter, warnings as errors, and returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    code = f"""
        import sys
        import drpruning
        drpruning.Corpus, drpruning.DomainSampler, drpruning.__version__
        print([name for name in {HEAVY!r} if name in sys.modules])
    """
    assert run(code) == "[]"


def test_the_sampler_works_where_nothing_heavy_is_installed() -> None:
    code = f"""
        import sys, tempfile

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {HEAVY!r}:
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Missing())
        import numpy as np
        import drpruning as dp

        with tempfile.TemporaryDirectory() as folder:
            np.arange(100, dtype="uint16").tofile(folder + "/web.bin")
            corpus = dp.Corpus({{"web": folder + "/web.bin"}}, dtype="uint16")
            sampler = dp.DomainSampler(corpus, {{"web": 1.0}}, seq_len=5, batch_size=4)
            print(next(sampler).tokens.shape, len(sampler.state_dict()["rows"]))
        try:
            dp.torch
        except ModuleNotFoundError as error:
            print("no", error)
    """
    assert run(code) == "(4, 5) 1\nno torch"


def test_every_public_name_is_there_and_listed() -> None:
    for name in drpruning.__all__:
        assert getattr(drpruning, name) is not None
    assert set(drpruning.__all__) <= set(dir(drpruning))
    assert len(set(drpruning.__all__)) == len(drpruning.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(drpruning, "no_such_name")


def imports() -> dict[str, set[str]]:
    """Return the modules that each module imports: at its top, in functions, and for type checkers only."""
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = set(imported(ast.parse(path.read_text(encoding="utf-8")), package, set(files))) - {name}
    return found


def imported(tree: ast.Module, package: str, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                module = f"{source}.{alias.name}"
                yield from (each for each in ([module] if module in modules else [source]) if each in modules)


def part_of(module: str) -> str:
    """Return the folder or the file of the package that holds ``module``; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def rows() -> dict[str, int]:
    """Return the row of each folder and file of the package in the table of CONTRIBUTING."""
    lines = FOLDERS.read_text(encoding="utf-8").split("| path |")[1].split("\n\n")[0].split("\n")
    paths = [re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1]) for line in lines if line.startswith("| `")]
    return {path: row for row, names in enumerate(paths) for path in names}


def test_no_imports_form_a_circle() -> None:
    # What `drpruning` exports it imports at first use, so that a module may import `drpruning.__version__`.
    found = {module: targets for module, targets in imports().items() if module != "drpruning"}
    assert len(found) > 250
    graphlib.TopologicalSorter(found).prepare()  # CycleError names the circle


def test_imports_run_down_the_rows_of_contributing() -> None:
    row = rows()
    found = {module: targets for module, targets in imports().items() if part_of(module) not in ("", "__main__")}
    assert {part_of(module) for module in found} <= set(row), "a folder or file has no row in CONTRIBUTING"
    upward = [
        f"{module} imports {target}"
        for module, targets in found.items()
        for target in sorted(targets - {"drpruning"})
        if row[part_of(target)] > row[part_of(module)]
    ]
    assert upward == []
