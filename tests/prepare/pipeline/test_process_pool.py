"""Any number of workers, interrupted anywhere, writes the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drpruning.errors import CorpusError, DiskError
from drpruning.prepare import Holdout, prepare
from drpruning.prepare.pipeline.process_pool import ProcessPool
from drpruning.prepare.pipeline.tasks import BlockTask, TaskRunner, UnitTask
from drpruning.prepare.readers.blocks import Block, ReadUnit
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.tokenize.tokenized_blocks import TokenizeSettings
from tests.prepare.conftest import WORDS, contents, write_jsonl

RULE = Holdout(fraction=0.2, min_tokens=0)

PROGRAM = """
import sys
import tokenizers
from drpruning.prepare import Holdout, prepare, preparation
from drpruning.prepare.tokenize.tokenizer import DocumentTokenizer, END_TOKEN, make_saver
from drpruning.prepare.readers import divide_files

def load(name, end_token):  # transformers takes seconds to import
    backend = tokenizers.Tokenizer.from_file(name + "/tokenizer.json")
    return DocumentTokenizer(name, backend, END_TOKEN, make_saver(backend, END_TOKEN))

preparation.load_tokenizer = load
divide_files.__defaults__ = (4000,)
folder, out, tokenizer, workers = sys.argv[1:]
domains = {name: f"{folder}/{name}*" for name in ("code", "web", "books")}
prepare(out, domains, tokenizer, holdout=Holdout(fraction=0.2, min_tokens=0), workers=int(workers))
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains in several formats, some documents in two of them."""
    folder = tmp_path_factory.mktemp("texts")
    chosen = random.Random(5)

    def some(count: int) -> list[str]:
        return [" ".join(chosen.choices(WORDS, k=chosen.randint(1, 12))) for _ in range(count)]

    shared = some(20)
    write_jsonl(folder / "web-0.jsonl", [*some(300), *shared])
    body = "".join(json.dumps({"text": text}) + "\n" for text in [*shared, *some(150)])
    (folder / "web-1.jsonl.gz").write_bytes(gzip.compress(body.encode()))
    write_jsonl(folder / "code.jsonl", [*shared, *some(80)])
    for number, text in enumerate(some(12)):
        (folder / f"books-{number:02d}.txt").write_text(text * 20)
    return folder


def run(texts: Path, out: Path, tokenizer: str, workers: int) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", PROGRAM, str(texts), str(out), tokenizer, str(workers)]
    return subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.DEVNULL)


def test_one_two_and_eight_workers_killed_or_not_write_the_same_bytes(
    texts: Path, tmp_path: Path, tokenizer: str
) -> None:
    start = time.monotonic()
    assert run(texts, tmp_path / "one", tokenizer, 1).wait() == 0
    seconds = time.monotonic() - start
    expected = contents(tmp_path / "one")
    assert run(texts, tmp_path / "eight", tokenizer, 8).wait() == 0
    assert contents(tmp_path / "eight") == expected

    chosen, out, kills = random.Random(3), tmp_path / "two", 0
    for _ in range(3):
        process = run(texts, out, tokenizer, 2)
        try:
            process.wait(chosen.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        assert not out.exists() or contents(out) == expected
    assert run(texts, out, tokenizer, 2).wait() == 0
    assert contents(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eight", "one", "two"]


def new_runner(tmp_path: Path, tokenizer: str) -> TaskRunner:
    return TaskRunner(
        TokenizeSettings(
            blocks=tmp_path,
            tokenizer=Path(tokenizer),
            tokenizer_name="words",
            end_token="",
            tokenizer_sha256="0" * 64,
            end_id=0,
            vocab_size=300,
            dtype="uint16",
        )
    )


def test_a_worker_that_dies_is_an_error_with_advice(tmp_path: Path, tokenizer: str) -> None:
    with ProcessPool(new_runner(tmp_path, tokenizer), 2) as pool:
        task = UnitTask(ReadUnit("text", (tmp_path / "absent.txt",)), FieldMapping())
        assert dict(pool.run([("a", task)]))["a"]
        for worker in pool.processes:
            worker.process.kill()
        with pytest.raises(CorpusError, match=r"a worker process was killed by signal 9 \(out of memory\?\)"):
            list(pool.run([("a", task), ("b", task)]))


def test_an_exception_of_a_worker_is_raised_in_the_parent(tmp_path: Path, tokenizer: str) -> None:
    blocks = [Block("lines", b'{"text": "%d"}\n' % number, "a.jsonl") for number in range(9)]
    (tmp_path / "file").write_text("not a folder")
    broken = new_runner(tmp_path / "file", tokenizer)
    with ProcessPool(broken, 2) as pool, pytest.raises(NotADirectoryError):
        list(pool.run((number, BlockTask(block, FieldMapping())) for number, block in enumerate(blocks)))


def test_a_task_that_cannot_be_sent_is_an_error(tmp_path: Path, tokenizer: str) -> None:
    task = UnitTask(ReadUnit("text", ()), FieldMapping(where={"a": lambda: 0}))  # type: ignore[dict-item]
    with ProcessPool(new_runner(tmp_path, tokenizer), 2) as pool, pytest.raises(Exception, match="lambda"):
        list(pool.run([("a", task)]))


def test_a_full_disk_is_an_error_and_leaves_no_partial_block(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    with monkeypatch.context() as patch:
        patch.setattr("drpruning.prepare.tokenize.tokenized_blocks.os.fsync", full)
        with pytest.raises(DiskError, match=r"corpus cannot be written: .*No space left") as full_disk:
            prepare(tmp_path / "corpus", {"web": source}, tokenizer, holdout=RULE)
    assert full_disk.value.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]
    prepare(tmp_path / "corpus", {"web": source}, tokenizer, holdout=RULE)
