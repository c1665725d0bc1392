"""SentencePiece models and tiktoken's ranks give the tokens that their own libraries give."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from drpruning.cli.inspect import inspect_command
from drpruning.cli.prepare import prepare as prepare_command
from drpruning.errors import ConfigError, MissingExtraError
from drpruning.prepare.tokenize.tokenizer import END_TOKEN, load_tokenizer
from tests.prepare.conftest import WORDS, write_jsonl

TEXTS = [
    "document 12 is something's about 144, naïve café 中",
    "  lead  two spaces\nnew\tline\r\n\n  ",
    "a\u00a0b I'LL 12345 ▁ 👩‍👩‍👧",
    "x</s> <s> </s><unk> <|endoftext|>",
]

SPLIT = (  # how cl100k_base splits text, and Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a SentencePiece model with byte fallback, like Llama 2's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    path = tmp_path_factory.mktemp(request.param) / "words.model"
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*WORDS, *TEXTS[:2]]),
        model_writer=made,
        vocab_size=330,
        model_type=request.param,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(made.getvalue())
    return path


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tiktoken")
    from tiktoken._educational import bpe_train

    with contextlib.redirect_stdout(io.StringIO()):
        trained = bpe_train("\n".join(WORDS), 280, SPLIT, visualise=None)
    path = tmp_path_factory.mktemp("ranks") / "words.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in trained.items()))
    return path


def test_sentencepiece_models_give_sentencepieces_tokens(model: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(model))
    ours = load_tokenizer(str(model))
    assert ours.end_id == theirs.eos_id()
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert ids.tolist() == [*theirs.encode(text), theirs.eos_id()], text


def test_a_folder_or_file_may_hold_the_sentencepiece_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    by_folder, by_name = load_tokenizer(str(tmp_path)), load_tokenizer(str(tmp_path / "tokenizer.model"))
    assert by_folder.sha256 == by_name.sha256 == load_tokenizer(str(model)).sha256


def test_without_sentencepiece_its_models_name_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match="needs sentencepiece and protobuf"):
        load_tokenizer(str(model))


def test_ranks_give_tiktokens_tokens(ranks: Path) -> None:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    theirs = tiktoken.Encoding(
        "words", pat_str=SPLIT, mergeable_ranks=load_tiktoken_bpe(str(ranks)), special_tokens={END_TOKEN: 280}
    )
    ours = load_tokenizer(str(ranks))
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert ids.tolist() == [*theirs.encode_ordinary(text), 280], text


def test_a_corpus_is_prepared_and_inspected_with_a_sentencepiece_model(model: Path, tmp_path: Path) -> None:
    prepare_and_inspect(model, tmp_path)


def test_a_corpus_is_prepared_and_inspected_with_ranks(ranks: Path, tmp_path: Path) -> None:
    prepare_and_inspect(ranks, tmp_path)


def prepare_and_inspect(tokenizer: Path, folder: Path) -> None:
    source = write_jsonl(folder / "web.jsonl", [*WORDS, *TEXTS])
    out = str(folder / "corpus")
    command = [out, "--tokenizer", str(tokenizer), "--domain", f"web={source}", "--workers", "1"]
    result = CliRunner().invoke(prepare_command, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(inspect_command, [out, "--verify", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    domain = json.loads(result.stdout)["domains"]["web"]
    assert domain["documents"] + domain["validation_documents"] + domain["test_documents"] == len(WORDS) + len(TEXTS), (
        domain
    )
    again = load_tokenizer(f"{out}/tokenizer")  # what the corpus keeps makes the same tokens
    for one, other in zip(load_tokenizer(str(tokenizer)).encode(TEXTS), again.encode(TEXTS), strict=True):
        assert one.tolist() == other.tolist()


def test_a_list_of_ranks_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a.tiktoken").write_text("YQ== 0\nno base64\n")
    with pytest.raises(ConfigError, match="line 2: expected base64 and a rank"):
        load_tokenizer(str(tmp_path / "a.tiktoken"))
