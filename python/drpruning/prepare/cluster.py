"""A preparation as a datatrove pipeline: many machines with one file system write the bytes that one machine would.

Four stages follow each other: ``pieces`` (as many tasks as you like; each takes every n-th unit of text), ``plan`` (one
task; looks at digests and lengths only), ``shards`` (again many), and ``publish`` (one). An executor of datatrove runs
each: ``LocalPipelineExecutor``, ``SlurmPipelineExecutor`` or ``RayPipelineExecutor``.
"""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from drpruning.corpus_json import FILE_NAME
from drpruning.errors import ConfigError, MissingExtraError
from drpruning.files import rename_folder, write_bytes, write_text
from drpruning.prepare.from_files import Preparation
from drpruning.prepare.gather import Gathered, reads_stdin, too_many
from drpruning.prepare.pieces import find_piece
from drpruning.prepare.plan import DomainPlan, plan_corpus
from drpruning.prepare.publish import free_for
from drpruning.prepare.shards import WrittenShard, write_shard
from drpruning.prepare.split import HeldOut
from drpruning.prepare.units import NAMED_TROUBLES, Trouble
from drpruning.prepare.work import Made, Settings, Station, UnitTask
from drpruning.prepare.write import ShardKey, domain_of, jobs_of, settings_for, write_manifest

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise MissingExtraError("preparing on a cluster needs datatrove", 'pip install "drpruning[prepare]"') from error

Executor = Any
"""One of datatrove's; they share no base class that says more."""


@dataclass(frozen=True)
class Stage:
    """What one executor is to run.

    Args:
        name: Of the stage.
        steps: Its pipeline.
        parallel: Whether it may have many tasks; else one.
    """

    name: str
    steps: list[PipelineStep]
    parallel: bool


def stages(preparation: Preparation, tokenizer: str) -> list[Stage]:
    """The stages of a preparation in order, each to wait for the one before.

    The tokenizer is loaded here and saved into the work folder beside the corpus, where the tasks find it. They need
    that folder, the text and the place of the corpus under the same paths on every machine.

    Args:
        preparation: What is to be done. Its ``workers`` do not matter: tasks are the executor's.
        tokenizer: A folder, file, or name on the Hugging Face hub.

    Raises:
        ConfigError: A path does not exist, or the tokenizer cannot be used.
        CorpusError: The place of the corpus is taken.
    """
    from drpruning.prepare.tokenise import load_tokenizer  # noqa: PLC0415 -- seconds

    if preparation.options.near_duplicates:
        raise ConfigError(
            "near duplicates are found on one machine only",
            "On a cluster run datatrove's own MinHash stages on the text before this.",
        )
    free_for(preparation.out)
    if reads_stdin(preparation.sources()):
        raise ConfigError("tasks on a cluster have no standard input in common", "Write the text into a file.")
    absolute = replace(preparation, out=preparation.out.absolute())
    loaded = load_tokenizer(tokenizer, preparation.options.end_token)
    settings = replace(settings_for(loaded, absolute.work), utf8=preparation.options.utf8)
    return [
        Stage("pieces", [MakePieces(absolute, settings)], parallel=True),
        Stage("plan", [PlanShards(absolute, settings)], parallel=False),
        Stage("shards", [WriteShards(absolute, settings)], parallel=True),
        Stage("publish", [Publish(absolute, settings)], parallel=False),
    ]


def executors(
    planned: Iterable[Stage], tasks: int, new: Callable[..., Executor], logs: Path | str, **options: Any
) -> Executor:
    """The executor of the last stage, which depends on the others; its ``run()`` runs or submits them all.

    Args:
        planned: From :func:`stages`.
        tasks: Of each stage that may have many.
        new: The executor's class.
        logs: Folder of datatrove's logs, by which an executor knows what is done.
        **options: For every executor: ``workers``; Slurm's ``time``, ``partition``, ``cpus_per_task`` and others.
            Slurm's jobs are called ``prepare-pieces`` and so on.
    """
    last = None
    named = "job_name" in inspect.signature(new).parameters
    for stage in planned:
        if named:
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
    """A step that needs no documents from the step before it, and gives none to the next."""

    type = "drpruning"
    name = "step"

    def __init__(self, preparation: Preparation, settings: Settings) -> None:
        super().__init__()
        self.preparation = preparation
        self.settings = settings

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[object]:
        """Does the work of task ``rank``."""
        with self.track_time():
            self.work(rank, world_size)
        yield from ()

    @abstractmethod
    def work(self, rank: int, world_size: int) -> None:
        """Does it."""

    @property
    def folder(self) -> Path:
        return self.preparation.work


