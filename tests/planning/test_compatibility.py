"""Results for loaders agree with the installed loaders; nearest shapes are valid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from drpruning.errors import ConfigError
from drpruning.planning import ModelShape
from drpruning.planning.compatibility import check_llama_cpp, check_target, check_transformers, check_vllm
from drpruning.pruning import Target, parameter_count
from drpruning.pruning.architectures import SIZE_FIELDS


def shape(family: str, heads: int = 8, kv_heads: int = 4, hidden: int = 512) -> ModelShape:
    return ModelShape(
        model_type=family,
        vocab_size=40,
        hidden_size=hidden,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=64,
    )


def runs(source: ModelShape, sizes: dict[str, int]) -> bool:
    """Return whether transformers builds such a model on the meta device and runs a forward pass."""
    try:
        config = AutoConfig.for_model(
            source.model_type,
            **{SIZE_FIELDS[name]: size for name, size in sizes.items()},
            vocab_size=source.vocab_size,
            head_dim=source.head_dim,
        )
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)(torch.zeros(1, 4, dtype=torch.long))
    except Exception:
        return False
    return True


@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    hidden=st.sampled_from([96, 100, 128]),
    heads=st.integers(1, 8),
    kv_heads=st.integers(1, 4),
    intermediate=st.integers(1, 96),
)
def test_transformers_loads_the_shapes_that_it_runs(
    family: str, hidden: int, heads: int, kv_heads: int, intermediate: int
) -> None:
    source = shape(family)
    sizes = {"layers": 1, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "intermediate": intermediate}
    support = check_transformers(source, sizes)
    assert (support.outcome == "loads") == runs(source, sizes), support
    assert (support.outcome == "loads") == (not support.problems)


def test_transformers_names_the_size_it_rejects() -> None:
    sizes = {"layers": 1, "hidden": 100, "heads": 6, "kv_heads": 4, "intermediate": 8}
    problems = check_transformers(shape("llama"), sizes).problems
    assert [(problem.field, problem.got) for problem in problems] == [("heads", 6), ("hidden", 100)]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "intermediate", "gpus", "refused"),
    [
        (32, 8, 5504, 8, []),
        (32, 8, 5504, 16, []),  # two GPUs share a key/value head
        (20, 5, 8704, 8, ["heads", "kv_heads"]),
        (24, 6, 8704, 8, ["kv_heads"]),
        (16, 4, 5500, 8, ["intermediate"]),
        (7, 7, 77, 1, []),
    ],
)
def test_vllm_splits_heads_and_intermediate(
    heads: int, kv_heads: int, intermediate: int, gpus: int, refused: list[str]
) -> None:
    sizes = {"layers": 2, "hidden": 512, "heads": heads, "kv_heads": kv_heads, "intermediate": intermediate}
    assert sorted(problem.field for problem in check_vllm(shape("llama"), sizes, gpus).problems) == refused


@pytest.mark.parametrize("family", ["phi", "olmo2", "starcoder2", "cohere"])
def test_classes_that_compute_the_width_of_a_head_need_square_projections(family: str) -> None:
    source = shape(family)
    source = replace(source, tie_word_embeddings=True, intermediate_size=2048, other={"use_bias": True})
    checked = check_target(source, Target(hidden=384, intermediate=1536))
    refused = {support.loader: [problem.field for problem in support.problems] for support in checked.refused}
    assert refused == {"vLLM, 1 GPU": ["hidden"], "llama.cpp, K-quants": ["hidden"]}
    assert checked.nearest
    for nearest in checked.nearest:
        assert not check_target(source, nearest.target).refused
        assert nearest.target.hidden == (nearest.target.heads or 0) * source.head_dim


def test_a_graph_that_lacks_a_feature_refuses_every_size() -> None:
    checked = check_target(replace(shape("qwen3"), attention_bias=True), Target(layers=1))
    assert [support.note for support in checked.refused] == ["config.attention_bias is True, expected False"]
    assert checked.nearest == ()
    local = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    support = check_llama_cpp(replace(shape("gemma3_text"), other=local), {**SIZES, "layers": 1})
    assert (support.outcome, support.note) == ("loads", "if the kept blocks with local attention are periodic")


def test_vllm_divides_experts_and_the_shared_expert() -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    source = replace(shape("qwen2_moe"), other={**experts, "shared_expert_intermediate_size": 100})
    support = check_vllm(source, {**SIZES, "heads": 8, "kv_heads": 8, "experts": 4}, 8)
    assert [problem.field for problem in support.problems] == ["experts", "the shared expert"]


SIZES = {"layers": 2, "hidden": 512, "heads": 8, "kv_heads": 4, "intermediate": 768}


def test_k_quants_need_rows_of_256() -> None:
    whole = {"layers": 2, "hidden": 512, "heads": 8, "kv_heads": 4, "intermediate": 768}
    assert check_llama_cpp(shape("llama"), whole).outcome == "loads"
    for name, size in (("hidden", 480), ("heads", 6), ("intermediate", 700)):
        support = check_llama_cpp(shape("llama"), whole | {name: size})
        assert support.outcome == "loads larger"
        assert [problem.field for problem in support.problems] == [name]
    # gate, up, down are 3 * 512 * 736 of the weights; only down has rows of 736, which are multiples of 32
    support = check_llama_cpp(shape("llama"), whole | {"intermediate": 736})
    down, block = 512 * 736, 512 * 512 * 2 + 2 * 512 * 256 + 3 * 512 * 736
    bits = 4.5 + 2 * down / (2 * block + 2 * 40 * 512)
    assert support.note == f"Q4_K: {bits:.2f} instead of 4.50 bits per weight"


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(["llama", "qwen2"]),
    sizes=st.fixed_dictionaries(
        {},
        optional={
            "layers": st.integers(0, 3),
            "hidden": st.integers(1, 600),
            "heads": st.integers(1, 10),
            "intermediate": st.integers(1, 800),
        },
    ),
    gpus=st.sampled_from([1, 2, 4]),
)
def test_nearest_shapes_pass_every_check(family: str, sizes: dict[str, int], gpus: int) -> None:
    source = shape(family)
    checked = check_target(source, Target(**sizes), tensor_parallel=gpus)
    passed = all(support.outcome == "loads" for support in checked.loaders)
    assert passed == (checked.nearest == ())
    for nearest in checked.nearest:
        again = check_target(source, nearest.target, tensor_parallel=gpus)
        assert [support.outcome for support in again.loaders] == ["loads"] * 4
        assert nearest.target.resolve(source) == nearest.target  # type: ignore[arg-type]
        assert nearest.parameters == parameter_count(source, nearest.target)  # type: ignore[arg-type]


def test_a_source_that_k_quants_never_suit_gets_shapes_that_load() -> None:
    source = shape("llama", heads=9, kv_heads=3, hidden=576)  # as SmolLM2-135M
    checked = check_target(source, Target(hidden=380))
    assert {support.outcome for support in checked.loaders} == {"loads", "refuses", "loads larger"}
    for nearest in checked.nearest:
        assert not check_target(source, nearest.target).refused
    assert checked.nearest


def test_larger_than_the_source_cannot_be_pruned_to() -> None:
    support = check_target(shape("llama"), Target(hidden=1024, heads=16)).loaders[0]
    assert support.loader == "drpruning"
    assert [str(problem) for problem in support.problems] == [
        "hidden is 1024, must be between 1 and the source's 512",
        "heads is 16, must be between 1 and the source's 8",
        "kv_heads is 8, must be between 1 and the source's 4",
    ]


def test_groups_are_not_broken() -> None:
    support = check_target(shape("llama"), Target(heads=4, kv_heads=4)).loaders[0]
    assert [problem.field for problem in support.problems] == ["heads"]


def test_no_gpus_are_rejected() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        check_target(shape("llama"), Target(), tensor_parallel=0)
