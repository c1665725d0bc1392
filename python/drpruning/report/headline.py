"""The headline of a run: one sentence with its result and its cost, and the sentences that qualify it.

Page, terminal and JSON have the same sentences. All numbers are those of the tables: held-out losses on the test rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from drpruning.formatting import NONE, count, number, percent, printable, signed
from drpruning.intervals import Difference
from drpruning.mixture.bounds import MAX_EPOCHS
from drpruning.records import Kept, ModelMeasured
from drpruning.report.excess import RunExcess, excess_of, excesses, same_corpus
from drpruning.report.method_table import methods_of, over_seeds
from drpruning.report.read.run import Run, base_of_curves, last, measured
from drpruning.report.stage_costs import stage_costs, total_cost

OTHER_CORPORA = "These runs were measured on different corpora: their losses do not compare."


@dataclass(frozen=True)
class Phrase:
    """A piece of a sentence; ``strong`` for the numbers that a reader looks for."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Headline:
    """The result of a run in words.

    Attributes:
        phrases: The sentence; empty if nothing has been measured.
        notes: Sentences that qualify it: differences to the rival, intervals, targets that were missed.
        rival: Index in ``run.others`` of the run in the sentence; None without one.
    """

    phrases: tuple[Phrase, ...] = ()
    notes: tuple[str, ...] = ()
    rival: int | None = None

    @property
    def sentence(self) -> str:
        """The sentence as plain text."""
        return "".join(phrase.text for phrase in self.phrases)


def headline_of(run: Run) -> Headline:
    """Describe the result of a run, or as much of it as is measured."""
    base, own = measured(run.records, "base"), excess_of(run)
    model = measured(run.records, "recovered") or measured(run.records, "pruned")
    if own is None or model is None:
        return Headline(_capitalized(_so_far(run)) if base else _without_base(model), tuple(_shortfalls(run)))
    rival, other = rival_of(run)
    done = own.model == "recovered"
    latest = () if done or "continue" not in run.series.evaluations else _so_far(run)
    if latest:
        return Headline((*_size(base, model), *latest), tuple(_shortfalls(run)))
    phrases = [
        Phrase("" if done else "Right after pruning, before recovery: "),
        *_size(base, model),
        *_excess(own, other),
        *_cost(run),
    ]
    notes = [_no_rival(run) if done else ""] if other is None else [difference_sentence(own, other)]
    notes += [_over_seeds(run, rival), *_best_of(run)]
    notes.append(_about_intervals(own))
    return Headline(tuple(phrases), tuple(filter(None, [*notes, *_shortfalls(run)])), rival)


def rival_of(run: Run) -> tuple[int | None, RunExcess | None]:
    """Return the compared run of the headline: a constant mixture if there is one, of the same seed if possible."""
    found = [(at, each, excess_of(each, run.records)) for at, each in enumerate(run.others)]
    known = [
        (_is_moving(each), _seed(each) != _seed(run), excess.worst.value, at, excess)
        for at, each, excess in found
        if excess is not None and excess.model == "recovered" and same_corpus(run, each)
    ]
    if not known:
        return None, None
    *_, at, excess = min(known, key=lambda each: each[:4])
    return at, excess


def _is_moving(run: Run) -> bool:
    return run.started is None or run.started.strategy != "constant"


def _seed(run: Run) -> int | None:
    return run.started.seed if run.started else None


def difference_sentence(own: RunExcess, other: RunExcess) -> str:
    """Write the differences of two runs, what is worse as plainly as what is better, with intervals where known."""
    both = own.minus(other)
    whole = len(both.excess) == len(own.excess) == len(other.excess)
    parts = [
        f"{what} {_lower(difference)}"
        for what, difference in (
            ("the worst excess is", own.worst_minus(other)),
            *((("the plain mean", both.mean), ("the ratio-weighted mean", both.ratio_weighted)) if whole else ()),
        )
        if math.isfinite(difference.value)
    ]
    if not parts:
        return ""
    return f"With {printable(own.label)} instead of {printable(other.label)}, {_join_words(parts)}."