class MakePieces(_Step):
    """Makes the pieces of every ``world_size``-th unit, and writes down which."""

    name = "pieces"

    def work(self, rank: int, world_size: int) -> None:
        """Makes them."""
        station = Station(self.settings)
        number = -1
        for domain, source in self.preparation.sources().items():
            for place, unit in enumerate(source.units):
                number += 1
                if number % world_size == rank:
                    made = station.perform(UnitTask(unit, source.fields))
                    assert isinstance(made, list)
                    path = self.folder / "made" / domain / f"{place:09d}.json"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_text(path, json.dumps([_noted(one) for one in made]))
                    self.stat_update("units")


class PlanShards(_Step):
    """Decides what goes where, once all pieces are there."""

    name = "plan"

    def work(self, rank: int, world_size: int) -> None:
        """Decides it."""
        gathered = self._gathered()
        rule = self.preparation.options.held_out or HeldOut()
        shards = self.folder / "shards"
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir()
        shutil.rmtree(self.folder / "written", ignore_errors=True)
        plans = plan_corpus(
            gathered,
            rule,
            self.settings.pieces,
            self.folder,
            shards,
            shard_tokens=self.preparation.options.shard_tokens,
        )
        prepared = self.preparation.notes(gathered, self.settings)
        write_bytes(self.folder / "plan.pickle", pickle.dumps((plans, prepared)))

    def _gathered(self) -> dict[str, Gathered]:
        gathered = {}
        bad = 0
        for domain, source in self.preparation.sources().items():
            found = gathered[domain] = Gathered()
            for place in range(len(source.units)):
                path = self.folder / "made" / domain / f"{place:09d}.json"
                for note in json.loads(path.read_text(encoding="utf-8")):
                    found.left_out += Counter(note["left_out"]) + Counter(note["troubles"])
                    named = [Trouble(**trouble) for trouble in note["named"]]
                    bad += sum(note["troubles"].values())
                    if bad > self.preparation.options.max_bad:
                        raise too_many(bad, self.preparation.options.max_bad, named[0])
                    found.named += named[: NAMED_TROUBLES - len(found.named)]
                    if note["name"]:
                        piece = find_piece(self.settings.pieces, note["name"])
                        assert piece is not None
                        found.names.append(piece.name)
                        found.pieces.append(piece)
        return gathered


class WriteShards(_Step):
    """Writes every ``world_size``-th shard of the plan."""

    name = "shards"

    def work(self, rank: int, world_size: int) -> None:
        """Writes them."""
        plans, _ = _planned(self.folder)
        written = self.folder / "written"
        written.mkdir(exist_ok=True)
        for number, ((domain, side, place), job) in enumerate(jobs_of(plans)):
            if number % world_size == rank:
                shard = write_shard(job, self.settings.pieces)
                write_bytes(written / f"{domain} {side} {place}", pickle.dumps(shard))
                self.stat_update("shards")


class Publish(_Step):
    """Writes ``corpus.json`` beside the shards, gives their folder its place, and removes the work folder.

    A task that is killed at any moment can be started again: the folder is renamed when it is whole.
    """

    name = "publish"

    def work(self, rank: int, world_size: int) -> None:
        """Publishes the corpus."""
        out = self.preparation.out
        if not (out / FILE_NAME).exists():  # else an earlier try was killed after the renaming
            free_for(out)
            plans, prepared = _planned(self.folder)
            written: dict[ShardKey, WrittenShard] = {}
            for (domain, side, place), _ in jobs_of(plans):
                content = (self.folder / "written" / f"{domain} {side} {place}").read_bytes()
                written[domain, side, place] = pickle.loads(content)  # noqa: S301 - a job of ours wrote it
            shards = self.folder / "shards"
            shutil.rmtree(shards / "tokenizer", ignore_errors=True)
            domains = {name: domain_of(name, plan, written) for name, plan in plans.items()}
            write_manifest(shards, self.settings, domains, prepared)
            rename_folder(shards, out)
        shutil.rmtree(self.folder, ignore_errors=True)


def _planned(folder: Path) -> tuple[dict[str, DomainPlan], dict[str, Any]]:
    plans, prepared = pickle.loads((folder / "plan.pickle").read_bytes())  # noqa: S301 - written by this module
    return plans, prepared


def _noted(made: Made) -> dict[str, Any]:
    return {
        "name": made.name,
        "left_out": made.left_out,
        "troubles": made.troubles.counts,
        "named": [asdict(trouble) for trouble in made.troubles.named],
    }
