"""Search of a target shape by short runs: successive halving of candidates that are cut by importance and trained.

    OUT/base/              importance of the large model's units, which all candidates are cut by
    OUT/candidates/NAME/   a run folder of each candidate; its pruned model is the cut, its stage continue the training

All candidates have the learning-rate schedule of the whole search. After the first rung (S steps) the better half goes
on to the second (2 S), and so on until one is left (Jamieson and Talwalkar 2016, algorithm 1). A candidate that stays
resumes from its checkpoint, so no step is trained twice. Losses are measured on validation rows. An interrupted search
resumes.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from drpruning.config import ProtectConfig, PruneConfig, RunConfig, TargetConfig
from drpruning.errors import ConfigError, SolverError
from drpruning.export.repair import repair
from drpruning.files import write_bytes, write_text
from drpruning.flops import FlopCounts
from drpruning.hf.models import load
from drpruning.planning.recipe import plan_recipe, source_shape
from drpruning.prepare.recipe_corpus import open_corpus
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.architectures import experts_per_token, head_dim_of
from drpruning.pruning.target import EXPERT_MULTIPLE
from drpruning.recipes import parse_recipe, with_shares
from drpruning.records import Evaluated, ModelMeasured, Record, StepTaken, read_records
from drpruning.run_folder import RunFolder
from drpruning.train.calibration import (
    calibration_batches,
    combined_importance,
    importance_by_domain,
    measure_of,
)
from drpruning.train.context import TrainContext
from drpruning.train.device import choose_device
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.loop import Interrupted
from drpruning.train.model_runtime import prepare
from drpruning.train.preflight import check
from drpruning.train.run import build_context, create_or_open, exclusive, train
from drpruning.train.stages import get_base, masked_model, release_memory

LATENCY = "latency.json"
SCORES = "importance.safetensors"
WARM_TOKENS = 3
"""Decoding steps before those that are timed."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search.

    Attributes:
        config: The recipe. Its sections ``continue`` and ``mixture`` train the candidates; ``prune`` has importance
            (Taylor for ``gate_init: uniform``), calibration and repair.
        shapes: The candidates, by the names of :class:`drpruning.pruning.Target`.
        folder: ``OUT``.
        steps: Steps of the first rung; each further rung has twice as many as the one before.
        rungs: Number of rungs.
        by: What decides: the mean of the domains' excess losses over the large model, or the largest.
        decode_tokens: Tokens that are decoded to measure the latency; 0: it is not measured.
    """

    config: RunConfig
    shapes: Sequence[Mapping[str, int]]
    folder: Path
    steps: int
    rungs: int = 3
    by: Literal["mean", "worst"] = "worst"
    decode_tokens: int = 64

    @property
    def total_steps(self) -> int:
        """Steps of a candidate that stays until the last rung."""
        return self.steps << (self.rungs - 1)

    def run_folder(self, shape: Mapping[str, int]) -> RunFolder:
        """Return the run folder of a candidate."""
        name = "-".join(f"{size}" for size in shape.values())
        return RunFolder(self.folder / "candidates" / name)

    def base_recipe(self) -> RunConfig:
        """Return the recipe for the large model and its importance, with the target of the recipe."""
        return self.recipe(self.config.pruning.target.model_dump())

    def recipe(self, shape: Mapping[str, int]) -> RunConfig:
        """Return the recipe of a candidate.

        The mixture moves in the stage continue alone, since no prune stage is trained. Of test text one row is read.
        """
        body = self.config.to_dict()
        gate_init = body["prune"]["gate_init"]
        body["prune"] |= {"target": dict(shape), "gate_init": "taylor" if gate_init == "uniform" else gate_init}
        every = max(n for n in range(1, self.steps + 1) if self.steps % n == 0 and n <= body["continue"]["eval_every"])
        body["continue"] |= {"steps": self.total_steps, "eval_every": every, "charged_flops": None}
        body["mixture"]["stages"] = ["continue"]
        body["training"] |= {"final_eval_tokens": self.config.data.seq_len, "keep_checkpoints": 1}
        return parse_recipe(body | {"task_eval": {}, "also_run": []})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How far a candidate came.

    Attributes:
        shape: By the names of :class:`drpruning.pruning.Target`.
        parameters: Parameters of the pruned model.
        steps: Steps after which it was last measured.
        losses: Validation losses by domain, nats per token.
        excess: The same minus those of the large model.
        charged_flops: Of its repair and training, without the importance that all candidates share.
        decode_seconds: Measured time of a token; None without a measurement.
        failure: Why its training failed; empty if it did not.
    """

    shape: dict[str, int]
    parameters: int
    steps: int
    losses: dict[str, float]
    excess: dict[str, float]
    charged_flops: float
    decode_seconds: float | None = None
    failure: str = ""

    @property
    def mean_loss(self) -> float:
        """Mean of the domains' losses; infinite after a failure."""
        return statistics.fmean(self.losses.values()) if self.losses else inf

    def score(self, by: Literal["mean", "worst"]) -> float:
        """Return the mean or the largest excess loss; infinite after a failure."""
        if not self.excess:
            return inf
        return statistics.fmean(self.excess.values()) if by == "mean" else max(self.excess.values())


