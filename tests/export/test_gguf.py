"""llama.cpp generates the same tokens from a GGUF file as transformers from the model."""

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
from drpruning.export.gguf import check_runs_in_llama_cpp, context_of, write_gguf
from drpruning.export.gguf_tokenizer import LLAMA3, QWEN2, rule_of
from drpruning.pruning import MaskedModel
from tests.pruning.conftest import CONFIGS, GROUPED, build
from tests.pruning.test_masked_model import TARGET, scattered

from .llama_cpp import greedy

gguf = pytest.importorskip("gguf")

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())[:47]
PROMPT = [3, 7]


def tokenizer() -> PreTrainedTokenizerFast:
    """Train byte-level BPE with 50 tokens."""
    tokens = ["<|end|>", *LETTERS, "Ċ", LETTERS[0] + LETTERS[1]]
    merges = [(LETTERS[0], LETTERS[1])]
    backend = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")  # noqa: S106 - a token


def pruned_folder(name: str, folder: Path) -> Path:
    """Prune a model of the architecture and export it with a tokenizer."""
    scattered(MaskedModel(build(name), TARGET)).export(folder, tokenizer())
    return folder


def continued(folder: Path, length: int) -> list[int]:
    """Return greedy tokens after the prompt, from transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    whole = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=length, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return whole[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "qwen3"])
def test_llama_cpp_writes_the_same_tokens(name: str, tmp_path: Path) -> None:
    folder = pruned_folder(name, tmp_path / "model")
    write_gguf(folder, tmp_path / "model.gguf", "float32")
    length = context_of(CONFIGS[name]()) - len(PROMPT) if "sliding" in name or name == "mistral" else 12
    assert greedy(tmp_path / "model.gguf", PROMPT, length, context=64) == continued(folder, length)


def test_llama_cpp_writes_the_same_tokens_for_qwen3_without_biases(tmp_path: Path) -> None:
    model = build("qwen3")
    model.config.attention_bias = False
    for layer in model.model.layers:
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(layer.self_attn, part).register_parameter("bias", None)
    scattered(MaskedModel(model, TARGET)).export(tmp_path / "model", tokenizer())
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "float32")
    assert greedy(tmp_path / "model.gguf", PROMPT, 12, context=64) == continued(tmp_path / "model", 12)


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
    with pytest.raises(ConfigError, match="qwen3 without attention biases"):
        check_runs_in_llama_cpp(CONFIGS["qwen3"]())
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    with pytest.raises(ConfigError, match="rope_type 'yarn' is not converted"):
        check_runs_in_llama_cpp(LlamaConfig(**GROUPED, rope_parameters=yarn))
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
