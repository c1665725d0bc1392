"""All results as Markdown: a table for each kind of case, with the target next to each figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

GIB = 2**30
WARMUP = 0.2
"""Fraction of a prune stage over which the sparsity rises, as in the recipes."""


@dataclass(frozen=True)
class Figure:
    """A figure with a target.

    Attributes:
        title: Its name in the tables.
        form: ``share``, ``GiB``, ``ratio`` or ``number``.
        exact: Whether the target holds on any machine and at any size.
    """

    title: str
    form: str = "number"
    exact: bool = False

    def text(self, value: float) -> str:
        """Return ``value`` with its unit."""
        if self.form == "share":
            return f"{value:.1%}"
        if self.form == "GiB":
            return f"{value / GIB:.1f} GiB"
        return f"{value:.3f}" if self.form == "ratio" else f"{value:,.0f}"


FIGURES = {
    "utilisation": Figure("MFU", "share"),
    "reserved_bytes": Figure("reserved", "GiB"),
    "largest_peak_bytes": Figure("largest peak", "GiB"),
    "peak_over_plan": Figure("peak / plan", "ratio"),
    "plan_over_peak": Figure("plan / peak", "ratio"),
    "loader_wait_share": Figure("loader wait", "share"),
    "synchronisations_per_step": Figure("synchronisations in a step"),
    "checkpoint_share": Figure("longer by one checkpoint in 500 steps", "share"),
    "recompile_limit_hits": Figure("recompile limits hit", exact=True),
    "graph_breaks": Figure("graph breaks", exact=True),
    "stages_not_compiled": Figure("stages without a graph", exact=True),
    "differing_steps": Figure("steps that differ", exact=True),
    "differing_weights": Figure("weights that differ", exact=True),
    "failed_verdicts": Figure("verdicts failed"),
    "tokens_per_second": Figure("tokens/s"),
    "masks_step_ratio": Figure("step with all masks one / without masks", "ratio"),
    "skipping_speedup": Figure("step at the target, computed / skipped", "ratio"),
    "pruning_mean_tokens_per_second": Figure("mean tokens/s of a prune stage"),
}
DERIVED: dict[str, tuple[str, float] | None] = {
    "masks_step_ratio": ("at most", 1.02),
    "skipping_speedup": None,
    "pruning_mean_tokens_per_second": ("at least", 14_000),
}
"""Figures that follow from several cases together, with their targets."""


@dataclass(frozen=True)
class Check:
    """A figure against its target; ``met`` is None where the figure was not measured."""

    figure: str
    word: str
    bound: float
    value: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.word == "at least" else self.value <= self.bound

    def __str__(self) -> str:
        """Return the figure's name, value and target."""
        figure = FIGURES[self.figure]
        value = "not measured" if self.value is None else figure.text(self.value)
        return f"{figure.title} {value}, {self.word} {figure.text(self.bound)}"


def checks(result: dict[str, Any]) -> list[Check]:
    """Return the targets of a measured case."""
    return [Check(name, word, bound, result.get(name)) for name, (word, bound) in result["targets"].items()]