@dataclass(frozen=True)
class SearchResult:
    """The candidates, best first: by the last rung they reached, then by score."""

    trials: list[Trial]
    importance_flops: float

    @property
    def charged_flops(self) -> float:
        """FLOPs of the whole search: of the importance, and of all candidates' repair and training."""
        return self.importance_flops + sum(trial.charged_flops for trial in self.trials)


def search_by_training(
    search: Search, *, on_trial: Callable[[int, Trial], None] = lambda rung, trial: None, stop: Callable[[], bool]
) -> SearchResult:
    """Train the candidates and halve their number after each rung, or resume an interrupted search.

    The result is a function of the recipe and the search, the latencies apart.

    Args:
        search: The search.
        on_trial: Called with the number of the rung, from 1, and a candidate that has been trained in it.
        stop: Returns whether to stop.

    Raises:
        ConfigError: The recipe does not prune, or a candidate does not fit the model.
        StateError: The folder has a search of another recipe.
        Interrupted: ``stop`` returned True; everything is saved.
    """
    _ = search.config.pruning
    if not search.shapes:
        raise ConfigError("no shape to search; expected at least one")
    search = _cut_candidates(search, stop)
    alive = [dict(shape) for shape in search.shapes]
    trials: dict[str, tuple[int, Trial]] = {}
    for rung in range(search.rungs):
        found = []
        for shape in alive:
            found.append(_train(search, shape, search.steps << rung, stop))
            on_trial(rung + 1, found[-1])
        found.sort(key=lambda trial: trial.score(search.by))
        trials |= {search.run_folder(trial.shape).name: (rung, trial) for trial in found}
        alive = [trial.shape for trial in found[: ceil(len(found) / 2)] if not trial.failure]
        if len(alive) < 2:
            break
    ranked = sorted(trials.values(), key=lambda entry: (-entry[0], entry[1].score(search.by)))
    scored = search.recipe(_smallest(source_shape(search.config)).sizes())
    return SearchResult([trial for _, trial in ranked], _cut_flops(scored).importance)


def _cut_flops(recipe: RunConfig) -> FlopCounts:
    """Return the FLOPs of the stage prune; those of importance and repair are a candidate's cut."""
    return next(stage.flops for stage in plan_recipe(recipe).stages if stage.name == "prune")


def decode_latency(model: Any, *, prompt: int, tokens: int) -> float:
    """Measure the time of a decoded token: the median over ``tokens`` steps, in seconds.

    One sequence, greedy, in ``generate`` of transformers with its cache.

    Args:
        model: A causal language model of transformers, on its device, in evaluation mode.
        prompt: Tokens in the cache before the first step.
        tokens: Number of steps.
    """
    clock = _TokenClock()
    ids = torch.arange(prompt, device=model.device)[None] % model.config.vocab_size
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=WARM_TOKENS + tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        streamer=clock,
    )
    return statistics.median(after - before for before, after in pairwise(clock.times[WARM_TOKENS:]))


