"""Training on one GPU: speed, utilisation, memory, and what masks, skipping and checkpoints cost.

    python bench.py --minutes 45 --out gpu.json
    python bench.py --table gpu.json

Needs torch with CUDA, transformers and drpruning, and no network: models are random, and so are the tokens. It drives
the package's own stages and loop and reads their records. README.md beside it says what the cases and figures are.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drpruning.config import RunConfig
    from drpruning.records import Record, StepTaken

GIB = 2**30
WARM = 3  # steps that are not counted: kernels are compiled and chosen, the allocator and the optimizer fill up
LEAST, MOST = 4, 50  # steps that are
SAVED_AFTER = 4  # counted steps before the checkpoint, in the case that writes one
FAR = 20.0  # log-alpha out of the noise's reach (log(1e6) = 13.8): such a gate is exactly 0 or 1 in every sample
BATCH = 32  # rows of a step: the recipes' in the prune stage; an eighth of theirs in the continue stage
TINY = {
    "model.architecture": {"layers": 3, "hidden": 64, "heads": 4, "intermediate": 96, "vocabulary": 512},
    "prune.target": {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 48},
    "data.seq_len": 64,
    "training.evaluation_tokens": 64,
    "training.measurement_tokens": 64,
    "training.peak_tflops": 0.1,
    "training.device": "cpu",
    "training.threads": 1,
}
TINY_CASES = ("continue 1.3B, 4 rows", "a checkpoint", "masks open", "without masks", "skipped", "computed")
"""Ends of the names of those that differ in more than what :data:`TINY` sets."""
SOURCES: dict[str, dict[str, Any]] = {
    "7B to 2.7B": {},
    "2.7B to 1.3B": {
        "model.architecture": {"layers": 32, "hidden": 2560, "heads": 20, "intermediate": 6912, "vocabulary": 32000},
        "prune.target": {"layers": 24, "hidden": 2048, "heads": 16, "intermediate": 5504},
    },
    "1.3B to 370M": {
        "model.architecture": {"layers": 24, "hidden": 2048, "heads": 16, "intermediate": 5504, "vocabulary": 32000},
        "prune.target": {"layers": 24, "hidden": 1024, "heads": 8, "intermediate": 2816},
    },
}
"""What may be pruned, the largest first: that of the recipe, and what the recipes make of it."""
NARROW = {"training.weights": "bfloat16+low16", "training.moments": "bfloat16"}


@dataclass(frozen=True)
class Case:
    """One row of the table: a stage of a recipe with some settings.

    Attributes:
        name: Of the row.
        recipe: A shipped one.
        stage: ``prune`` or ``continue``.
        settings: Changed in the recipe.
        masks: ``open``: all are one; ``target``: those of the target are, the others zero; ``none``: no masks.
        whole: Continue with the source instead of the target.
        checkpoint: Write one in the middle.
        target: What issue or paper asks for, in words.
    """

    name: str
    recipe: str
    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    masks: str = "none"
    whole: bool = False
    checkpoint: bool = False
    target: str = ""


def cases(pruned: str) -> list[Case]:
    """All of them; ``pruned`` is one of :data:`SOURCES`."""
    found = []
    quick = {"training.compile": True, "training.activation_checkpointing": "none"}

    def training(size: str, micro: int, more: str = "", target: str = "", **changes: Any) -> None:
        settings = quick | {"training.micro_batch_size": micro} | {f"training.{k}": v for k, v in changes.items()}
        name = f"continue {size}, {micro} rows{', ' * bool(more)}{more}"
        found.append(Case(name, f"llama2-7b-to-{size.lower()}", "continue", settings, target=target))

    training("1.3B", 4, target="MFU 45%")
    training("1.3B", 4, "not compiled", compile=False)
    training("1.3B", 2)
    training("1.3B", 8, "selective checkpointing", activation_checkpointing="selective")
    training("1.3B", 8, "full checkpointing", activation_checkpointing="full")
    training("1.3B", 4, "torch's loss", loss="torch")
    if importlib.util.find_spec("liger_kernel") is not None:
        training("1.3B", 4, "liger's loss", loss="liger")
    training("2.7B", 2, target="MFU 45%")
    training("2.7B", 4, "selective checkpointing", activation_checkpointing="selective")
    training("2.7B", 4, "full checkpointing", activation_checkpointing="full")
    settings = found[0].settings
    found.append(
        Case("continue 1.3B, 4 rows, a checkpoint", "llama2-7b-to-1.3b", "continue", settings, checkpoint=True)
    )

    full = {"training.compile": True, "training.activation_checkpointing": "full", "training.micro_batch_size": 4}

    def pruning(more: str, masks: str = "open", target: str = "", **changes: Any) -> None:
        settings = SOURCES[pruned] | full | NARROW | {k.replace("__", "."): v for k, v in changes.items()}
        stage = "continue" if masks == "none" else "prune"
        name = f"prune {pruned}, {more}"
        found.append(Case(name, "llama2-7b-to-2.7b", stage, settings, masks, whole=masks == "none", target=target))

    pruning("masks open", target="MFU 40%, at most 76 GiB")
    pruning("without masks", masks="none")
    pruning("masks open, not compiled", training__compile=False)
    pruning("masks open, 2 rows", training__micro_batch_size=2)
    pruning("masks open, int8 moments", training__moments="int8")
    pruning("masks at the target, skipped", masks="target")
    pruning("masks at the target, computed", masks="target", prune__skip_closed=False)
    return found


def config_of(case: Case, corpus: Path, *, tiny: bool) -> RunConfig:
    """The recipe of a case."""
    from drpruning.recipes import load_recipe

    settings: dict[str, Any] = {
        f"{case.stage}.batch_size": BATCH,
        f"{case.stage}.evaluate_every": 10**6,
        "training.evaluation_tokens": 4096,
        "training.measurement_tokens": 4096,
        "training.checkpoint_every": WARM + SAVED_AFTER if case.checkpoint else 10**6,
        "data.corpus": str(corpus),
        "data.document_mask": False,
    } | case.settings
    if case.masks != "none":
        still = 1e-12  # gates stay where they were put
        settings |= {"prune.mask_learning_rate": still, "prune.multiplier_learning_rate": still}
    if tiny:
        settings |= TINY | {"training.compile": False, "training.micro_batch_size": 2, f"{case.stage}.batch_size": 4}
    if case.whole:
        settings["prune.target"] = {"layers": settings.get("model.architecture", {"layers": 32})["layers"]}
    return load_recipe(case.recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


# ---- one case, in a process of its own


class Enough(Exception):  # noqa: N818 - not an error: everything that was to be measured is
    """Ends a stage that has taken the steps it is measured by."""


class Watch:
    """Takes the loop's records: warm-up steps, counted steps, then one under the profiler, or a checkpoint.

    Args:
        seconds: For counted steps, as far as at least :data:`LEAST` are taken.
        checkpoint: Where a checkpoint is going to appear after :data:`SAVED_AFTER` of them; None: there is none.
    """

    def __init__(self, seconds: float, checkpoint: Path | None) -> None:
        self.seconds = seconds
        self.checkpoint = checkpoint
        self.counted: list[StepTaken] = []
        self.waits: float | None = None
        self.after: list[float] = []
        self.saved_after: float | None = None
        self._seen = 0
        self._steps = SAVED_AFTER if checkpoint else LEAST
        self._profiler: Any = None
        self._times: list[float] = []

    def write(self, record: Record) -> None:
        """Takes note of a step; the loop calls this once the device is done with it, in the course of the next one."""
        from drpruning.records import StepTaken

        if not isinstance(record, StepTaken):
            return
        self._seen += 1
        self._times.append(time.perf_counter())
        if self._profiler is not None:
            self.waits = waits_in(self._profiler)
            raise Enough
        if self._seen <= WARM:
            return
        if len(self.counted) < self._steps:
            self.counted.append(record)
            if len(self.counted) == 1 and self.checkpoint is None:
                self._steps = min(MOST, max(LEAST, int(self.seconds / (self._times[-1] - self._times[-2]))))
        if len(self.counted) < self._steps:
            return
        if self.checkpoint is None:
            self._profiler = started_profiler()
        elif self._seen > WARM + self._steps:
            self._watch_checkpoint(self.checkpoint)

    def _watch_checkpoint(self, checkpoint: Path) -> None:
        self.after.append(self._times[-1] - self._times[-2])
        if checkpoint.is_dir() and self.saved_after is None:
            self.saved_after = self._times[-1] - self._times[WARM + self._steps - 1]
        if self.saved_after is not None and len(self.after) > 2:
            raise Enough


def started_profiler() -> Any:
    """Torch's, already on."""
    from torch.profiler import ProfilerActivity, profile, supported_activities

    wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
    profiler = profile(activities=list(wanted))
    profiler.start()
    return profiler