def _lower(difference: Difference) -> str:
    half = difference.half_width
    verdict = "" if difference.excludes_zero or not math.isfinite(half) else ", not significant"
    interval = f" (±{number(half)}{verdict})" if math.isfinite(half) else ""
    return f"{number(abs(difference.value))} {'lower' if difference.value <= 0 else 'higher'}{interval}"


def _size(base: ModelMeasured | None, model: ModelMeasured) -> list[Phrase]:
    if base is None or base.parameters == model.parameters or base.parameters <= 0:
        return [Phrase(f"The model of {count(model.parameters)} parameters, trained further, is ")]
    change = 1 - model.parameters / base.parameters
    word = f"{percent(abs(change))} {'fewer' if change > 0 else 'more'} parameters"
    return [Phrase(word, strong=True), Phrase(f" ({count(base.parameters)} → {count(model.parameters)}), ")]


def _excess(own: RunExcess, other: RunExcess | None) -> list[Phrase]:
    """Write the worst excess and the mean excess, and those of the rival in brackets."""
    domain, base = own.worst_domain, "the unpruned model" if own.pruned else "the model at the start"
    worst, mean = printable(domain), ""
    if other is not None:
        where = "" if other.worst_domain == domain else f" in {printable(other.worst_domain)}"
        name = "constant mixture" if other.label == "constant" else printable(other.label)
        worst += f"; {name}: {_excess_in_words(other.worst.value)}{where}"
        mean = f" ({name}: {_excess_in_words(other.mean.value)})"
    even = "even " if own.worst.value < 0 else ""
    return [
        Phrase(_excess_in_words(own.worst.value), strong=True),
        Phrase(f" {base} {even}in the worst domain ({worst}), "),
        Phrase(_excess_in_words(own.mean.value), strong=True),
        Phrase(f" it on average{mean}"),
    ]


def _excess_in_words(value: float) -> str:
    """Write an excess in words.

    >>> _excess_in_words(0.25), _excess_in_words(-0.25), _excess_in_words(0.0001)
    ('0.250 nats above', '0.250 nats below', 'level with')
    """
    if not math.isfinite(value):
        return NONE
    if signed(value) == "0.000":
        return "level with"
    return f"{number(abs(value))} nats {'above' if value > 0 else 'below'}"


def _cost(run: Run) -> list[Phrase]:
    """Write tokens, time and FLOPs of the stages after the base."""
    words = total_cost([cost for cost in stage_costs(run) if cost.name != "pretrain"]).in_words
    return [Phrase(", for "), Phrase(_join_words(words), strong=True), Phrase(".")] if words else [Phrase(".")]


def _over_seeds(run: Run, rival: int | None) -> str:
    started = None if rival is None else run.others[rival].started
    return over_seeds(run, started.strategy) if started else ""


def _no_rival(run: Run) -> str:
    if not run.others:
        return "No other run is compared here, so the effect of the mixture is not known."
    if not all(same_corpus(run, other) for other in run.others):
        return OTHER_CORPORA
    return "The compared runs have no finished model yet."


def _best_of(run: Run) -> list[str]:
    """Name the run with the lowest worst excess among three or more."""
    found = [each for each in excesses(run) if each.model == "recovered"]
    if len(found) < 3 or len(methods_of(run).by_name) < 3:  # seeds of two methods have the sentence over seeds
        return []
    best = min(found, key=lambda each: each.worst.value)
    mean = min(found, key=lambda each: each.mean.value)
    names = (
        f"{printable(best.label)} has the lowest worst excess and the lowest mean"
        if best is mean
        else f"{printable(best.label)} has the lowest worst excess, {printable(mean.label)} the lowest mean"
    )
    return [f"Of {len(found)} runs, {names}."]


