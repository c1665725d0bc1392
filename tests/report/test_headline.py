"""The headline: every number of the sentence is that of the records, and it admits what is worse or not known."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drpruning.records import Evaluated, Kept, ModelMeasured, Record, RunEnded, RunStarted, StepTaken
from drpruning.report.excess import excess_of
from drpruning.report.headline import headline_of
from drpruning.report.read.run import open_run
from tests.report.synthetic import BASE, DOMAINS, LEFT, TARGET, synthetic, write_run

PARTS = 16


def with_parts(records: list[Record], noise: float, seed: int = 0) -> list[Record]:
    """Add losses by part: the difference of two models varies by ``noise`` between parts, its mean is exact."""
    found = []
    for at, record in enumerate(records):
        if isinstance(record, ModelMeasured):
            generator = np.random.default_rng((seed, at))
            parts = {}
            for name, loss in record.losses.items():
                spread = generator.normal(size=PARTS) * (noise if record.model != "base" else 0.0)
                parts[name] = (loss + spread - spread.mean()).tolist()
            record = replace(record, part_losses=parts)  # noqa: PLW2901
        found.append(record)
    return found


def compared(folder: Path, own: list[Record], other: list[Record]) -> Path:
    write_run(folder, own)
    write_run(folder / "compare" / "constant", other)
    return folder


def test_the_sentence_has_size_worst_mean_and_cost_of_the_run_and_its_rival(run: Path) -> None:
    headline = headline_of(open_run(run))
    mean, rival = (f"{np.mean(LEFT[name]):.3f}" for name in ("drpruning", "constant"))
    assert headline.sentence == (
        "48% fewer parameters (1.84M → 947k), 0.340 nats above the unpruned model in the worst domain (licences; "
        f"constant mixture: 0.920 nats above), {mean} nats above it on average (constant mixture: {rival} nats "
        "above), for 819k tokens, 2 min 4 s and 10.8 TFLOP."
    )
    assert headline.rival == 0
    assert "the worst excess is 0.580 lower" in headline.notes[0]
    assert "no intervals" in headline.notes[1]


def test_a_run_that_is_worse_is_called_worse(tmp_path: Path) -> None:
    own = [replace(r, strategy="drpruning") if isinstance(r, RunStarted) else r for r in synthetic("constant")]
    other = [replace(r, strategy="constant") if isinstance(r, RunStarted) else r for r in synthetic("drpruning")]
    headline = headline_of(open_run(compared(tmp_path / "run", own, other)))
    assert "0.920 nats above the unpruned model in the worst domain" in headline.sentence
    assert "the worst excess is 0.580 higher" in headline.notes[0]


@pytest.mark.parametrize(("noise", "significant"), [(0.01, True), (2.0, False)])
def test_differences_within_their_interval_are_called_not_significant(
    tmp_path: Path, noise: float, significant: bool
) -> None:
    own, other = with_parts(synthetic(), noise), with_parts(synthetic("constant"), noise, seed=1)
    headline = headline_of(open_run(compared(tmp_path / "run", own, other)))
    assert bool(re.search(r"0\.580 lower \(±[\d.]+\)", headline.notes[0])) == significant
    assert bool(re.search(r"0\.580 lower \(±[\d.]+, not significant\)", headline.notes[0])) != significant
    assert ("Not significantly different from zero: the worst excess" in " ".join(headline.notes)) != significant


def test_intervals_are_paired_by_part(tmp_path: Path) -> None:
    """Noise that two models share leaves their difference; the interval of one domain is Student's by hand."""
    found = excess_of(open_run(write_run(tmp_path / "run", with_parts(synthetic(), 0.3))))
    assert found is not None
    values = found.parts["math"]
    half = 2.131450 * values.std(ddof=1) / math.sqrt(PARTS)  # t of 15 degrees
    assert found.domain("math").half_width == pytest.approx(half, rel=1e-5)
    assert found.minus(found).domain("math").half_width == 0
    shifted = replace(found, parts={name: parts + 1 for name, parts in found.parts.items()})
    assert found.minus(shifted).domain("math").half_width == pytest.approx(0, abs=1e-12)
    other_text = replace(found, tokens=dict.fromkeys(DOMAINS, 7))
    assert math.isnan(found.minus(other_text).domain("math").half_width)


@pytest.mark.parametrize(
    ("records", "sentence", "note"),
    [
        (synthetic(), "in the worst domain (licences)", "No other run is compared here"),
        (
            [r for r in synthetic() if isinstance(r, (RunStarted, Kept))]
            + [r for r in synthetic() if isinstance(r, ModelMeasured) and r.model != "recovered"],
            "Right after pruning, before recovery: 48% fewer",
            "",
        ),
        (synthetic()[:100], "At the last evaluation (prune step 80, validation rows)", ""),
        (synthetic()[:1], "", ""),
        (synthetic()[:-1], "0.340 nats above", ""),
        (
            [r for r in synthetic() if not (isinstance(r, ModelMeasured) and r.model == "base")],
            "No base was measured",
            "",
        ),
        (
            [replace(r, target_met=dict.fromkeys(TARGET, False)) if isinstance(r, Kept) else r for r in synthetic()],
            "",
            "missed the target in layers, hidden",
        ),
        (
            [r for r in synthetic() if not (isinstance(r, ModelMeasured) and r.model == "recovered")],
            "48% fewer parameters (1.84M → 947k), at the last evaluation (continue step 250, validation rows)",
            "",
        ),
        (
            [
                replace(r, skipped=True) if isinstance(r, StepTaken) and r.stage == "prune" and r.step == 3 else r
                for r in synthetic()
            ],
            "",
            "were skipped: their loss",
        ),
        (
            [
                replace(r, epochs={"licences": r.step / 10, "math": 4.0})
                if isinstance(r, Evaluated) and r.stage == "continue"
                else r
                for r in synthetic()
            ],
            "",
            "The stage continue read licences 25.0 times. Text that is read more than 4 times",
        ),
        (
            [replace(r, losses=BASE) if isinstance(r, ModelMeasured) else r for r in synthetic()],
            "level with the unpruned model",
            "",
        ),
    ],
)
def test_missing_measurements_and_missed_targets_are_stated(
    tmp_path: Path, records: list[Record], sentence: str, note: str
) -> None:
    headline = headline_of(open_run(write_run(tmp_path / "run", records)))
    assert sentence in headline.sentence
    assert note in " ".join(headline.notes)
    assert (headline.sentence == "") == (len(records) == 1)


def test_of_three_runs_the_best_is_named(run: Path) -> None:
    third = [replace(r, strategy="odm") if isinstance(r, RunStarted) else r for r in synthetic("constant")]
    better = {name: loss + 0.1 for name, loss in BASE.items()}
    third = [replace(r, losses=better) if isinstance(r, ModelMeasured) and r.model == "recovered" else r for r in third]
    write_run(run / "compare" / "odm", third)
    headline = headline_of(open_run(run))
    assert "constant mixture" in headline.sentence
    assert "Of 3 runs, odm has the lowest worst excess and the lowest mean." in headline.notes


def test_runs_on_other_corpora_are_not_rivals(tmp_path: Path) -> None:
    own, other = (
        [replace(r, environment={"corpus": corpus}) if isinstance(r, RunStarted) else r for r in synthetic(strategy)]
        for strategy, corpus in (("drpruning", "a"), ("constant", "b"))
    )
    headline = headline_of(open_run(compared(tmp_path / "run", own, other)))
    assert headline.rival is None
    assert "constant" not in headline.sentence
    assert any("different corpora" in note for note in headline.notes)
    assert any(isinstance(record, RunEnded) for record in own)