def waits_in(profiler: Any) -> float:
    """How often the host waited for the device in the step; on a CPU, how often a tensor's value was asked for."""
    import torch

    profiler.stop()
    waits = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
    if not torch.cuda.is_available():
        waits = {"aten::_local_scalar_dense"}
    return sum(event.name() in waits for event in profiler.profiler.kineto_results.events())


def measure(case: Case, corpus: Path, work: Path, seconds: float, *, tiny: bool = False) -> dict[str, Any]:
    """Trains as a case says until there are enough steps.

    Args:
        case: What to train.
        corpus: Of random tokens.
        work: An empty folder, for the run.
        seconds: For counted steps.
        tiny: Whether on a CPU in a moment.

    Returns:
        What was measured, JSON-able.
    """
    import torch

    from drpruning.corpus import Corpus
    from drpruning.planning.memory import stage_memory
    from drpruning.planning.model_shape import transformers_config
    from drpruning.planning.recipe import source_of
    from drpruning.pruning import Target
    from drpruning.train.flops import flops_per_token
    from drpruning.train.loop import run_stage
    from drpruning.train.run import open_run
    from drpruning.train.source import build
    from drpruning.train.stages import begin, masked_model, strategy

    config = config_of(case, corpus, tiny=tiny)
    shape = source_of(config)
    kind = "cpu" if tiny else "cuda"
    planned = None
    if case.masks != "target" and not case.checkpoint:  # others take no more than these
        planned = stage_memory(config, case.stage, shape, device=kind).total
    whole = Target.of(shape).sizes()  # type: ignore[arg-type] # has what is read
    target = Target(**config.prune.target.model_dump()).resolve(shape).sizes()  # type: ignore[arg-type]
    source = transformers_config(shape, whole if case.stage == "prune" else target)
    saved = work / "checkpoints" / f"{case.stage}-{WARM + SAVED_AFTER:09d}" if case.checkpoint else None
    watch = Watch(seconds, saved)
    with open_run(config, work, Corpus.open(corpus), source, watchers=[watch]) as run, suppress(Enough):
        with run.engine.device:  # made where it is used, which takes moments
            model = build(source, 0)
        if case.stage == "prune":
            model = masked_model(config.prune, model)
            place_gates(model, case.masks)
        stage = begin(
            run, case.stage, run.place(model), strategy(config, case.stage), config.data.reference_ratio, None
        )
        run_stage(stage, run.engine)
    tokens = config.stage(case.stage).batch_size * config.data.seq_len
    took = [tokens / record.tokens_per_second for record in watch.counted]
    waited = [record.loader_wait or 0.0 for record in watch.counted]
    computed = target if case.masks == "target" and config.prune.skip_closed else Target.of(source).sizes()
    result: dict[str, Any] = {
        "tokens_per_step": tokens,
        "steps": len(took),
        "step_seconds": median(took),
        "step_seconds_quartiles": [quartile for place, quartile in enumerate(quantiles(took, n=4)) if place != 1],
        "tokens_per_second": median(record.tokens_per_second for record in watch.counted),
        "utilisation": median(record.utilisation for record in watch.counted if record.utilisation is not None),
        "flops_per_token": flops_per_token(source, computed, config.data.seq_len),
        "loader_wait_share": sum(waited) / sum(took),
        "memory_bytes": watch.counted[-1].memory,
        "reserved_bytes": None if tiny else torch.cuda.max_memory_reserved(),
        "planned_bytes": planned,
        "waits_per_step": watch.waits,
    }
    if saved is not None:
        usual = median(took)
        result["checkpoint"] = {
            "bytes": sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
            "first_step_longer_by": watch.after[0] - usual,
            "all_steps_longer_by": sum(watch.after) - usual * len(watch.after),
            "complete_after": watch.saved_after,
            "share_at_one_per_500_steps": (sum(watch.after) - usual * len(watch.after)) / (500 * usual),
        }
    return result


