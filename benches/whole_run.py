"""A whole run of a random Llama on gloo ranks: prune, cut, continue; killed and resumed; memory against the plan.

    python benches/whole_run.py --out WORK                         # 1.1 billion parameters, the shape of TinyLlama
    python benches/whole_run.py --out WORK --hidden 256 --layers 4 --heads 4 --kv-heads 2 --intermediate 704 \
        --vocabulary 4096                                          # minutes

Three runs of one recipe under torchrun: with `compile` off, with it on, and one in which the last rank is killed with
SIGKILL in the prune stage after a checkpoint, and which is then resumed. The records and the exported weights
of the resumed run must equal those of the first bit for bit, but for times, memory and paths.

The memory of a rank is its anonymous memory (RssAnon), read from outside 50 times a second, less what it holds before
the first model is read. A phase is the time from one named mark of the rank to the next (`Ranks.mark`). The plan is
that of `drpruning.planning` for the same ranks. Blocks from 128 KiB are mapped one by one (`MALLOC_MMAP_THRESHOLD_`),
so that freed memory leaves the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import click

STEPS = {"prune": 4, "continue": 2}
CHECKPOINT_AT = 2  # of the prune stage, whose next step ends with the kill
SAMPLES_PER_SECOND = 50
WITHIN = 1.10  # largest measured over planned memory of a run
OF_RUN = {"time", "path", "seconds", "tokens_per_second", "utilisation", "loader_wait", "memory", "environment"}
"""Fields of records that differ between two equal runs: times, memory and folders."""
PHASES = {
    "the measurement of": "measure",
    "the start of": "load",
    "the resume of": "resume",
    "step": "step",
    "the evaluation after": "evaluation",
    "the checkpoint of": "save",
    "the end of": "widen",
    "the export of": "export",
    "the export to": "export",
}
"""How the name of a mark begins, and the phase of the plan that begins there."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the large model; half of its parameters, about, are kept."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    def target(self) -> dict[str, int]:
        """Nine tenths of the layers and three quarters of each width."""
        kv_heads = max(1, self.kv_heads * 3 // 4)
        return {
            "layers": max(1, self.layers * 9 // 10),
            "hidden": self.hidden * 3 // 4 // 16 * 16,
            "heads": self.heads // self.kv_heads * kv_heads,
            "kv_heads": kv_heads,
            "intermediate": self.intermediate * 3 // 4 // 16 * 16,
        }


@dataclass
class Watched:
    """One run as seen from outside.

    Attributes:
        seconds: From start to end.
        exitcode: Of torchrun.
        base: Bytes of each rank before the first model.
        peaks: The largest anonymous memory of any rank above its base, bytes, by stage and phase.
        of_ranks: The same over all phases, by rank.
        printed: Standard error of all processes.
    """

    seconds: float = 0.0
    exitcode: int = 0
    base: dict[int, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    of_ranks: dict[int, int] = field(default_factory=dict)
    printed: str = ""


def write_model(folder: Path, shape: Shape) -> None:
    """Write a Llama with random weights in bfloat16, one file for each block, so that one block is in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    if (folder / "model.safetensors.index.json").is_file():
        return
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        sizes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    files: dict[str, list[str]] = defaultdict(list)
    for name in sizes:
        block = name.split(".layers.")[1].split(".")[0] if ".layers." in name else name
        files[f"model-{block}.safetensors"].append(name)
    generator = torch.Generator().manual_seed(0)
    for file, names in files.items():
        weights = {
            name: torch.ones(sizes[name], dtype=torch.bfloat16)
            if len(sizes[name]) == 1  # of a norm
            else torch.empty(sizes[name], dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
            for name in names
        }
        save_file(weights, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def recipe(folder: Path, shape: Shape, ranks: int, seq_len: int) -> Any:
    """Return a short recipe with all stages in the formats with the fewest bytes, one row a micro-batch."""
    from drpruning.recipes import parse_recipe

    stage = {"batch_size": 2 * ranks, "learning_rate": 1e-4, "eval_every": 2}
    rates = {"gate_learning_rate": 0.1, "multiplier_learning_rate": 0.05, "sparsity_warmup_fraction": 0.5}
    rows = ranks * seq_len  # an evaluation is one forward pass for each domain
    return parse_recipe(
        {
            "name": "whole-run",
            "model": {"source": str(folder)},
            "data": {"corpus": "synthetic", "seq_len": seq_len, "reference_ratio": {"web": 0.7, "code": 0.3}},
            "prune": {**stage, **rates, "steps": STEPS["prune"], "target": shape.target()},
            "continue": {**stage, "steps": STEPS["continue"]},
            "mixture": {"strategy": "drpruning", "reference_loss": "base"},
            "training": {
                "device": "cpu",
                "threads": 1,
                "dtype": "bfloat16",
                "weight_format": "bfloat16+low16",
                "optimizer_state_format": "bfloat16",
                "micro_batch_size": 1,
                "activation_checkpointing": "full",
                "checkpoint_every": CHECKPOINT_AT,
                "keep_checkpoints": 1,
                "eval_tokens": rows,
                "final_eval_tokens": rows,
                "eval_batch_size": 1,
                "distributed_timeout_s": 900,
            },
        }
    )


def worker(arguments: list[str]) -> None:
    """Run the command under torchrun, and write each named mark of this rank to a file for the watching process."""
    import_module("torch.distributed.fsdp")  # loaded before the first mark, so that it counts as before the run
    import_module("transformers.models.llama.modeling_llama")
    import_module("drpruning.train.run")
    from drpruning.cli import main
    from drpruning.train.distributed.ranks import Ranks

    file = os.open(Path(os.environ["PLACES"]) / os.environ["RANK"], os.O_CREAT | os.O_WRONLY)
    os.pwrite(file, _line(os.getpid(), ""), 0)
    mark = Ranks.mark

    def noted(self: Ranks, place: str | None = None, **others: Any) -> None:
        if place is not None and "group" not in others:  # not in the thread that writes checkpoints, if any
            os.pwrite(file, _line(os.getpid(), place), 0)
        mark(self, place, **others)

    Ranks.mark = noted  # type: ignore[method-assign]
    main(arguments)


def _line(pid: int, place: str) -> bytes:
    return f"{pid} {place}".ljust(150)[:150].encode()


def run(out: Path, yaml: Path, name: str, ranks: int, *more: str, kill_in: Path | None = None) -> Watched:
    """Run the recipe in ``out/name`` and watch its ranks.

    Args:
        out: The working folder.
        yaml: The recipe.
        name: Of the run folder.
        ranks: Processes.
        more: Options of ``drpruning train``.
        kill_in: Kill the last rank in the step after this checkpoint is complete.
    """
    places = out / f"{name}.places"
    places.mkdir(exist_ok=True)
    for old in places.iterdir():
        old.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [__file__, "worker", "train", str(yaml), "--out", str(out / name), *more]
    environment = {
        **os.environ,
        "PLACES": str(places),
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**17),
        "DRPRUNING_CACHE": str(out / "cache"),
    }
    watched, began = Watched(), time.perf_counter()
    log = out / f"{name}.log"
    with log.open("ab") as file:
        start = log.stat().st_size
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        done = threading.Event()
        watcher = threading.Thread(target=watch, args=(places, ranks, watched, done))
        watcher.start()
        try:
            if kill_in is not None:
                while process.poll() is None and not (
                    kill_in.is_dir() and f"step {CHECKPOINT_AT + 1} of" in (places / str(ranks - 1)).read_text()
                ):
                    time.sleep(0.01)
                if process.poll() is None:
                    os.kill(int((places / str(ranks - 1)).read_text().split()[0]), signal.SIGKILL)
            watched.exitcode = process.wait()
        finally:
            process.terminate()  # torchrun ends its workers
            done.set()
            watcher.join()
    watched.seconds = time.perf_counter() - began
    watched.printed = log.read_bytes()[start:].decode(errors="replace")
    return watched


def watch(places: Path, ranks: int, watched: Watched, done: threading.Event) -> None:
    """Sample the anonymous memory of each rank until ``done``."""
    stage = "prune"
    while not done.wait(1 / SAMPLES_PER_SECOND):
        for rank in range(ranks):
            try:
                pid, _, place = (places / str(rank)).read_text().strip().partition(" ")
                anonymous = _anonymous(int(pid))
            except (OSError, ValueError, StopIteration):  # not yet, or not any more
                continue
            if not place:
                watched.base[rank] = anonymous
                continue
            stage = next((name for name in STEPS if f"{name} stage" in place), "prune" if "base" in place else stage)
            phase = next(phase for start, phase in PHASES.items() if place.startswith(start))
            key, above = f"{stage} {phase}", anonymous - watched.base.get(rank, 0)
            watched.peaks[key] = max(watched.peaks.get(key, 0), above)
            watched.of_ranks[rank] = max(watched.of_ranks.get(rank, 0), above)


def _anonymous(pid: int) -> int:
    """Bytes of a process's memory that no file backs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))


def planned(config: Any, ranks: int) -> dict[str, int]:
    """Bytes of a rank by stage and phase, as planned; the whole stage as the phase ``step`` where phases are not."""
    from drpruning.planning import memory
    from drpruning.planning.recipe import source_shape

    source, found = source_shape(config), {}
    for stage in STEPS:
        if hasattr(memory, "phases_of"):
            for peak in memory.phases_of(config, stage, source, device="cpu", ranks=ranks):
                phase = "step" if peak.phase == "sparse_step" else peak.phase
                found[f"{stage} {phase}"] = max(found.get(f"{stage} {phase}", 0), peak.total)
        else:
            found[f"{stage} step"] = memory.stage_memory(config, stage, source, device="cpu", ranks=ranks).total
    return found


def records(run_folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run without incidents and without fields that differ between equal runs."""
    bodies = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in body.items() if key not in OF_RUN}
        for body in bodies
        if body["kind"] != "incident"
    ]


def differences(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> list[str]:
    """Return the differences of two runs, at most five; empty where they are equal."""
    found = [] if len(one) == len(two) else [f"{len(one)} records, and {len(two)}"]
    for first, second in zip(one, two, strict=False):
        for key in first.keys() | second.keys():
            if first.get(key) != second.get(key):
                where = f"{first['kind']} {first.get('stage', '')} {first.get('step', '')}"
                found.append(f"{where}: {key} {first.get(key)!r}, and {second.get(key)!r}")
    return found[:5]


def weights(run_folder: Path) -> dict[str, str]:
    """Sum of the exported weights' files."""
    digests = {}
    for path in sorted((run_folder / "export").glob("*.safetensors")):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def table(runs: dict[str, Watched], plan: dict[str, int]) -> list[str]:
    """Memory by stage and phase as Markdown: the largest rank of each run, the plan, and the largest ratio."""
    names = [name for name, watched in runs.items() if watched.peaks]
    lines = [
        "| MiB a rank | " + " | ".join(names) + " | planned | measured / planned |",
        "|---" * (len(names) + 3) + "|",
    ]
    keys = list(dict.fromkeys([*plan, *(key for name in names for key in runs[name].peaks)]))
    for key in keys:
        measured = [runs[name].peaks.get(key) for name in names]
        ratio = max((each for each in measured if each), default=0) / plan[key] if plan.get(key) else 0
        cells = ["" if each is None else f"{each / 2**20:,.0f}" for each in [*measured, plan.get(key)]]
        lines.append(f"| {key} | {' | '.join(cells)} | {f'{ratio:.2f}' if ratio else ''} |")
    largest, most = max(max(runs[name].of_ranks.values()) for name in names), max(plan.values())
    cells = [f"{max(runs[name].of_ranks.values()) / 2**20:,.0f}" for name in names]
    lines.append(f"| **largest** | {' | '.join(cells)} | {most / 2**20:,.0f} | {largest / most:.2f} |")
    return lines


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for model, runs and results.")
@click.option("--ranks", default=2, show_default=True, help="Processes.")
@click.option("--seq-len", default=64, show_default=True, help="Tokens in a row.")
@click.option("--hidden", default=2048, show_default=True)
@click.option("--layers", default=22, show_default=True)
@click.option("--heads", default=32, show_default=True)
@click.option("--kv-heads", default=4, show_default=True)
@click.option("--intermediate", default=5632, show_default=True)
@click.option("--vocabulary", default=32000, show_default=True)
@click.option("--compiled/--no-compiled", default=True, show_default=True, help="Also run with `compile`.")
def main(out: Path, ranks: int, seq_len: int, compiled: bool, **sizes: int) -> None:
    shape, out = Shape(**sizes), out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    write_model(out / "model", shape)
    config = recipe(out / "model", shape, ranks, seq_len)
    yaml = out / "recipe.yaml"
    yaml.write_text(config.to_yaml())
    plan = planned(config, ranks)
    runs, wrong = {"uncompiled": run(out, yaml, "uncompiled", ranks)}, []
    if compiled:
        runs["compiled"] = run(out, yaml, "compiled", ranks, "--set", "training.compile=true")
    checkpoint = out / "killed" / "checkpoints" / f"prune-{CHECKPOINT_AT:09d}"
    runs["killed"] = run(out, yaml, "killed", ranks, kill_in=checkpoint)
    runs["resumed"] = run(out, yaml, "killed", ranks, "--resume")
    for name, watched in runs.items():
        print(f"{name}: {watched.seconds:.0f} s, exit code {watched.exitcode}", flush=True)
        if (watched.exitcode == 0) == (name == "killed"):
            wrong.append(f"{name} ended with {watched.exitcode}:\n{watched.printed[-3000:]}")
    lost = f"RankError: rank {ranks - 1} of {ranks} "
    if lost not in runs["killed"].printed:
        wrong.append(f"the ranks that were left did not print {lost!r}:\n{runs['killed'].printed[-3000:]}")
    if not wrong:
        wrong += differences(records(out / "uncompiled"), records(out / "killed"))
        if weights(out / "uncompiled") != weights(out / "killed"):
            wrong.append("the exported weights of the resumed run differ from those of the uninterrupted one")
        print("\n".join(table(runs, plan)))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "shape": asdict(shape),
        "target": shape.target(),
        "ranks": ranks,
        "seq_len": seq_len,
        "planned": plan,
        "runs": {name: {**asdict(watched), "printed": ""} for name, watched in runs.items()},
        "wrong": wrong,
    }
    (out / "whole_run.json").write_text(json.dumps(result, indent=2))
    for sentence in wrong:
        print(f"WRONG  {sentence}")
    if not wrong:
        most = max(max(watched.of_ranks.values()) for watched in runs.values() if watched.of_ranks)
        print("records and weights of the resumed run equal those of the uninterrupted one bit for bit")
        verdict = "at most" if most <= WITHIN * max(plan.values()) else "MORE THAN"
        print(f"largest measured memory of a rank: {verdict} {WITHIN:.2f} of the largest planned")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2:])
    else:
        main()