def derived(results: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the figures that follow from several cases together: None where one of them was not measured.

    The mean speed of a prune stage assumes that the step time falls linearly from all masks open to the target over
    :data:`WARMUP` of the stage, then stays constant.
    """
    pruning = [each for each in results if each["name"].startswith("prune ") and "step_seconds" in each]
    steps = {each["name"].partition(", ")[2]: each["step_seconds"] for each in pruning}
    opened, bare = steps.get("masks open"), steps.get("without masks")
    skipped, computed = steps.get("masks at the target, skipped"), steps.get("masks at the target, computed")
    mean = None
    if opened and skipped:
        mean = pruning[0]["tokens_per_step"] / (WARMUP * (opened + skipped) / 2 + (1 - WARMUP) * skipped)
    return {
        "masks_step_ratio": opened / bare if opened and bare else None,
        "skipping_speedup": computed / skipped if skipped and computed else None,
        "pruning_mean_tokens_per_second": mean,
    }


def table(body: dict[str, Any]) -> str:
    """Return the file of results as Markdown."""
    machine, results = body["machine"], body["cases"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "cuda", "transformers", "drpruning"))
    lines = [f"{machine['card']}, {versions}, Python {machine['python']}, {body['started']}", ""]
    if machine["tiny"]:  # small models on a CPU: the targets of a GPU do not apply
        results = [
            {**each, "targets": {k: v for k, v in each["targets"].items() if FIGURES[k].exact}} for each in results
        ]
    found = [(each["name"], check) for each in results if each["outcome"] == "measured" for check in checks(each)]
    found += [("pruning", check) for check in _derived_checks(body) if not machine["tiny"]]
    missed = [(name, check) for name, check in found if check.met is False]
    known = sum(check.met is not None for _, check in found)
    lines.append(f"{known - len(missed)} of {known} targets met{':' * bool(missed)}")
    lines += ["", *(f"- missed: {name}: {check}" for name, check in missed)] if missed else []
    done = [each for each in results if each["outcome"] == "measured"]
    steps = [each for each in done if each["kind"] == "steps"]
    lines += _section("Steps", STEP_COLUMNS, map(_step_row, steps))
    lines += _section(
        "Pruning, from several cases",
        ("figure", "measured", "target"),
        (_derived_row(name, body["derived"].get(name)) for name in DERIVED) if "derived" in body else (),
    )
    phases = (row for each in done if "phases" in each for row in _phase_rows(each))
    lines += _section("Phases of a prune stage", PHASE_COLUMNS, phases)
    runs = [each for each in done if each["kind"] in ("compiled run", "stopped run", "miniature")]
    lines += _section("Whole runs", ("case", "found", "targets"), (_run_row(each) for each in runs))
    optimizers = [each for each in done if each["kind"] == "optimizer"]
    lines += _section("Optimizer", OPTIMIZER_COLUMNS, map(_optimizer_row, optimizers))
    loaders = [each for each in done if each["kind"] == "loader"]
    lines += _section(
        "Loader",
        ("case", "tokens/s", "ms a batch", "targets"),
        (
            [each["name"], f"{each['tokens_per_second']:,.0f}", f"{1000 * each['batch_seconds']:.1f}", _met(each)]
            for each in loaders
        ),
    )
    failed = [each for each in results if each["outcome"] != "measured"]
    lines += _section("Not measured", ("case", "outcome"), ([each["name"], _outcome(each)] for each in failed))
    return "\n".join(lines) + "\n"


def _section(title: str, columns: Iterable[str], rows: Iterable[list[str]]) -> list[str]:
    rows, columns = list(rows), list(columns)
    if not rows:
        return []
    body = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return ["", f"## {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *body]


STEP_COLUMNS = (
    "case",
    "tokens/s",
    "MFU",
    "peak GiB allocated (planned)",
    "reserved",
    "loader wait",
    "synchronisations (all waits)",
    "products, attention",
    "targets",
)


def _step_row(each: dict[str, Any]) -> list[str]:
    allocated, planned = each["allocated_bytes"] or each["memory_bytes"], each["planned_bytes"]
    synchronised, waits = each.get("synchronisations_per_step"), each.get("waits_per_step")
    return [
        each["name"],
        f"{each['tokens_per_second']:,.0f}",
        f"{each['utilisation']:.1%}",
        f"{_gib(allocated)}{'' if planned is None else f' ({_gib(planned)})'}",
        _gib(each["reserved_bytes"]),
        f"{each['loader_wait_share']:.2%}",
        f"{_number(synchronised)} ({_number(waits)})",
        f"{each['product_share']:.0%}, {each['attention_share']:.0%}" if "product_share" in each else "",
        _met(each),
    ]


PHASE_COLUMNS = ("case", "phase", "seconds", "GiB before", "peak GiB", "planned", "GiB after")


def _phase_rows(each: dict[str, Any]) -> Iterable[list[str]]:
    for name, phase in each["phases"].items():
        memory = [_gib(phase[key]) for key in ("before_bytes", "peak_bytes", "planned_bytes", "after_bytes")]
        yield [each["name"], name, f"{phase['seconds']:.2f}", *memory]


def _run_row(each: dict[str, Any]) -> list[str]:
    if each["kind"] == "compiled run":
        stages = each["graphs_by_stage"].items()
        found = ", ".join(f"{graphs} graphs in {stage}" for stage, graphs in stages)
        found += f"; recompile limits hit: {each['recompile_limit_hits']}, graph breaks: {each['graph_breaks']}"
    elif each["kind"] == "stopped run":
        found = (
            f"resumed: {each['differing_steps']} of {each['steps']} steps and {each['differing_weights']:,} weights "
            f"differ; repeated: {each['repeated_differing_steps']} and {each['repeated_differing_weights']:,}"
        )
    else:
        found = f"{each['steps_per_second']:.1f} steps/s; " + "; ".join(
            f"{name}: {detail}" for name, detail in each["verdicts"].items()
        )
    return [each["name"], found, _met(each)]


OPTIMIZER_COLUMNS = ("case", "ms", "ms at 7B", "bytes a number", "GB/s of them", "share of the copy rate")


def _optimizer_row(each: dict[str, Any]) -> list[str]:
    return [
        each["name"],
        f"{1000 * each['step_seconds']:.1f}",
        f"{1000 * each['step_seconds_at_7b']:,.0f}",
        f"{each['bytes_per_number']:.2f}",
        f"{each['bytes_per_second'] / 1e9:,.0f}",
        f"{each['share_of_copy_rate']:.0%}",
    ]


def _derived_checks(body: dict[str, Any]) -> list[Check]:
    values = body.get("derived", {})
    return [Check(name, *target, values.get(name)) for name, target in DERIVED.items() if target is not None]


def _derived_row(name: str, value: float | None) -> list[str]:
    figure, target = FIGURES[name], DERIVED[name]
    bound = "" if target is None else f"{target[0]} {figure.text(target[1])}"
    return [figure.title, "" if value is None else figure.text(value), bound]


def _met(each: dict[str, Any]) -> str:
    found = [check for check in checks(each) if check.met is not None]
    missed = [str(check) for check in found if not check.met]
    return "; ".join(f"missed: {text}" for text in missed) if missed else f"{len(found)} met" if found else ""


def _outcome(each: dict[str, Any]) -> str:
    tries = f", tries: {each['tries']}" if "tries" in each else ""
    return f"{each['outcome']}{tries}{': ' + each['error'] if 'error' in each else ''}".replace("\n", " ")


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / GIB:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
