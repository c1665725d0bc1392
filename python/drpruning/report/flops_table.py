"""Where the compute of a run went: floating point operations by stage and purpose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from drpruning.flops import FlopCounts
from drpruning.formatting import NONE, flops_in_words, printable
from drpruning.records import Record, StageEnded, flops_of_stages
from drpruning.report.read.run import records_of
from drpruning.tables import Row, Table

EVALUATION = "evaluation"
"""The part that is not charged: the last column."""
NOTE = (
    "Floating point operations of products, by the formula of the MFU; recomputed activations do not count. "
    "Charged: all but evaluations; the base is the start of every method, so pretrain is in no sum."
)


def flops_table(records: Iterable[Record]) -> Table | None:
    """Tabulate the operations of the stages that have ended, by purpose; None before the first end.

    Args:
        records: Records of a run, at least those of the ends of its stages.
    """
    stages = {each.stage: FlopCounts.of(each.flops) for each in records_of(records, StageEnded) if each.flops}
    if not stages:
        return None
    total = flops_of_stages(each for each in records if isinstance(each, StageEnded))
    parts = [
        name
        for name in asdict(total)
        if name == "training" or (name != EVALUATION and any(getattr(each, name) for each in stages.values()))
    ]

    def cells(counts: FlopCounts) -> list[str]:
        shown = [getattr(counts, name) for name in parts]
        texts = [flops_in_words(count) if count else NONE for count in shown]
        return [*texts, flops_in_words(counts.charged), flops_in_words(counts.evaluation)]

    rows = [Row.of(printable(name), *cells(counts)) for name, counts in stages.items()]
    if stages.keys() - {"pretrain"}:
        rows.append(Row.of("all but pretrain" if "pretrain" in stages else "all", *cells(total), kind="summary"))
    return Table(["stage", *parts, "charged", EVALUATION], rows, title="Where the compute went", note=NOTE)
