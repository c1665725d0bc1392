"""Recipes: what is accepted, what is refused, and the message of the refusal."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

from drpruning.config import MixtureConfig, RunConfig, StrategyName
from drpruning.config.mixture import readers
from drpruning.config.presets import STRATEGIES as PUBLISHED
from drpruning.errors import ConfigError
from drpruning.mixture import STRATEGIES, Bounds, build
from drpruning.mixture.settings import settings
from drpruning.recipes import load_recipe, parse_recipe, recipe_text, shipped_recipes

RECIPES = list(shipped_recipes())


def test_the_recipes_of_the_papers_of_small_models_and_two_to_start_with_are_shipped() -> None:
    assert set(RECIPES) == {
        "quickstart",
        "continue",
        "llama2-7b-to-2.7b",
        "llama2-7b-to-1.3b",
        "llama2-7b-to-370m",
        "qwen2-7b-to-1.8b",
        "smollm2-135m-to-70m",
        "smollm2-360m-to-180m",
        "smollm2-1.7b-to-850m",
    }


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("strategy", get_args(StrategyName))
def test_every_recipe_takes_every_strategy(name: str, strategy: str) -> None:
    config = load_recipe(name, [f"mixture.strategy={strategy}"])
    assert config.mixture.strategy == strategy
    assert config.name == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_resolved_recipe_reads_back_as_itself(name: str) -> None:
    config = load_recipe(name)
    again = parse_recipe(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert again.hash() == config.hash()


def test_figures_of_the_paper() -> None:
    config = load_recipe("llama2-7b-to-1.3b")
    assert config.prune.target.model_dump() == {
        "layers": 24,
        "hidden": 2048,
        "heads": 16,
        "kv_heads": None,
        "intermediate": 5504,
        "experts": None,
    }
    assert config.prune.steps * config.prune.batch_size * config.data.seq_len == 3200 * 131_072
    assert config.data.reference_ratio["cc"] == 0.67
    assert isinstance(config.mixture.reference_loss, dict)
    assert config.mixture.reference_loss["github"] == 0.7459


def test_set_reads_yaml_values_and_makes_sections() -> None:
    config = load_recipe("quickstart", ["prune.learning_rate=5e-4", "also_run=[]", "mixture.rho=0.3"])
    assert config.prune.learning_rate == 5e-4
    assert config.also_run == ()
    assert config.mixture.rho == 0.3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture.roh=0.1", "unknown setting mixture.roh\nDid you mean rho?"),
        ("prune.target.layer=3", "unknown setting prune.target.layer\nDid you mean layers?"),
        ("continue.step=3", "unknown setting continue.step\nDid you mean steps?"),
        ("prune.steps=-1", "prune.steps is -1; expected at least 1"),
        ("prune.steps=many", "prune.steps is 'many'; expected an integer"),
        ("prune.learning_rate=fast", "prune.learning_rate is 'fast'; expected a number"),
        ("mixture.strategy=dro", "\nDid you mean group_dro?"),
        (
            "prune.gate_init=tailor",
            "prune.gate_init is 'tailor'; expected 'uniform', 'taylor' or 'activation'",
        ),
        ("prune.gate_init={deep: taylor}", "unknown setting prune.gate_init.deep"),
        ("prune.gate_init={depth: taylor}", "setting prune.gate_init.width is missing"),
        ("model.architecture.kv_heads=3", "model.architecture: heads 8 is not a multiple of kv_heads 3"),
        ("data.reference_ratio={a: 0.5}", "data.reference_ratio: the shares sum to 0.5; expected 1"),
        ("mixture.reference_loss={cpp: 1}", "differ in the domains"),
        ("mixture.reference_loss=bsae", "expected losses by domain, `base`, or a file of losses of finished models"),
        (
            "mixture.reference_loss={cpp: -1}",
            "mixture.reference_loss.cpp is -1; expected at least 0",
        ),
        ("mixture.max_share=0.1", "mixture.max_share sums to 0.7 over all domains; expected at least 1"),
        ("mixture.min_share=0.2", "mixture.min_share sums to 1.4 over all domains; expected at most 1"),
        ("mixture.max_share={cp: 0.2}", "mixture.max_share names the domain cp, which is not in"),
        ("mixture.max_share={cpp: 2}", "mixture.max_share.cpp is 2; expected at most 1"),
        ("mixture.max_epochs=0", "mixture.max_epochs is 0; expected above 0"),
        ("mixture.schedule={stage: 1}", "unknown setting mixture.schedule.stage"),
        ("mixture.schedule={stages: {prun: []}}", "mixture.schedule: a schedule has the stage prune"),
        ("mixture.floor=1", "mixture.floor is 1; expected below 1"),
        ("training.micro_batch_size=5", "training.micro_batch_size 5 does not divide prune.batch_size"),
        ("task_eval.at_steps=[10]", "at_steps names steps, but there are no tasks to score the model on"),
        (
            "task_eval={tasks: [arc_easy], at_steps: [9999]}",
            "task_eval.at_steps has step 9999, and the stage continue ends at",
        ),
        ("also_run=[best]", "also_run.0 is 'best'; expected 'constant', 'schedule', 'sheared'"),
        ("name=../escape", "name: "),
        ("prune.target=null", "prune.target is None; expected a mapping"),
        ("nonsense", "--set 'nonsense' is not of the form a.b=c"),
        ("mixture.rho.x=3", "mixture.rho is a value, not a section"),
        ("mixture.rho=[", "is not YAML"),
    ],
)
def test_a_wrong_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("quickstart", [override])
    assert message in str(caught.value)


def test_a_missing_setting_is_named() -> None:
    body = yaml.safe_load(recipe_text("quickstart"))
    del body["prune"]["steps"]
    with pytest.raises(ConfigError, match=r"setting prune.steps is missing"):
        parse_recipe(body)


def test_pretrain_needs_its_section_and_shape() -> None:
    body = yaml.safe_load(recipe_text("quickstart"))
    del body["pretrain"]
    with pytest.raises(ConfigError, match="needs a section `pretrain`"):
        parse_recipe(body)
    body = yaml.safe_load(recipe_text("quickstart"))
    del body["model"]["architecture"]
    with pytest.raises(ConfigError, match="needs `architecture`"):
        parse_recipe(body)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("quikstart")
    assert caught.value.next_step == "Did you mean quickstart?"


def test_a_file_or_a_folder_in_place_of_a_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    (tmp_path / "mine.yaml").write_text("{}")
    for name, message, next_step in [
        ("model", "is a model folder; expected a recipe", "Write one: drpruning init "),
        ("run", "is a folder; expected a recipe", f"Did you mean {tmp_path / 'run' / 'recipe.yaml'}?"),
        ("mine", "no file of that name, and no shipped recipe", f"Did you mean {tmp_path / 'mine.yaml'}?"),
        ("other.yaml", "no file of that name, and no shipped recipe", "`drpruning recipes` lists the shipped ones."),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            load_recipe(str(tmp_path / name))
        assert str(caught.value.next_step).startswith(next_step)


def test_a_recipe_that_is_not_a_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="a recipe is a mapping"):
        load_recipe(str(path))
    path.write_text("a: [\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_recipe(str(path))


def test_settings_of_strategies_are_settings_of_the_recipe() -> None:
    declared = {name for cls in (*STRATEGIES.values(), Bounds) for name in settings(cls)}
    assert set(MixtureConfig.model_fields) == declared | {"strategy", "stages", "reference_loss", "schedule"}
    assert set(STRATEGIES) == set(get_args(StrategyName))


def test_a_description_names_the_strategies_that_read_a_setting_and_their_defaults() -> None:
    fields = MixtureConfig.model_fields
    assert fields["floor"].description is not None
    assert fields["floor"].description.endswith("Read by cvar (default 0.1) and chi_square, drpruning (default 0.2).")
    assert readers("rho") == ("chi_square", "drpruning")
    assert readers("max_share") == tuple(STRATEGIES)


def test_shares_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_share of the domain cpp is above its max_share"):
        load_recipe("quickstart", ["mixture.min_share={cpp: 0.5}", "mixture.max_share=0.4"])


def test_the_public_update_can_be_chosen() -> None:
    assert load_recipe("quickstart", ["mixture.solver=published"]).mixture.settings()["solver"] == "published"
    idle = load_recipe("quickstart", ["mixture.strategy=cvar", "mixture.solver=published"]).notices()
    assert "mixture.solver has no effect with mixture.strategy=cvar; it is read by chi_square, drpruning" in idle


def test_settings_without_effect_are_reported() -> None:
    config = load_recipe("quickstart", ["mixture.strategy=constant"])
    rho = "mixture.rho has no effect with mixture.strategy=constant; it is read by chi_square, drpruning"
    assert rho in config.notices()
    assert load_recipe("quickstart").notices() == []
    combined = "prune.calibration.combine=even"
    uniform = load_recipe("quickstart", [combined, "prune.gate_init=uniform"])
    assert any("combine has no effect" in each for each in uniform.notices())
    assert load_recipe("quickstart", [combined]).notices() == []


@pytest.mark.parametrize(
    ("settings", "read", "start"),
    [
        (
            ["prune.gates=deterministic", "prune.gate_init=taylor", "prune.rescore_cycles=true"],
            ["prune.cycles=2", "prune.steps=2"],
            "prune.rescore_cycles has no effect with prune.cycles=1",
        ),
        (
            ["prune.calibration.rho=0.2"],
            ["prune.calibration.combine=worst_case"],
            "prune.calibration.rho has no effect",
        ),
        (
            ["prune.calibration={rho: 0.2, combine: even}"],
            ["prune.calibration.combine=worst_case"],
            "prune.calibration.rho has no effect",
        ),
        (
            ["continue.distill={weight: 0, hidden_weight: 1, temperature: 2}"],
            ["continue.distill.final_weight=0.5"],
            "continue.distill.temperature has no effect",
        ),
        (
            ["prune.distill={weight: 0, hidden_weight: 1, top_k: 8}"],
            ["prune.distill.weight=0.5"],
            "prune.distill.top_k has no effect",
        ),
    ],
)
def test_a_setting_is_reported_where_no_other_setting_reads_it(
    settings: list[str], read: list[str], start: str
) -> None:
    (notice,) = load_recipe("quickstart", settings).notices()
    assert notice.startswith(start)
    assert load_recipe("quickstart", [*settings, *read]).notices() == []


def test_the_hash_sees_what_changes_the_result_and_only_that() -> None:
    plain = load_recipe("quickstart")
    assert load_recipe("quickstart", ["seed=18"]).hash() != plain.hash()
    assert load_recipe("quickstart", ["mixture.delta=0.3"]).hash() != plain.hash()
    assert load_recipe("quickstart", ["training.checkpoint_every=7", "also_run=[]"]).hash() == plain.hash()


def test_another_strategy_keeps_the_rest() -> None:
    plain = load_recipe("quickstart")
    other = plain.with_strategy("constant")
    assert isinstance(other, RunConfig)
    assert other.mixture.strategy == "constant"
    assert other.also_run == ()
    assert other.prune == plain.prune


@pytest.mark.parametrize("name", get_args(StrategyName))
def test_each_strategy_can_be_set_in_full_and_no_further(name: str) -> None:
    defaults = {key: declared.default for key, declared in settings(STRATEGIES[name]).items()}
    every = {key: declared.default for cls in STRATEGIES.values() for key, declared in settings(cls).items()}
    config = load_recipe("quickstart", [f"mixture={yaml.safe_dump(every | defaults | {'strategy': name}).strip()}"])
    assert config.mixture.settings() == defaults
    assert build(name, config.mixture.settings()) == STRATEGIES[name]()
    fields_of_class = {field.name for field in fields(STRATEGIES[name])} - {"bounds"}
    # stages and unit of a schedule are one setting of the recipe: a path or plain data
    assert set(defaults) == fields_of_class - ({"stages", "unit"} if name == "schedule" else set())


def test_the_preset_fills_in_what_the_recipe_does_not_say() -> None:
    plain = load_recipe("llama2-7b-to-1.3b")
    published = load_recipe("llama2-7b-to-1.3b", ["preset=published", "mixture.rho=0.05"])
    assert (published.prune.log_alpha_init, published.prune.mask_values) == (5.0, "soft")
    assert (published.mixture.solver, published.mixture.ratio_rule) == ("published", "published")
    assert published.mixture.rho == 0.05  # set in the recipe
    assert plain.prune.log_alpha_init is None
    assert load_recipe("llama2-7b-to-1.3b").hash() != published.hash()
    again = parse_recipe(yaml.safe_load(published.to_yaml()))
    assert again == published
    sheared = published.with_strategy("sheared")
    assert sheared.mixture.clip_excess is False


def test_the_preset_agrees_with_the_strategies() -> None:
    for name, chosen in PUBLISHED.items():
        assert set(chosen) <= set(settings(STRATEGIES[name]))
        assert build(name, chosen) == STRATEGIES[name].published()


def test_all_missing_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="settings model, data, continue are missing"):
        parse_recipe({"name": "mine"})


def test_a_wrong_choice_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"mixture.strategy") as caught:
        load_recipe("quickstart", ["mixture.strategy=drprunning"])
    assert caught.value.next_step == "Did you mean drpruning?"
