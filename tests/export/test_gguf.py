"""llama.cpp computes the logits of transformers from a GGUF file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from drpruning.cli import group, main
from drpruning.errors import ConfigError
from drpruning.export.gguf import write_gguf
from drpruning.export.gguf_graphs import context_of, graph_of
from drpruning.export.gguf_tokenizer import LLAMA3, QWEN2, rule_of
from drpruning.pruning import MaskedModel
from tests.pruning.conftest import CONFIGS, GROUPED, build
from tests.pruning.test_masked_model import TARGET, scattered

from .llama_cpp import log_probabilities

gguf = pytest.importorskip("gguf")

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
PROMPT = [3, 7]


def tokenizer(vocabulary: int = 50) -> PreTrainedTokenizerFast:
    """Return byte-level BPE with as many tokens."""
    tokens = ["<|end|>", *LETTERS[: vocabulary - 3], "Ċ", LETTERS[0] + LETTERS[1]]
    merges = [(LETTERS[0], LETTERS[1])]
    backend = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")  # noqa: S106 - a token


def pruned_folder(name: str, folder: Path) -> Path:
    """Prune a model of the architecture and export it with a tokenizer."""
    scattered(MaskedModel(build(name), TARGET)).export(folder, tokenizer())
    return folder


def assert_same_logits(folder: Path, length: int) -> None:
    """Compare the log probabilities of a folder in llama.cpp, through a file next to it, and in transformers."""
    write_gguf(folder, folder.with_suffix(".gguf"), "float32")
    tokens, got = log_probabilities(folder.with_suffix(".gguf"), PROMPT, length, vocabulary=50)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1]
    # float32 sums of at most 64 terms
    np.testing.assert_allclose(got, logits.log_softmax(-1).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "qwen3"])
def test_llama_cpp_computes_the_same_logits(name: str, tmp_path: Path) -> None:
    folder, config = pruned_folder(name, tmp_path / "model"), CONFIGS[name]()
    assert_same_logits(folder, min(12, context_of(config, graph_of(config)) - len(PROMPT)))


def test_llama_cpp_computes_the_same_logits_for_qwen3_without_biases(tmp_path: Path) -> None:
    model = build("qwen3")
    model.config.attention_bias = False
    for layer in model.model.layers:
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(layer.self_attn, part).register_parameter("bias", None)
    scattered(MaskedModel(model, TARGET)).export(tmp_path / "model", tokenizer())
    assert_same_logits(tmp_path / "model", 12)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_file_holds_every_weight_and_the_shape(precision: str, tmp_path: Path) -> None:
    folder = pruned_folder("llama-biases", tmp_path / "model")
    result = CliRunner().invoke(
        group, ["export", "gguf", str(folder), str(tmp_path / "model.gguf"), "--dtype", precision, "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] == (tmp_path / "model.gguf").stat().st_size
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == sum(each.numel() for each in model.parameters())
    assert reader.get_field("llama.block_count").contents() == 2
    assert reader.get_field("llama.attention.key_length").contents() == 6
    stored = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    down = model.model.layers[1].mlp.down_proj.weight.detach().to(getattr(torch, precision)).float().numpy()
    np.testing.assert_array_equal(stored["blk.1.ffn_down.weight"], down)
    np.testing.assert_array_equal(stored["output_norm.weight"], model.model.norm.weight.detach().numpy())


@pytest.mark.parametrize(
    ("splitter", "rule"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            "llama-bpe",
        ),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            "qwen2",
        ),
    ],
)
def test_pre_tokenizers_are_recognised(splitter: object, rule: str) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = splitter
    assert rule_of(json.loads(backend.to_str())) == rule


def test_an_unknown_pre_tokenizer_is_rejected(tmp_path: Path) -> None:
    folder = pruned_folder("llama", tmp_path / "model")
    body = json.loads((folder / "tokenizer.json").read_text())
    body["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(ConfigError, match="BPE tokenizer that splits text by Whitespace"):
        write_gguf(folder, tmp_path / "model.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_model_that_llama_cpp_computes_differently_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'qwen3': config\.attention_bias is True, expected False"):
        graph_of(CONFIGS["qwen3"]())
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ConfigError, match="rope_type is 'dynamic', expected default, linear, llama3, yarn"):
        graph_of(LlamaConfig(**GROUPED, rope_parameters=dynamic))
    (tmp_path / "there.gguf").touch()
    with pytest.raises(ConfigError, match="exists already"):
        write_gguf(tmp_path, tmp_path / "there.gguf")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        write_gguf(tmp_path, tmp_path / "new.gguf")


def test_a_folder_in_another_type_keeps_tokenizer_and_decisions(tmp_path: Path) -> None:
    folder = pruned_folder("qwen2", tmp_path / "model")
    arguments = ["export", "hf", str(folder), str(tmp_path / "small"), "--dtype", "bfloat16", "--max-shard-size", "2KB"]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "small").glob("model-*.safetensors"))) > 1
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert written.dtype == torch.bfloat16
    for mine, theirs in zip(
        written.parameters(), AutoModelForCausalLM.from_pretrained(folder).parameters(), strict=True
    ):
        assert torch.equal(mine, theirs.bfloat16())
    for name in ("tokenizer.json", "masks.safetensors", "pruning.json"):
        assert (tmp_path / "small" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hf"], "Missing option '--dtype'"),
        (["prune", "--corpus", "corpus/"], "Missing option '--target'"),
        (["prune", "--target", "layers=2"], "Missing option '--corpus'"),
        (["gguf", "--target", "layers=2"], "No such option"),
    ],
)
def test_options_that_do_not_go_together_are_rejected(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", options[0], "model", str(tmp_path / "out"), *options[1:]])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