def place_gates(masked: Any, masks: str) -> None:
    """Puts every gate where its mask is one, or where it is that of the target, without a doubt."""
    import torch

    with torch.no_grad():
        for kind, mask in masked.deterministic_masks().items():
            kept = torch.ones_like(mask) if masks == "open" else mask
            masked.gates[kind].copy_(torch.where(kept > 0, FAR, -FAR))


def describe(*, tiny: bool) -> dict[str, Any]:
    """The machine and the versions on it."""
    import torch

    from drpruning import __version__

    packages = {"drpruning": __version__} | {name: version(name) for name in ("torch", "transformers", "numpy")}
    found = {"card": platform.machine(), "card_bytes": None, "cuda": None}
    if not tiny:
        if not torch.cuda.is_available():
            raise click.ClickException("torch finds no GPU here; --tiny tries everything on the CPU")
        found = {
            "card": torch.cuda.get_device_name(),
            "card_bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
        }
    return {**found, **packages, "python": platform.python_version(), "platform": platform.platform(), "tiny": tiny}


def described_aside() -> dict[str, Any]:
    """The same from a process of its own: one that has asked a card keeps some of its memory."""
    command = [sys.executable, str(Path(__file__).resolve()), "--describe"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise click.ClickException(told.stderr.strip().splitlines()[-1].removeprefix("Error: "))
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


# ---- all of them


def write_corpus(folder: Path, config: RunConfig, tokens: int) -> None:
    """Random tokens for each domain of a recipe, as a corpus."""
    import numpy as np

    from drpruning.corpus_json import Shard, Tokenizer
    from drpruning.prepare.manifest import Domain, Manifest
    from drpruning.prepare.megatron import MegatronWriter

    vocabulary = config.model.architecture.vocabulary  # type: ignore[union-attr]
    assert vocabulary is not None
    generator, domains = np.random.default_rng(17), {}
    for name in config.domains:
        shards = {}
        for split in ("train", "eval"):
            with MegatronWriter(folder / f"{name}-{split}-00000", "uint16") as writer:
                for _ in range(max(1, tokens // 2**20)):
                    writer.add(generator.integers(1, vocabulary, min(tokens, 2**20), dtype=np.uint16))
            shards[split] = [
                Shard(
                    path=writer.path(".bin"),
                    dtype="uint16",
                    tokens=writer.tokens,
                    documents=writer.documents,
                    bytes=2 * writer.tokens,
                    sha256=writer.sha256[".bin"],
                    index_sha256=writer.sha256[".idx"],
                )
            ]
        domains[name] = Domain(**shards)
    tokenizer = Tokenizer(name="random tokens", file=None, vocab_size=vocabulary, eos_id=0, sha256=None)
    Manifest(tokenizer=tokenizer, domains=domains).write(folder)


def largest_source(room: int) -> str:
    """The first of :data:`SOURCES` that is planned to fit into ``room`` bytes of memory; the last if none is."""
    from drpruning.planning.memory import stage_memory
    from drpruning.planning.recipe import source_of

    for name in SOURCES:
        case = next(case for case in cases(name) if case.masks == "open")
        config = config_of(case, Path("corpus"), tiny=False)
        if stage_memory(config, "prune", source_of(config)).total <= room:
            break
    return name


def run_case(case: Case, corpus: Path, work: Path, seconds: float, patience: float, *, tiny: bool) -> dict[str, Any]:
    """Measures a case in a process of its own; what goes wrong there is its outcome, and the others go on."""
    folder = Path(tempfile.mkdtemp(dir=work))
    answer, log = folder / "result.json", folder / "log"
    asked = {"case": asdict(case), "corpus": str(corpus), "seconds": seconds, "tiny": tiny, "answer": str(answer)}
    began = time.perf_counter()
    try:
        with log.open("wb") as file:
            command = [sys.executable, str(Path(__file__).resolve()), "--case", json.dumps(asked)]
            done = subprocess.run(command, stdout=file, stderr=file, timeout=patience, check=False)
        result = json.loads(answer.read_text()) if answer.is_file() else {"outcome": f"ended with {done.returncode}"}
    except subprocess.TimeoutExpired:
        result = {"outcome": f"not done after {patience:.0f} s"}
    if result["outcome"] != "measured":
        result["said"] = log.read_text(errors="replace").splitlines()[-20:]
    shutil.rmtree(folder)
    return {"name": case.name, **asdict(case), **result, "process_seconds": time.perf_counter() - began}


def answer_case(asked: dict[str, Any]) -> None:
    """What the process of a case does: measures it and writes the answer."""
    import torch

    answer = Path(asked["answer"])
    run = answer.with_name("run")
    run.mkdir()
    try:
        measured = measure(Case(**asked["case"]), Path(asked["corpus"]), run, asked["seconds"], tiny=asked["tiny"])
        result = {"outcome": "measured", **measured}
    except torch.OutOfMemoryError as error:
        result = {"outcome": "out of memory", "error": str(error).splitlines()[0]}
    except Exception as error:  # one case must not cost the others theirs
        import traceback

        traceback.print_exc()
        result = {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
    answer.write_text(json.dumps(result))


def derived(results: list[dict[str, Any]], warmup: float) -> dict[str, Any]:
    """What follows from several cases together: None where one of them was not measured.

    Args:
        results: Of the cases.
        warmup: Part of the prune stage over which the sparsity rises.
    """
    steps = {each["name"].partition(", ")[2]: each["step_seconds"] for each in results if "step_seconds" in each}
    opened, bare = steps.get("masks open"), steps.get("without masks")
    skipped, computed = steps.get("masks at the target, skipped"), steps.get("masks at the target, computed")
    mean = None
    if opened and skipped:
        tokens = next(each["tokens_per_step"] for each in results if each.get("masks") == "open")
        mean = tokens / (warmup * (opened + skipped) / 2 + (1 - warmup) * skipped)
    saved = next((each["checkpoint"] for each in results if isinstance(each.get("checkpoint"), dict)), None)
    return {
        "masks_step_ratio": opened / bare if opened and bare else None,
        "skipping_speedup": computed / skipped if skipped and computed else None,
        "pruning_mean_tokens_per_second": mean,
        "checkpoint_share_at_one_per_500_steps": saved["share_at_one_per_500_steps"] if saved else None,
    }


TARGETS = {
    "masks_step_ratio": ("step with masks at one / without", "at most 1.02"),
    "skipping_speedup": ("step at the target: computed / skipped", ""),
    "pruning_mean_tokens_per_second": ("tokens/s of a prune stage, mean, from its first and last", "14,000 for 7B"),
    "checkpoint_share_at_one_per_500_steps": ("longer by checkpoints, one in 500 steps", "under 2%"),
}


def table(body: dict[str, Any]) -> str:
    """The JSON file as Markdown."""
    machine = body["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "cuda", "transformers", "drpruning"))
    lines = [
        f"{machine['card']}, {versions}, {body['started'][:10]}",
        "",
        "| case | tokens/s | MFU | peak GiB (planned) | loader wait | waits | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in body["cases"]:
        if each["outcome"] != "measured":
            lines.append(f"| {each['name']} | {each['outcome']} | | | | | {each['target']} |")
            continue
        memory = f"{(each['reserved_bytes'] or each['memory_bytes']) / GIB:.1f}"
        if each["planned_bytes"] is not None:
            memory += f" ({each['planned_bytes'] / GIB:.1f})"
        lines.append(
            f"| {each['name']} | {each['tokens_per_second']:,.0f} | {each['utilisation']:.1%} | {memory} "
            f"| {each['loader_wait_share']:.2%} | {'' if each['waits_per_step'] is None else each['waits_per_step']} "
            f"| {each['target']} |"
        )
    lines += ["", "| | measured | target |", "|---|---|---|"]
    for name, (title, target) in TARGETS.items():
        value = body["derived"][name]
        shown = "" if value is None else f"{value:,.0f}" if value > 100 else f"{value:.3f}"
        lines.append(f"| {title} | {shown} | {target} |")
    return "\n".join(lines) + "\n"


def save(out: Path, body: dict[str, Any]) -> None:
    """Writes the results aside and renames them."""
    aside = out.with_name(f".{out.name}.partial")
    aside.write_text(json.dumps(body, indent=1) + "\n")
    aside.replace(out)


@click.command()
@click.option("--minutes", default=45.0, show_default=True, help="For all cases together, about.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("gpu.json"), show_default=True)
@click.option("--only", multiple=True, help="Cases whose name has this in it; repeatable.")
@click.option("--work", type=click.Path(path_type=Path), help="A folder for tokens and checkpoints, 40 GB.")
@click.option("--tiny", is_flag=True, help="Small models on the CPU, to try the script.")
@click.option("--table", "shown", type=click.Path(path_type=Path, exists=True), help="Print a result as a table.")
@click.option("--case", "asked", hidden=True)
@click.option("--describe", "describing", is_flag=True, hidden=True)
def main(
    minutes: float,
    out: Path,
    only: tuple[str, ...],
    work: Path | None,
    tiny: bool,
    shown: Path | None,
    asked: str | None,
    describing: bool,
) -> None:
    """Measures every case that is not in OUT yet, and writes OUT after each."""
    if shown is not None:
        click.echo(table(json.loads(shown.read_text())), nl=False)
        return
    if asked is not None:
        answer_case(json.loads(asked))
        return
    if describing:
        click.echo(json.dumps(describe(tiny=False)))
        return
    with tempfile.TemporaryDirectory(dir=work) as folder:
        measure_all(minutes, out, only, Path(folder), tiny=tiny)


def measure_all(minutes: float, out: Path, only: tuple[str, ...], work: Path, *, tiny: bool) -> None:
    """Measures every case that is not in ``out`` yet."""
    machine = describe(tiny=True) if tiny else described_aside()
    body = json.loads(out.read_text()) if out.is_file() else {"machine": machine, "cases": []}
    if body["machine"] != machine:
        raise click.ClickException(f"{out} is of another machine or of other versions; give another --out")
    body.setdefault("started", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    reserve = 3 * GIB  # as `drpruning plan` leaves free
    pruned = "7B to 2.7B" if tiny else largest_source(machine["card_bytes"] - reserve)
    known = {each["name"] for each in body["cases"] if each["outcome"] == "measured"}
    listed = [case for case in cases(pruned) if not only or any(part in case.name for part in only)]
    if tiny:
        listed = [case for case in listed if case.name.endswith(TINY_CASES)]
    if not listed:
        raise click.ClickException(f"no case has {' or '.join(only)} in its name")
    left = [case for case in listed if case.name not in known]
    corpus = work / "corpus"
    corpus.mkdir()
    example = config_of(cases(pruned)[0], corpus, tiny=tiny)
    write_corpus(corpus, example, 2**16 if tiny else 2**23)
    seconds = 60 * minutes / max(1, len(listed))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number, case in enumerate(left, 1):
        click.echo(f"{number} of {len(left)}: {case.name}", err=True)
        # Half of its time is for loading, compiling and warming up
        result = run_case(case, corpus, work, seconds / 2, max(600.0, 4 * seconds), tiny=tiny)
        said = f"{result['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in result else result["outcome"]
        click.echo(f"  {said}: {result['error']}" if "error" in result else f"  {said}", err=True)
        body["cases"] = [each for each in body["cases"] if each["name"] != case.name] + [result]
        body["derived"] = derived(body["cases"], example.prune.target_warmup)
        save(out, body)
    click.echo(table(body), nl=False)


if __name__ == "__main__":
    main()
