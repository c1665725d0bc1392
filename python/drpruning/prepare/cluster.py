"""Preparation on a cluster: a datatrove pipeline in which many machines write the bytes that one machine would write.

It has four stages: ``tokenize`` (any number of tasks; each takes every n-th read unit), ``layout`` (one task; reads
digests and lengths only), ``shards`` (any number of tasks), and ``publish`` (one task). A datatrove executor runs
each stage: ``LocalPipelineExecutor``, ``SlurmPipelineExecutor`` or ``RayPipelineExecutor``. All machines share one
file system.
"""

from __future__ import annotations

import inspect
import json
import shutil
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from drpruning.corpus.json_object import JsonObject, read_json_object
from drpruning.corpus.manifest import FILE_NAME
from drpruning.errors import ConfigError, CorpusError, MissingExtraError, install_command
from drpruning.files import rename_folder, write_text
from drpruning.prepare.output.corpus_folder import ShardKey, check_out, domain_entry, shard_tasks, write_manifest
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.output.layout import compute_layout
from drpruning.prepare.output.layout_file import ADVICE, BLOCK_NAME, LayoutFile, read_written, write_written
from drpruning.prepare.output.shards import write_shard
from drpruning.prepare.pipeline.tasks import TaskRunner, TokenizeResult, UnitTask
from drpruning.prepare.pipeline.tokenize_all import reads_stdin, too_many_errors
from drpruning.prepare.pipeline.write import save_tokenizer
from drpruning.prepare.preparation import Preparation
from drpruning.prepare.readers.blocks import ERROR_EXAMPLES, InputError
from drpruning.prepare.tokenize.tokenized_blocks import DomainBlocks, TokenizeSettings, find_tokenized_block
from drpruning.prepare.tokenize.tokenizer import load_tokenizer

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise MissingExtraError("preparing on a cluster needs datatrove", install_command("datatrove")) from error

Executor = Any
"""A datatrove executor; they share no typed base class."""


@dataclass(frozen=True)
class Stage:
    """The work of one executor.

    Args:
        name: Name of the stage.
        steps: Its pipeline.
        parallel: Whether it may have many tasks; else one.
    """

    name: str
    steps: list[PipelineStep]
    parallel: bool


def stages(preparation: Preparation, tokenizer: str) -> list[Stage]:
    """Return the stages of a preparation in order; each stage must wait for the one before.

    This saves the tokenizer into the work folder next to the corpus, where the tasks read it. The work folder, the
    text and the corpus must have the same paths on every machine.

    Args:
        preparation: The preparation. Its ``workers`` is ignored: the executor sets the number of tasks.
        tokenizer: A folder, file, or name on the Hugging Face hub.

    Raises:
        ConfigError: A path does not exist, or the tokenizer cannot be used.
        CorpusError: The corpus folder is not free.
    """
    if preparation.options.near_duplicates:
        raise ConfigError(
            "near duplicates are found on one machine only",
            "On a cluster run datatrove's MinHash stages on the text first.",
        )
    check_out(preparation.out)
    if reads_stdin(preparation.sources()):
        raise ConfigError("tasks on a cluster share no standard input", "Write the text into a file.")
    absolute = replace(preparation, out=preparation.out.absolute())
    loaded = load_tokenizer(tokenizer, preparation.options.end_token)
    absolute.create_work_folder()
    settings = replace(save_tokenizer(loaded, absolute.work), utf8=preparation.options.utf8)
    return [
        Stage("tokenize", [TokenizeUnits(absolute, settings)], parallel=True),
        Stage("layout", [ComputeLayout(absolute, settings)], parallel=False),
        Stage("shards", [WriteShards(absolute, settings)], parallel=True),
        Stage("publish", [PublishCorpus(absolute, settings)], parallel=False),
    ]


def executors(
    stages: Iterable[Stage], tasks: int, new: Callable[..., Executor], logs: Path | str, **options: Any
) -> Executor:
    """Return the executor of the last stage, which depends on the others; its ``run()`` runs or submits all stages.

    Args:
        stages: From :func:`stages`.
        tasks: Number of tasks of each parallel stage.
        new: The executor's class.
        logs: Folder of datatrove's logs, where an executor finds the completed tasks.
        **options: Options of every executor: ``workers``; Slurm's ``time``, ``partition``, ``cpus_per_task``, others.
            The names of Slurm jobs are ``prepare-tokenize`` and so on.
    """
    last = None
    has_job_name = "job_name" in inspect.signature(new).parameters
    for stage in stages:
        if has_job_name:
            options["job_name"] = f"prepare-{stage.name}"
        last = new(
            stage.steps,
            tasks=tasks if stage.parallel else 1,
            logging_dir=str(Path(logs) / stage.name),
            depends=last,
            **options,
        )
    return last


class _Step(PipelineStep):  # type: ignore[misc] # datatrove has no annotations
    """A step that neither takes nor yields documents: stages exchange files in the work folder."""

    type = "drpruning"
    name = "step"

    def __init__(self, preparation: Preparation, settings: TokenizeSettings) -> None:
        super().__init__()
        self.preparation = preparation
        self.settings = settings

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[object]:
        """Run task ``rank``."""
        with self.track_time():
            self.work(rank, world_size)
        yield from ()

    @abstractmethod
    def work(self, rank: int, world_size: int) -> None:
        """Run task ``rank``."""

    @property
    def folder(self) -> Path:
        return self.preparation.work

    @property
    def layout(self) -> LayoutFile:
        return LayoutFile(self.folder, self.folder / "shards", self.settings.dtype)

    def written(self, key: ShardKey) -> Path:
        """Return the path of the description of a written shard."""
        domain, split, place = key
        return self.folder / "written" / f"{domain} {split} {place}.json"


