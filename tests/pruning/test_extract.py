"""The extracted model computes the same as the masked one; its folder is complete or does not exist."""

import copy
from dataclasses import asdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from drpruning.errors import ConfigError
from drpruning.planning.memory_tracker import MemoryTracker
from drpruning.pruning import MaskedModel, Target, parameter_count
from drpruning.records import Kept
from tests.pruning.conftest import CONFIGS, build
from tests.pruning.test_masked_model import scattered

TARGETS = {
    "layers": Target(layers=3),
    "hidden": Target(hidden=16),
    "heads": Target(kv_heads=2),
    "intermediate": Target(intermediate=17),
    "all": Target(layers=2, hidden=24, kv_heads=3, intermediate=9),
}


def assert_same_function(masked, tokens):
    pruned = masked.eval().extract()
    torch.testing.assert_close(pruned(tokens).logits, masked(tokens).logits, atol=1e-5, rtol=0)
    assert Target.of(pruned.config) == masked.target
    assert sum(parameter.numel() for parameter in pruned.parameters()) == parameter_count(
        masked.model.config, masked.target
    )
    return pruned


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_extracted_equals_masked(any_model, target, tokens):
    masked = scattered(MaskedModel(any_model, target))
    source = copy.deepcopy(any_model.config)
    pruned = assert_same_function(masked, tokens)
    assert type(pruned).__name__ == type(any_model).__name__
    assert (
        pruned.config.head_dim * source.num_attention_heads == any_model.model.layers[0].self_attn.q_proj.out_features
    )
    assert any_model.config.to_dict() == source.to_dict()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_is_extracted_exactly(data, tokens):
    name = data.draw(st.sampled_from(["qwen2", "qwen3", "mistral"]))
    target = Target(
        layers=data.draw(st.integers(1, 4)),
        hidden=data.draw(st.integers(4, 32)),  # a norm over one or two units amplifies rounding a thousandfold
        kv_heads=data.draw(st.integers(1, 4)),
        intermediate=data.draw(st.integers(1, 40)),
    )
    assert_same_function(scattered(MaskedModel(build(name), target), seed=data.draw(st.integers(0, 9))), tokens)


def test_layer_types_follow_the_kept_blocks():
    masked = MaskedModel(build("qwen2-sliding"), Target(layers=2))
    masked.gates["layer"].data = torch.tensor([0.0, 1.0, 0.0, 1.0])
    config = masked.extract().config
    assert config.layer_types == ["full_attention", "sliding_attention"]
    assert config.max_window_layers == 1


def test_a_cut_is_written_weight_by_weight_as_the_extracted_model_is(any_model, tmp_path):
    masked = scattered(MaskedModel(any_model, TARGETS["all"], mask_values="soft")).eval()
    masked.export(tmp_path / "extracted")
    masked.write_extracted(tmp_path / "cut")
    cut, extracted = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("cut", "extracted")
    )
    assert cut == extracted


def test_extraction_keeps_type_mode_and_random_state():
    masked = scattered(MaskedModel(build("llama").bfloat16(), TARGETS["all"]))
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    pruned = masked.train().extract()
    assert torch.equal(torch.rand(3), expected)
    assert pruned.dtype == torch.bfloat16
    assert pruned.training
    assert pruned.lm_head.weight.data_ptr() != masked.model.lm_head.weight.data_ptr()


def test_extracting_all_units_gives_an_equal_copy(tokens):
    masked = MaskedModel(build("llama"), Target()).eval()
    pruned = masked.extract()
    assert torch.equal(pruned(tokens).logits, masked(tokens).logits)
    pruned.lm_head.weight.data.zero_()
    assert masked.model.lm_head.weight.any()


