"""Names of static mixtures in recipes: shares by the corpus, budgets of unimax, wrong names, plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.errors import ConfigError
from drpruning.mixture import Schedule, build
from drpruning.recipes import load_recipe, with_shares
from tests.conftest import MakeCorpus

SIZES = {"web": 9_000_000, "code": 1_000_000}


def test_shares_are_those_of_the_corpus_in_its_order() -> None:
    config = load_recipe("quickstart", ["data.reference_ratio=natural", "pretrain.mixture=temperature:0.5"])
    assert config.mixture_names == {"data.reference_ratio": "natural", "pretrain.mixture": "temperature:0.5"}
    found = with_shares(config, SIZES)
    assert found.domains == ["web", "code"]
    assert found.reference_ratio == pytest.approx({"web": 0.9, "code": 0.1})
    assert found.pretrain_ratio == pytest.approx({"web": 0.75, "code": 0.25})
    assert found.mixture_names == {}
    assert with_shares(found, {"other": 1}) is found


def test_a_power_changes_the_ratio_of_the_recipe() -> None:
    ratio, raised = (
        load_recipe("quickstart", words).reference_ratio for words in ([], ["data.reference_ratio=power:0.5"])
    )
    total = sum(share**0.5 for share in ratio.values())
    assert raised == pytest.approx({domain: share**0.5 / total for domain, share in ratio.items()})
    twice = load_recipe("quickstart", ["data.reference_ratio=natural", "data.reference_ratio=power:0.5"])
    assert twice.mixture_names == {"data.reference_ratio": "temperature:0.5"}
    with pytest.raises(ConfigError, match=r"data.reference_ratio: .*expected a ratio to a power"):
        load_recipe("quickstart", ["data.reference_ratio=power:x"])
    with pytest.raises(ConfigError, match="changes the reference ratio of a recipe"):
        load_recipe("quickstart", ["pretrain.mixture=power:0.5"])


def test_unimax_counts_epochs_over_prune_and_continue_and_over_pretrain_as_its_mixture() -> None:
    config = load_recipe("quickstart", ["data.reference_ratio=unimax:2", "pretrain.mixture=unimax:2"])
    tokens, base = config.tokens("prune", "continue"), config.tokens("pretrain")
    assert tokens != base
    sizes = {"web": 10 * (tokens + base), "code": min(tokens, base) / 10}
    found = with_shares(config, sizes)
    assert found.reference_ratio["code"] * tokens / sizes["code"] == pytest.approx(2)
    assert found.pretrain_ratio["code"] * base / sizes["code"] == pytest.approx(2)


def test_a_schedule_in_a_recipe_has_mixtures_by_name() -> None:
    changes = "[{at: 0, weights: natural}, {at: 100, weights: {web: 0.6, code: 0.4}}, {at: 200, weights: uniform}]"
    words = ["data.reference_ratio=natural", "mixture.strategy=schedule", f"mixture.schedule.stages.continue={changes}"]
    config = load_recipe("quickstart", words)
    assert set(config.mixture_names.values()) == {"natural", "uniform"}
    found = with_shares(config, SIZES)
    assert found.mixture_names == {}
    strategy = build("schedule", found.mixture.settings())
    assert isinstance(strategy, Schedule)
    weights = [change.weights for change in (strategy.stages or {})["continue"]]
    expected = [{"web": 0.9, "code": 0.1}, {"web": 0.6, "code": 0.4}, {"web": 0.5, "code": 0.5}]
    assert weights == [pytest.approx(each) for each in expected]
    with pytest.raises(ConfigError, match="no static mixture is called 'natrual'"):
        load_recipe("quickstart", [f"mixture.schedule.stages.continue={changes.replace('natural', 'natrual')}"])
    with pytest.raises(ConfigError, match="here no corpus is known"):
        build("schedule", config.mixture.settings())


def test_bounds_and_references_are_checked_with_the_domains() -> None:
    config = load_recipe("quickstart", ["data.reference_ratio=uniform", "mixture.max_share={wab: 0.3}"])
    with pytest.raises(ConfigError, match=r"mixture\.max_share names the domain wab"):
        with_shares(config, SIZES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.reference_ratio=natrual", "'natrual'; expected one of natural, uniform, temperature:A, unimax:EPOCHS, "),
        ("data.reference_ratio=natrual", "\nDid you mean natural?"),
        ("data.reference_ratio=temperature", "\nFor example temperature:0.5."),
        ("data.reference_ratio=unimax:0", "data.reference_ratio: no static mixture is called 'unimax:0'"),
        ("data.reference_ratio={web: 0.5, code: 0}", "data.reference_ratio.code is 0; expected above 0"),
        ("pretrain.mixture=unifrom", "pretrain.mixture: no static mixture is called 'unifrom'"),
        ("pretrain.mixture={web: 1}", "pretrain.mixture and data.reference_ratio differ in the domains"),
    ],
)
def test_wrong_names(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("quickstart", [override])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_name_without_its_corpus(tmp_path: Path) -> None:
    config = load_recipe("quickstart", ["data.reference_ratio=natural"])
    with pytest.raises(ConfigError, match="the shares are not known without the corpus"):
        _ = config.domains
    with pytest.raises(ConfigError, match=r"data\.reference_ratio: average:.*nowhere: expected a run folder"):
        with_shares(load_recipe("quickstart", [f"data.reference_ratio=average:{tmp_path / 'nowhere'}"]), SIZES)
    words = ["plan", "cost", "quickstart", "--set", "data.reference_ratio=natural", "--set", "data.corpus=nowhere"]
    found = CliRunner().invoke(group, words)
    assert "the corpus 'nowhere' does not exist" in str(found.exception)


def test_a_plan_prints_the_shares(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus({"web": [600, 300], "code": [100]})
    words = ["plan", "cost", "quickstart", "--set", "data.reference_ratio=natural", "--set", f"data.corpus={corpus}"]
    assert "data.reference_ratio natural: web 0.900, code 0.100" in CliRunner().invoke(group, words).stdout
    body = json.loads(CliRunner().invoke(group, [*words, "--json"]).stdout)
    assert body["mixtures"]["data.reference_ratio"] == pytest.approx({"web": 0.9, "code": 0.1})