class TokenizeUnits(_Step):
    """Tokenizes every ``world_size``-th read unit and records the results."""

    name = "tokenize"

    def work(self, rank: int, world_size: int) -> None:
        """Tokenize the units of task ``rank``."""
        runner = TaskRunner(self.settings)
        number = -1
        for domain, source in self.preparation.sources().items():
            for place, unit in enumerate(source.units):
                number += 1
                if number % world_size == rank:
                    results = runner.run(UnitTask(unit, source.fields))
                    assert isinstance(results, list)
                    path = self.folder / "results" / domain / f"{place:09d}.json"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_text(path, json.dumps({"blocks": [_result_to_dict(result) for result in results]}))
                    self.stat_update("units")


class ComputeLayout(_Step):
    """Computes the layout of the shards when all units are tokenized."""

    name = "layout"

    def work(self, rank: int, world_size: int) -> None:
        """Compute the layout."""
        tokenized = self._collect_blocks()
        shards = self.folder / "shards"
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir()
        shutil.rmtree(self.folder / "written", ignore_errors=True)
        layouts = compute_layout(
            tokenized,
            self.preparation.options.holdout or Holdout(),
            self.settings.blocks,
            self.folder,
            shards,
            shard_tokens=self.preparation.options.shard_tokens,
        )
        self.layout.write(layouts, self.preparation.notes(tokenized, self.settings))

    def _collect_blocks(self) -> dict[str, DomainBlocks]:
        tokenized = {}
        num_errors, max_errors = 0, self.preparation.options.max_errors
        for domain, source in self.preparation.sources().items():
            blocks = tokenized[domain] = DomainBlocks()
            for place in range(len(source.units)):
                path = self.folder / "results" / domain / f"{place:09d}.json"
                for result in read_json_object(path, ADVICE).entries("blocks", "tokenized blocks"):
                    left_out, errors = _counts(result, "left_out"), _counts(result, "errors")
                    blocks.left_out += left_out + errors
                    examples = [_input_error(error) for error in result.entries("error_examples", "input errors")]
                    num_errors += errors.total()
                    if num_errors > max_errors:
                        raise too_many_errors(num_errors, max_errors, examples[0])
                    blocks.error_examples += examples[: ERROR_EXAMPLES - len(blocks.error_examples)]
                    if name := result.get("name"):
                        if not isinstance(name, str) or not BLOCK_NAME.fullmatch(name):
                            raise result.invalid_value("name", "the name of a tokenized block", name)
                        block = find_tokenized_block(self.settings.blocks, name)
                        if block is None:
                            raise CorpusError(f"{path}: the tokenized block {name} does not exist", ADVICE)
                        blocks.names.append(block.name)
                        blocks.blocks.append(block)
        return tokenized


class WriteShards(_Step):
    """Writes every ``world_size``-th shard of the layout."""

    name = "shards"

    def work(self, rank: int, world_size: int) -> None:
        """Write the shards of task ``rank``."""
        layouts, _ = self.layout.read(self.preparation.texts)
        (self.folder / "written").mkdir(exist_ok=True)
        for number, (key, task) in enumerate(shard_tasks(layouts)):
            if number % world_size == rank:
                write_written(self.written(key), write_shard(task, self.settings.blocks))
                self.stat_update("shards")


class PublishCorpus(_Step):
    """Writes ``corpus.json`` into the folder of shards, renames the folder to the corpus, and removes the work folder.

    A killed task can be run again, since the rename is atomic and comes last.
    """

    name = "publish"

    def work(self, rank: int, world_size: int) -> None:
        """Publish the corpus."""
        out = self.preparation.out
        if not (out / FILE_NAME).exists():  # else an earlier attempt was killed after the rename
            check_out(out)
            layouts, notes = self.layout.read(self.preparation.texts)
            written = {key: read_written(self.written(key), task) for key, task in shard_tasks(layouts)}
            shards = self.folder / "shards"
            shutil.rmtree(shards / "tokenizer", ignore_errors=True)
            domains = {name: domain_entry(name, layout, written) for name, layout in layouts.items()}
            write_manifest(shards, self.settings, domains, notes)
            rename_folder(shards, out)
        shutil.rmtree(self.folder, ignore_errors=True)


def _counts(body: JsonObject, key: str) -> Counter[str]:
    counts = body.child(key)
    return Counter({reason: counts.integer(reason) for reason in counts.body})


def _input_error(body: JsonObject) -> InputError:
    try:
        return InputError(**body.body)
    except TypeError as error:
        raise CorpusError(f"{body.file}: expected the fields of an input error ({error})", ADVICE) from None


def _result_to_dict(result: TokenizeResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "left_out": result.left_out,
        "errors": result.errors.counts,
        "error_examples": [asdict(error) for error in result.errors.examples],
    }