class _TokenClock:
    """A streamer of transformers that stores the time of the prompt and of each token, which is then on the CPU."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


# ---- the cuts


def _cut_candidates(search: Search, stop: Callable[[], bool]) -> Search:
    """Write the pruned model of each candidate; return the search with shares and number of threads as recorded."""
    corpus, ranks = open_corpus(search.config), Ranks()
    search = replace(search, config=with_shares(search.config, corpus.tokens()))
    folder = RunFolder(search.folder / "base")
    checked = check(search.base_recipe(), corpus, folder, ranks)
    config = create_or_open(folder, checked, resume=True)
    search = replace(search, config=search.config.with_threads(config.training.threads))
    missing = []
    for shape in search.shapes:
        candidate = replace(checked, config=search.recipe(shape))
        check(candidate.config, corpus, search.run_folder(shape), ranks)
        create_or_open(search.run_folder(shape), candidate, resume=True)
        if not search.run_folder(shape).pruned.is_dir():
            missing.append(shape)
    if not missing:
        return search
    with (
        exclusive(folder, ranks),
        build_context(replace(checked, config=config), folder, stop=stop, ranks=ranks) as context,
    ):
        base = get_base(context).source
        scores = _scores(context, base)
        for shape in missing:
            _cut(replace(context, config=search.recipe(shape)), base, scores, search.run_folder(shape).pruned)
            release_memory()
            if stop():
                raise Interrupted
    return search


def _scores(context: TrainContext, base: str) -> dict[str, dict[str, Tensor]]:
    """Return the importance of the large model's units by domain and kind, measured once for all candidates."""
    file = context.folder.path / SCORES
    if not file.is_file():
        settings = context.config.pruning
        every = TargetConfig(**_smallest(context.base_config).sizes())  # units of every kind have gates
        settings = settings.model_copy(update={"target": every, "protect": ProtectConfig()})
        masked, measure = _masked(context, base, settings), measure_of(settings)
        assert measure is not None
        found = importance_by_domain(context, masked, measure)
        named = {
            f"{name}/{kind}": score.detach().cpu().clone()
            for name, each in found.items()
            for kind, score in each.items()
        }
        write_bytes(file, save(named))
    scores: dict[str, dict[str, Tensor]] = {}
    for key, score in load_file(file).items():
        name, _, kind = key.rpartition("/")
        scores.setdefault(name, {})[kind] = score
    return scores


def _cut(context: TrainContext, base: str, scores: Mapping[str, dict[str, Tensor]], folder: Path) -> None:
    """Write the model that is cut to the target of the context's recipe, repaired if the recipe repairs."""
    settings = context.config.pruning
    masked = _masked(context, base, settings)
    of_gates = {name: {kind: each[kind] for kind in masked.gates} for name, each in scores.items()}
    combined = combined_importance(context, masked, of_gates)
    masked.init_from_importance(combined)

    def repaired(masked: MaskedModel, pruned: Any) -> None:
        if settings.repair is not None:
            with masked.unmasked():
                batches = calibration_batches(context, context.config.calibration_shares)
                repair(masked.model, pruned, masked.kept_units(), batches, ridge=settings.repair)

    masked.export(folder, tokenizer=context.tokenizer, scores=combined, adjust=repaired)


def _masked(context: TrainContext, base: str, settings: PruneConfig) -> MaskedModel:
    """Return the large model under gates that importance alone orders, with the recipe's kernels."""
    settings = settings.model_copy(
        update={"gates": "hard_concrete", "mask_values": "hard", "log_alpha_init_noise": 0.0}
    )
    masked: MaskedModel = context.load_model(base, wrap=partial(masked_model, settings))
    prepare(masked, context.config.training, context.config.data, context.corpus.end_token)
    return masked.eval()


