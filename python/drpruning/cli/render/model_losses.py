"""Output of ``drpruning eval loss``: the losses of one model, or of several side by side, as tables or JSON."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from drpruning.evaluation.model_losses import ModelDifference, ModelLosses, model_difference
from drpruning.formatting import number, printable, signed
from drpruning.intervals import TOO_NARROW, Difference, GroupSupport, few_groups
from drpruning.tables import Cell, Row, Table
from drpruning.tables.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from rich.console import Console

IDS_NOTES = {
    "own": "reads the text with its own tokenizer",
    "unchecked": "is assumed to use the corpus's token ids: only one of the two has a tokenizer",
}

Comparable = Literal["loss", "bits_per_byte"]
TITLES: dict[Comparable, str] = {"loss": "Held-out loss, nats per token", "bits_per_byte": "Held-out bits per byte"}


def computation_to_dict(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Return the device and the type of weights and computation, for JSON."""
    return {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}


def print_computation(console: Console, device: torch.device, dtype: torch.dtype) -> None:
    """Print the device and the type of weights and computation."""
    names = computation_to_dict(device, dtype)
    console.print(f"weights and computation in {names['dtype']} on {names['device']}", style="dim")


def print_losses(console: Console, results: Sequence[ModelLosses]) -> None:
    """Print one table for one model; for several, one table for each measure that compares between them."""
    for result in results:
        if result.ids in IDS_NOTES:
            console.print(f"{printable(result.model.name)} {IDS_NOTES[result.ids]}", markup=False)
    if len(results) == 1:
        print_table(console, measures_table(results[0]))
        return
    measures: list[Comparable] = ["bits_per_byte"] if _have_bytes(results) else []
    if _have_same_ids(results):
        measures.insert(0, "loss")
    for at, measure in enumerate(measures):
        if at:
            console.print()
        print_table(console, side_by_side_table(results, measure))
    console.print("\nDifferences are to the first model, on the same documents, with 95% intervals over documents.")
    reasons = _too_narrow(results[0], model_difference(results[0], results[1], measures[-1])) if measures else []
    if reasons:
        console.print(TOO_NARROW.format("; ".join(reasons)), markup=False)


def _too_narrow(first: ModelLosses, found: ModelDifference) -> list[str]:
    """Return which intervals may be too narrow, and why."""
    domains = list(first.domains)
    reasons = [
        few_groups(
            [replace(each, support=GroupSupport(at, each.support.groups, each.support.largest))], domains, mean=False
        )
        for at, each in enumerate(found.domains.values())
        if each.support is not None
    ]
    average = few_groups([found.average], domains, mean=True)
    return [*filter(None, reasons), *([f"average ({average})"] if average else [])]


def measures_table(result: ModelLosses) -> Table:
    """Tabulate all measures of one model by domain."""
    worst, loss = result.worst("loss")
    rows = [
        Row.of(
            name,
            number(losses.loss),
            f"{losses.perplexity:.2f}",
            number(losses.bits_per_byte),
            f"{len(losses.nats):,}",
            f"{int(losses.tokens.sum()):,}",
            kind="highlight" if name == worst and len(result.domains) > 1 else "plain",
        )
        for name, losses in result.domains.items()
    ]
    average = [number(result.average("loss")), f"{result.average('perplexity'):.2f}"]
    rows.append(Row.of("average", *average, number(result.average("bits_per_byte")), "", "", kind="summary"))
    losses = result.domains[worst]
    values = [number(loss), f"{losses.perplexity:.2f}", number(losses.bits_per_byte)]
    rows.append(Row.of("worst", *values, worst, "", kind="summary"))
    return Table(["domain", "loss", "perplexity", "bits per byte", "documents", "tokens"], rows)


def side_by_side_table(results: Sequence[ModelLosses], measure: Comparable) -> Table:
    """Tabulate one measure of several models, each with its difference to the first model."""
    first, *others = results
    names = [printable(result.model.name) for result in results]

    def row(title: str, values: Sequence[float], found: Sequence[Difference], *, summary: bool = False) -> Row:
        cells = [number(values[0])]
        for value, difference in zip(values[1:], found, strict=True):
            cells += [number(value), half_width_cell(difference).full_text]
        return Row.of(title, *cells, kind="summary" if summary else "plain")

    differences = [model_difference(first, other, measure) for other in others]
    rows = [
        row(
            domain,
            [float(getattr(result.domains[domain], measure)) for result in results],
            [found.domains[domain] for found in differences],
        )
        for domain in first.domains
    ]
    averages = [found.average for found in differences]
    rows.append(row("average", [result.average(measure) for result in results], averages, summary=True))
    largest = [found.largest[1] for found in differences]
    rows.append(row("worst", [result.worst(measure)[1] for result in results], largest, summary=True))
    columns = ["domain", names[0], *(title for name in names[1:] for title in (name, "difference"))]
    return Table(columns, rows, title=TITLES[measure])


def half_width_cell(difference: Difference) -> Cell:
    """Return the cell of a difference, with half the width of its interval if that is known."""
    half = difference.half_width
    return Cell.of(difference.value, signed, interval=f"± {half:.3f}" if math.isfinite(half) else "")


def losses_to_dict(results: Sequence[ModelLosses]) -> dict[str, Any]:
    """Return losses and differences as JSON-able data; unknown values are null."""
    body: dict[str, Any] = {"models": [_model_to_dict(result) for result in results]}
    if len(results) > 1:
        measures: list[Comparable] = ["loss", "bits_per_byte"] if _have_same_ids(results) else ["bits_per_byte"]
        body["differences"] = [
            {
                "model": other.model.name,
                "minus": results[0].model.name,
                **{measure: _differences_to_dict(model_difference(results[0], other, measure)) for measure in measures},
            }
            for other in results[1:]
        ]
    return body


def _differences_to_dict(found: ModelDifference) -> dict[str, Any]:
    name, largest = found.largest
    return {
        "domains": {domain: _difference_to_dict(item) for domain, item in found.domains.items()},
        "average": _difference_to_dict(found.average),
        "worst": {"domain": name, **_difference_to_dict(largest)},
    }


def _difference_to_dict(item: Difference) -> dict[str, float | None]:
    return {
        "value": _or_null(item.value),
        "standard_error": _or_null(item.standard_error),
        "low": _or_null(item.low),
        "high": _or_null(item.high),
    }


def _model_to_dict(result: ModelLosses) -> dict[str, Any]:
    worst = result.worst("loss")
    return {
        "model": result.model.name,
        "path": result.model.path,
        "parameters": result.parameters,
        "ids": result.ids,
        "domains": {
            name: {
                "loss": losses.loss,
                "standard_error": _or_null(losses.standard_error),
                "perplexity": _or_null(losses.perplexity),
                "bits_per_byte": _or_null(losses.bits_per_byte),
                "documents": len(losses.nats),
                "groups": losses.num_groups,
                "tokens": int(losses.tokens.sum()),
                "bytes": None if losses.sizes is None else int(losses.sizes.sum()),
            }
            for name, losses in result.domains.items()
        },
        "average": {
            "loss": result.average("loss"),
            "perplexity": _or_null(result.average("perplexity")),
            "bits_per_byte": _or_null(result.average("bits_per_byte")),
        },
        "worst": {"domain": worst[0], "loss": worst[1]},
    }


def _have_same_ids(results: Sequence[ModelLosses]) -> bool:
    return all(result.ids != "own" for result in results)


def _have_bytes(results: Sequence[ModelLosses]) -> bool:
    return all(losses.sizes is not None for result in results for losses in result.domains.values())


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