def _about_intervals(own: RunExcess) -> str:
    if not math.isfinite(own.worst.half_width):
        return "This run recorded no intervals, so small differences may be chance."
    level = " and ".join(
        f"the {what} excess ({signed(value.value)} ±{number(value.half_width)})"
        for what, value in (("worst", own.worst), ("mean", own.mean))
        if not value.excludes_zero
    )
    text = f"Not significantly different from zero: {level}. " if level else ""
    return f"{text}± is a 95% interval over parts of the test text; the chance of training (seeds) is not in it."


def _so_far(run: Run) -> tuple[Phrase, ...]:
    """Describe the last evaluation of a run without a finished model, on validation rows as the base's curve."""
    base = base_of_curves(run.records)
    stages = [stage.name for stage in run.stages if stage.name != "pretrain" and stage.name in run.series.evaluations]
    if not stages:
        return ()
    bins = run.series.evaluations[stages[-1]]
    losses = {name: bins.mean(("losses", name)) for name in base if ("losses", name) in bins.names}
    excess = {name: float(values[-1]) - base[name] for name, values in losses.items() if values.size}
    if not excess or not all(map(math.isfinite, excess.values())):
        return ()
    worst = max(excess, key=excess.__getitem__)
    mean = sum(excess.values()) / len(excess)
    return (
        Phrase(f"at the last evaluation ({printable(stages[-1])} step {bins.last:,}, validation rows) the model is "),
        Phrase(_excess_in_words(excess[worst]), strong=True),
        Phrase(f" the base in the worst domain ({printable(worst)}) and {_excess_in_words(mean)} it on average."),
    )


def _capitalized(phrases: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
    return tuple(
        phrase if at else Phrase(phrase.text[:1].upper() + phrase.text[1:]) for at, phrase in enumerate(phrases)
    )


def _without_base(model: ModelMeasured | None) -> tuple[Phrase, ...]:
    losses = {name: loss for name, loss in (model.losses if model else {}).items() if math.isfinite(loss)}
    if model is None or not losses:
        return ()
    worst = max(losses, key=losses.__getitem__)
    return (
        Phrase(f"{count(model.parameters)} parameters: "),
        Phrase(f"mean loss {number(sum(losses.values()) / len(losses))}", strong=True),
        Phrase(f" nats per token, highest in {printable(worst)} ({number(losses[worst])})."),
        Phrase(" No base was measured, so there is no excess."),
    )


def _shortfalls(run: Run) -> Iterable[str]:
    """Describe what the reader of a result must know: targets that masks missed, repeated text, skipped steps."""
    kept = last(run.records, Kept)
    missed = [printable(kind) for kind, reached in (kept.target_met if kept else {}).items() if not reached]
    if missed:
        yield (
            f"At the end of the prune stage the masks had missed the target in {_join_words(missed)}; the extracted "
            "model has exactly the target's shape."
        )
    yield from _repeated_text(run)
    if run.series.skipped:
        yield f"{run.series.skipped:,} steps were skipped: their loss or gradient was not finite."


def _repeated_text(run: Run) -> Iterable[str]:
    """Name the domains that a stage read more than :data:`MAX_EPOCHS` times."""
    for stage in run.stages:
        bins = run.series.evaluations.get(stage.name)
        if bins is None or stage.name == "pretrain":
            continue
        epochs = {
            name: float(bins.high(("epochs", name))[-1]) for name in run.domains if ("epochs", name) in bins.names
        }
        repeated = [f"{printable(name)} {times:.1f} times" for name, times in epochs.items() if times > MAX_EPOCHS]
        if repeated:
            yield (
                f"The stage {printable(stage.name)} read {_join_words(repeated)}. Text that is read more than "
                f"{MAX_EPOCHS} times is worth less than new text, and can raise the held-out loss: "
                "mixture.max_epochs sets a limit."
            )


def _join_words(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