def _smallest(config: Any) -> Target:
    """Return a shape that keeps one block, one key/value head and fewer of all other units than the large model.

    Of a mixture of experts it keeps as many experts as a token is routed to, and widths that experts can have.
    """
    whole, experts = Target.of(config).sizes(), experts_per_token(config)
    group, multiple = whole["heads"] // whole["kv_heads"], 1 if experts is None else EXPERT_MULTIPLE
    hidden = min(group * head_dim_of(config), (whole["hidden"] - 1) // group * group)
    return Target(
        layers=1,
        hidden=max(hidden - hidden % multiple, multiple),
        heads=group,
        kv_heads=1,
        intermediate=multiple,
        experts=experts,
    )


# ---- the training


@dataclass
class _StopAtStep:
    """Stop a run after the evaluation of a step of the stage continue; a sink of its records."""

    step: int
    stop: Callable[[], bool]
    reached: bool = False

    def write(self, record: Record) -> None:
        if isinstance(record, Evaluated) and record.stage == "continue" and record.step >= self.step:
            self.reached = True

    def __call__(self) -> bool:
        return self.reached or self.stop()


def _train(search: Search, shape: dict[str, int], steps: int, stop: Callable[[], bool]) -> Trial:
    """Train a candidate up to a step, unless its records have the evaluation there."""
    folder, failure = search.run_folder(shape), ""
    if _evaluation(folder, steps) is None:
        until = _StopAtStep(steps, stop)
        whole = steps == search.total_steps  # the run then ends by itself, with an exported model
        try:
            train(search.recipe(shape), folder.path, resume=True, watchers=[until], stop=stop if whole else until)
        except Interrupted:
            if whole or not until.reached:
                raise
        except SolverError as error:  # it diverges; the other candidates may not
            failure = error.message
    records = list(read_records(folder.metrics))
    base = next(each for each in records if isinstance(each, ModelMeasured) and each.model == "base")
    evaluated = None if failure else _evaluation(folder, steps)
    losses = {} if evaluated is None else evaluated.losses
    assert base.evaluation_losses is not None
    taken = [
        each for each in records if isinstance(each, StepTaken) and each.stage == "continue" and each.step <= steps
    ]
    return Trial(
        shape=shape,
        parameters=next(
            each.parameters for each in records if isinstance(each, ModelMeasured) and each.model == "pruned"
        ),
        steps=steps,
        losses=losses,
        excess={domain: loss - base.evaluation_losses[domain] for domain, loss in losses.items()},
        charged_flops=_cut_flops(search.recipe(shape)).repair + (taken[-1].charged_flops or 0.0 if taken else 0.0),
        decode_seconds=_latency(search, folder) if search.decode_tokens else None,
        failure=failure,
    )


def _evaluation(folder: RunFolder, step: int) -> Evaluated | None:
    """Return the evaluation of a run after a step of its stage continue; None if there is none."""
    if not folder.metrics.is_file():
        return None
    found = (each for each in read_records(folder.metrics) if isinstance(each, Evaluated) and each.stage == "continue")
    return next((each for each in found if each.step == step), None)


def _latency(search: Search, folder: RunFolder) -> float:
    """Return the latency of a candidate, measured once: with half a row in the cache, at most half a row of tokens."""
    half = max(WARM_TOKENS + 1, search.config.data.seq_len // 2)
    conditions = {"prompt": half - WARM_TOKENS, "tokens": min(search.decode_tokens, half)}  # within a row
    file = folder.path / LATENCY
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if {name: stored.get(name) for name in conditions} == conditions:
            return float(stored["seconds"])
    device = choose_device(search.config.training.device)
    narrow = device.type == "cuda" and search.config.training.dtype == "bfloat16"
    model = load(folder.pruned).to(device=device, dtype=torch.bfloat16 if narrow else torch.float32).eval()
    seconds = decode_latency(model, **conditions)
    write_text(file, json.dumps({**conditions, "device": device.type, "seconds": seconds}) + "\n")
    return seconds
