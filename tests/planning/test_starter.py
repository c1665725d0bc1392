"""First recipes: budgets, batches and memory settings over models, corpora and machines."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.planning import Budget, Serving, find_accelerator, read_shape, search_shapes
from drpruning.planning.cost import parse_cluster
from drpruning.planning.starter import (
    DEFAULT_EPOCHS,
    DISTILL_WEIGHTS,
    EVALUATIONS,
    MASK_DISTILL_WEIGHT,
    MOST_DELTA,
    RATIO_TRAVEL,
    RIDGE,
    Machine,
    StarterRecipe,
    tempered_ratio,
    write_recipe,
)
from drpruning.prepare.demo.synthetic import prepare_synthetic
from drpruning.recipes import load_recipe

MODELS = {"HuggingFaceTB/SmolLM2-135M": 70e6, "meta-llama/Llama-3.2-1B": 0.6e9, "meta-llama/Llama-2-7b-hf": 1.3e9}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpora") / "a: b #c"  # a name that YAML has to quote
    prepare_synthetic(folder, ["web", "code", "yes"])
    return Corpus.open(folder)


def written(model: str, corpus: Corpus, machine: Machine, tokens: float | None = None) -> StarterRecipe:
    source = read_shape(model)
    serving = Serving(accelerator=find_accelerator("H100"))
    target = search_shapes(source, Budget(parameters=MODELS[model]), serving, number=1)[0].target
    return write_recipe(model, source, target, corpus, machine, name="mine", tokens=tokens)


def tokens_of(config: RunConfig) -> int:
    return sum(config.stage(name).steps * config.stage(name).batch_size * config.data.seq_len for name in config.stages)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("device", "ranks"), [("cpu", 1), ("cuda", 1), ("cuda", 8), ("cuda", 6)])
@pytest.mark.parametrize("tokens", [None, 2e5, 1e8, 3e10])
def test_tokens_batches_and_evaluations_fit_the_budget(
    model: str, device: str, ranks: int, tokens: float | None, corpus: Corpus
) -> None:
    recipe = written(model, corpus, Machine(device=device, ranks=ranks), tokens)
    config = recipe.config
    budget = tokens or DEFAULT_EPOCHS * sum(corpus.tokens().values())  # less than the defaults for a device
    assert 0.8 * budget <= tokens_of(config) <= 1.01 * budget
    for name in config.stages:
        stage = config.stage(name)
        assert stage.batch_size % ranks == 0
        assert (stage.batch_size // ranks) % (config.training.micro_batch_size or 1) == 0
        assert stage.steps // stage.eval_every <= 120
    assert config.mixture.delta == pytest.approx(
        min(RATIO_TRAVEL / (config.continue_.steps // config.continue_.eval_every), MOST_DELTA), rel=0.05
    )
    assert config.pruning.steps == 1 or 1280 <= config.pruning.steps <= 3200
    assert sum(config.data.reference_ratio.values()) == pytest.approx(1, abs=1e-12)
    assert config.data.corpus == str(corpus.folder)
    assert recipe.fits is None
    assert (config.training.dtype == "bfloat16") == (device == "cuda")
    assert all(len(line) <= 120 for line in recipe.text.splitlines() if "corpus:" not in line)


def test_short_runs_cut_at_once_and_long_ones_learn_masks(corpus: Corpus) -> None:
    model, machine = "HuggingFaceTB/SmolLM2-135M", Machine(device="cuda")
    short = written(model, corpus, machine, 1e6).config
    assert (short.pruning.steps, short.pruning.repair, short.pruning.calibration.rows) == (1, 0.01, "even")
    assert short.continue_.distill is not None
    assert (short.continue_.distill.weight, short.continue_.distill.final_weight) == (1.0, 0.5)
    long = written(model, corpus, machine, 8e9).config
    share = (
        long.pruning.steps
        * long.pruning.batch_size
        / (long.pruning.steps * long.pruning.batch_size + long.continue_.steps * long.continue_.batch_size)
    )
    assert 0.04 < share < 0.06
    assert long.pruning.distill is not None
    assert long.pruning.repair is None  # the masks have met their target, nothing is left to fold


@pytest.mark.parametrize("name", ["smollm2-135m-to-70m", "smollm2-360m-to-180m", "smollm2-1.7b-to-850m"])
def test_shipped_recipes_with_the_settings_of_init_have_them(name: str) -> None:
    config = load_recipe(name)
    masks, after = config.pruning.distill, config.continue_.distill
    assert after is not None
    if name == "smollm2-1.7b-to-850m":
        assert masks is not None
        assert (masks.weight, config.pruning.repair) == (MASK_DISTILL_WEIGHT, None)
    else:
        assert (config.pruning.steps, config.pruning.repair) == (1, RIDGE)
    assert (after.weight, after.final_weight) == DISTILL_WEIGHTS
    assert config.mixture.delta == RATIO_TRAVEL / EVALUATIONS
    assert (config.pruning.gate_init, config.pruning.calibration.rows) == ("taylor", "even")


def test_a_recipe_is_changed_until_it_fits_the_gpu(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from drpruning.planning import cost

    peaks = {"full": 20 * 2**30}

    class Memory:
        def __init__(self, training: object) -> None:
            self.parts: dict[str, int] = {}
            self.total = peaks.get(training.activation_checkpointing, 90 * 2**30)  # type: ignore[attr-defined]
            self.phase = "step"

    monkeypatch.setattr(cost, "phases_of", lambda config, *_, **__: (Memory(config.training),))
    monkeypatch.setattr(cost, "_SIMULATED", {})
    cluster = parse_cluster("L40S")
    recipe = written("HuggingFaceTB/SmolLM2-135M", corpus, Machine(device="cuda", cluster=cluster), 1e8)
    assert recipe.fits
    assert recipe.config.training.activation_checkpointing == "full"
    assert "activation_checkpointing: full" in recipe.text
    peaks["full"] = 90 * 2**30
    monkeypatch.setattr(cost, "_SIMULATED", {})
    assert written("HuggingFaceTB/SmolLM2-135M", corpus, Machine(device="cuda", cluster=cluster), 1e8).fits is False


def test_without_a_target_the_model_is_trained_further(corpus: Corpus) -> None:
    source = read_shape("meta-llama/Llama-3.2-1B")
    recipe = write_recipe("m", source, None, corpus, Machine(device="cpu"), name="mine")
    assert recipe.config.stages == ["continue"]
    assert recipe.config.continue_.distill is None


def test_names_that_yaml_would_read_otherwise(corpus: Corpus) -> None:
    source = read_shape("meta-llama/Llama-3.2-1B")
    for model in ("yes", "1.5", "models/a: b", "null", "models/#1", "- x"):
        recipe = write_recipe(model, source, None, corpus, Machine(device="cpu"), name="mine")
        assert yaml.safe_load(recipe.text)["model"]["source"] == model
        assert list(recipe.config.data.reference_ratio) == ["web", "code", "yes"]


def test_what_cannot_be_trained_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    source = read_shape("meta-llama/Llama-3.2-1B")
    with pytest.raises(ConfigError, match="less than one batch"):
        write_recipe("m", source, None, corpus, Machine(device="cpu"), name="mine", tokens=1)
    (tmp_path / "x.bin").write_bytes(bytes(4096))
    bare = Corpus({"web": tmp_path / "x.bin"}, dtype="uint16")
    with pytest.raises(ConfigError, match="domain 'web' holds out 0 tokens"):
        write_recipe("m", source, None, bare, Machine(device="cpu"), name="mine")


def test_shares_of_tiny_domains_stay_above_zero() -> None:
    ratio = tempered_ratio({"web": 10**12, "code": 1, "math": 3})
    assert ratio == {"web": 0.9998, "code": 0.0001, "math": 0.0001}


def test_a_wide_model_is_repaired_on_more_text(corpus: Corpus) -> None:
    source = read_shape("meta-llama/Llama-3.1-8B")
    target = search_shapes(source, Budget(parameters=6e9), Serving(accelerator=find_accelerator("H100")), number=1)[0]
    config = write_recipe("m", source, target.target, corpus, Machine(device="cuda"), name="mine", tokens=1e9).config
    wide = config.pruning.target.intermediate
    assert wide is not None
    assert wide > 8192
    assert (config.pruning.steps, config.pruning.calibration.tokens) == (1, 8 * wide)
