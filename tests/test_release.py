"""The files of a release agree with each other, and the check of a wheel holds here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_versions_agree() -> None:
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == cargo["workspace"]["package"]["version"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit_and_rights_are_least(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
    for step in steps:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    for name, job in workflow["jobs"].items():
        assert ("permissions" in job) == (name == "publish")


def test_the_publishing_action_accepts_the_metadata_of_the_wheels() -> None:
    """Check its version: twine 5.0 of version 1.8 rejects `Metadata-Version: 2.4`, which maturin writes."""
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    version = re.search(r"pypa/gh-action-pypi-publish@[0-9a-f]{40} # v(\d+)\.(\d+)\.\d+", workflow)
    assert version
    assert (int(version[1]), int(version[2])) >= (1, 13)


def test_rows_and_weights_are_those_of_every_platform(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "smoke_wheel.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "rows and weights as expected" in result.stdout


def test_the_rust_libraries_of_the_wheel_are_few_and_have_free_licences() -> None:
    """Check that each is from the registry and may be redistributed in binary form with a notice."""
    permissive = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "Unicode-3.0", "Zlib"}
    command = ["cargo", "metadata", "--offline", "--locked", "--format-version", "1"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    waiting = [key for key, package in packages.items() if package["name"] == "drpruning-python"]
    wheel: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key not in wheel:
            wheel.add(key)
            found = nodes[key]["deps"]
            waiting += [other["pkg"] for other in found if any(kind["kind"] is None for kind in other["dep_kinds"])]
    assert 3 < len(wheel) <= 60
    for key in wheel:
        package = packages[key]
        required = re.sub(r"[()]", "", package["license"]).split(" AND ")
        for part in required:
            assert permissive & set(re.split(r" OR |/", part)), (package["name"], package["license"])
        assert package["source"] is None or package["source"].startswith("registry+"), package["name"]


def test_each_unsafe_operation_is_listed() -> None:
    """Check that docs/reliability.md has the number of unsafe blocks, functions and implementations of each file."""
    table = dict(re.findall(r"^\| `(rust/\S+\.rs)` \| (\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.M))
    found = {}
    for path in (ROOT / "rust").rglob("*.rs"):
        code = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        if count := len(re.findall(r"\bunsafe\s+(?:\{|fn|impl|extern)", code)):
            found[path.relative_to(ROOT).as_posix()] = str(count)
    assert table == found