def test_kept_units_fit_their_record():
    masked = scattered(MaskedModel(build("llama-grouped"), TARGETS["all"]))
    kept = Kept(source=masked.source.sizes(), target=masked.target.sizes(), **asdict(masked.kept_units()))
    masks = masked.deterministic_masks()
    assert kept.hidden == masks["hidden"].nonzero().flatten().tolist()
    assert len(kept.layers) == len(kept.heads) == len(kept.intermediate) == 2
    assert kept.heads[1] == masks["head"][kept.layers[1]].nonzero().flatten().tolist()
    assert {len(units) for units in kept.intermediate} == {9}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_folder_loads_bit_for_bit(name, tokens, tmp_path):
    masked = scattered(MaskedModel(build(name), TARGETS["all"])).eval()
    pruned = masked.export(tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert torch.equal(loaded(tokens).logits, pruned(tokens).logits)
    assert loaded.config.head_dim == pruned.config.head_dim
    assert Target.of(loaded.config) == masked.target
    generated = loaded.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert generated.shape == (3, 16)


def test_an_exported_folder_holds_tokenizer_and_decisions(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")))
    masked = scattered(MaskedModel(build("llama"), TARGETS["all"]))
    masked.export(tmp_path / "deep" / "export", tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "deep" / "export").get_vocab() == {"a": 0, "b": 1}
    decisions = load_file(tmp_path / "deep" / "export" / "masks.safetensors")
    assert torch.equal(decisions["log_alpha.head"], masked.gates["head"])
    assert torch.equal(decisions["mask.hidden"], masked.deterministic_masks()["hidden"])


def test_an_occupied_folder_is_rejected_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        MaskedModel(build("llama"), TARGETS["all"]).export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_export_leaves_nothing(tmp_path):
    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        MaskedModel(build("llama"), TARGETS["all"]).export(tmp_path / "export", FullDisk())
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_export_are_replaced(tmp_path):
    (tmp_path / ".export.partial").mkdir()
    (tmp_path / ".export.partial" / "drpruning-partial").touch()
    (tmp_path / ".export.partial" / "config.json").write_text("{")
    (tmp_path / "export").mkdir()
    MaskedModel(build("llama"), TARGETS["all"]).export(tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "export")


@pytest.mark.parametrize("mask_norms", [False, True])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_extracted_equals_masked_with_soft_values(any_model, target, mask_norms, tokens):
    """Compare with and without skipping, in double precision, where only float32 gates and norms round."""
    masked = scattered(MaskedModel(any_model.double(), target, mask_values="soft", mask_norms=mask_norms))
    hard = scattered(MaskedModel(copy.deepcopy(any_model), target)).eval()
    pruned = assert_same_function(masked, tokens)
    values = masked.deterministic_masks()
    for kind, mask in hard.deterministic_masks().items():
        assert torch.equal(values[kind] != 0, mask != 0)
        kept = values[kind][mask != 0]
        expected = torch.sigmoid(masked.gates[kind][mask != 0] / (2 / 3) * 0.8)
        torch.testing.assert_close(kept, expected)
    masked.skip_pruned_units = False
    torch.testing.assert_close(pruned(tokens).logits, masked(tokens).logits, atol=1e-5, rtol=0)
    assert not torch.allclose(hard(tokens).logits, pruned(tokens).logits, atol=1e-3)


def test_masked_norms_change_nothing_where_masks_are_zero_or_one(any_model, tokens):
    plain = scattered(MaskedModel(copy.deepcopy(any_model), TARGETS["all"])).eval()
    masked = scattered(MaskedModel(any_model, TARGETS["all"], mask_norms=True)).eval()
    torch.testing.assert_close(masked(tokens).logits, plain(tokens).logits, atol=1e-6, rtol=0)
    for each in (masked, plain):
        each.train().sample_masks(torch.Generator().manual_seed(1))
    assert not torch.allclose(masked(tokens).logits, plain(tokens).logits, atol=1e-3)


def test_soft_values_are_exported_with_the_masks(tmp_path, tokens):
    masked = scattered(MaskedModel(build("llama-tied"), TARGETS["all"], mask_values="soft")).eval()
    masked.export(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(tokens).logits, masked(tokens).logits, atol=1e-5, rtol=0)
    stored = load_file(tmp_path / "out" / "masks.safetensors")
    assert all(torch.equal(stored[f"mask.{kind}"], mask) for kind, mask in masked.deterministic_masks().items())


def test_a_model_is_extracted_weight_by_weight() -> None:
    with MemoryTracker() as live:
        masked = MaskedModel(build("llama"), TARGETS["all"])
        source = sum(live._parts.values())
        with live.phase("extract", "working"):
            small = masked.extract()
    both = source + sum(parameter.nbytes for parameter in small.parameters())
    largest = max(parameter.nbytes for parameter in masked.model.parameters())
    # One weight is cut along each of its dimensions in turn; then masks, indices and rotary angles
    assert live.peaks["extract"].total <= both + 2 * largest + 4096
