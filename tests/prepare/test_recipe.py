"""Recipes are checked key by key; the shipped ones are whole; the hub without a network is a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from drpruning.errors import ConfigError
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.source_files import source_files
from drpruning.prepare.recipe import read_recipe, read_recipe_text, shipped_prepare_recipes
from drpruning.recipes import load_recipe

RECIPE = """
holdout: {fraction: 0.1, min_tokens: 0}
text: content
domains:
  plain: [a.txt, /data/b.txt]
  mapped:
    paths: c/*.jsonl
    text: [title, meta.body]
    join: " "
    where: {meta.language: en, good: true}
"""


def test_a_recipe_sets_fields_by_domain(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    recipe = read_recipe(str(tmp_path / "mine.yaml"))
    texts = recipe.texts(tmp_path)
    assert texts["plain"].paths == [str(tmp_path / "a.txt"), "/data/b.txt"]
    assert texts["plain"].fields == FieldMapping(text=("content",))
    expected = FieldMapping(text=("title", "meta.body"), join=" ", where={"meta.language": "en", "good": True})
    assert texts["mapped"].fields == expected
    assert recipe.holdout_size() == Holdout(fraction=0.1, min_tokens=0, max_fraction=0.2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("domains: {}", "domains: "),
        ("domains: {a: x.txt}\ntokeniser: t", "tokeniser: Extra inputs are not permitted\nDid you mean tokenizer"),
        ("domains: {a: {paths: x, were: {b: 1}}}", "were: Extra inputs are not permitted\nDid you mean where"),
        ("domains: {a: x.txt}\nmax_errors: -1", "max_errors: "),
        ("- a", "has no settings"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_a_recipe_cannot_say_is_named(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(body)
    with pytest.raises(ConfigError, match=message):
        read_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", ["redpajama", "slimpajama", "dolma", "culturax", "code"])
def test_shipped_recipes_are_whole(name: str) -> None:
    recipe = read_recipe(name)
    assert shipped_prepare_recipes()[name] == read_recipe_text(name).splitlines()[0].removeprefix("# ")
    trained = {"culturax": "qwen2-7b-to-1.8b", "code": None}.get(name, "llama2-7b-to-1.3b")
    if trained is not None:
        assert set(recipe.domains) == set(load_recipe(trained).data.reference_ratio)
    for text in recipe.texts(Path()).values():
        for path in text.paths:
            assert str(path).startswith(("data/", "hf://datasets/"))


def test_the_hub_without_a_network_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot download the dataset allenai/c4 from the Hugging Face hub") as caught:
        source_files(["hf://datasets/allenai/c4/en/*.json.gz"])
    assert caught.value.next_step is not None
    assert "Without a network" in caught.value.next_step


def test_files_from_the_hub_are_selected_by_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("en/b.json.gz", "en/a.json.gz", "de/a.json.gz", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    options_of = {}

    def download(repository: str, **options: object) -> str:
        options_of.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = source_files(["hf://datasets/allenai/c4@v1/en/*.json.gz"])
    assert [file.path for file in found] == [tmp_path / "en/a.json.gz", tmp_path / "en/b.json.gz"]
    assert options_of == {
        "repository": "allenai/c4",
        "repo_type": "dataset",
        "revision": "v1",
        "allow_patterns": ["en/*.json.gz"],
    }
    found = source_files(["hf://datasets/allenai/c4"])
    assert [str(file.path.relative_to(tmp_path)) for file in found] == ["de/a.json.gz", "en/a.json.gz", "en/b.json.gz"]


def test_a_folder_of_the_same_name_does_not_hide_a_shipped_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_recipe("code").domains
