"""What ``drpruning eval`` prints: one model's measures, or several models side by side, as tables or JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from drpruning.evaluation.model_losses import Difference, ModelLosses, difference
from drpruning.formatting import number, printable, signed
from drpruning.tables.terminal import NORMAL_95, new_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

IDS = {
    "own": "reads the text with its own tokenizer",
    "unchecked": "is taken to use the corpus's token ids: only one of them brings a tokenizer",
}

Comparable = Literal["loss", "bits_per_byte"]
TITLES: dict[Comparable, str] = {"loss": "Held-out loss, nats per token", "bits_per_byte": "Held-out bits per byte"}


def computation(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """The device and the type of weights and computation, as plain data."""
    return {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}


def print_computation(console: Console, device: torch.device, dtype: torch.dtype) -> None:
    """Prints the device and the type of weights and computation."""
    found = computation(device, dtype)
    console.print(f"weights and computation in {found['dtype']} on {found['device']}", style="dim")


def print_results(console: Console, results: Sequence[ModelLosses]) -> None:
    """Prints one table for one model, and for several one for each measure in which they compare."""
    for result in results:
        if result.ids in IDS:
            console.print(f"{printable(result.model.name)} {IDS[result.ids]}", markup=False)
    if len(results) == 1:
        console.print(_measures(results[0]))
        return
    measures: list[Comparable] = ["bits_per_byte"] if _knows_bytes(results) else []
    if _same_ids(results):
        measures.insert(0, "loss")
    for at, measure in enumerate(measures):
        console.print(("\n" if at else "") + TITLES[measure], style="bold")
        console.print(_side_by_side(results, measure))
    console.print("\nDifferences are to the first model, on the same documents, with 95% intervals over documents.")


def described(results: Sequence[ModelLosses]) -> dict[str, Any]:
    """The same as plain data; what is not known is null."""
    body: dict[str, Any] = {"models": [_model(result) for result in results]}
    if len(results) > 1:
        measures: list[Comparable] = ["loss", "bits_per_byte"] if _same_ids(results) else ["bits_per_byte"]
        body["differences"] = [
            {
                "model": other.model.name,
                "minus": results[0].model.name,
                **{measure: _differences(results[0], other, measure) for measure in measures},
            }
            for other in results[1:]
        ]
    return body


def _measures(result: ModelLosses) -> Table:
    table = new_table(["domain", "loss", "perplexity", "bits per byte", "documents", "tokens"])
    worst = result.worst("loss")[0]
    for name, losses in result.domains.items():
        table.add_row(
            printable(name),
            number(losses.loss),
            f"{losses.perplexity:.2f}",
            number(losses.bits_per_byte),
            f"{len(losses.nats):,}",
            f"{int(losses.tokens.sum()):,}",
            style="bold" if name == worst and len(result.domains) > 1 else "",
        )
    table.add_section()
    table.add_row(
        "average",
        number(result.average("loss")),
        f"{result.average('perplexity'):.2f}",
        number(result.average("bits_per_byte")),
    )
    name, loss = result.worst("loss")
    table.add_row(
        "worst",
        number(loss),
        f"{result.domains[name].perplexity:.2f}",
        number(result.domains[name].bits_per_byte),
        printable(name),
    )
    return table


def _side_by_side(results: Sequence[ModelLosses], measure: Comparable) -> Table:
    first, *others = results
    names = [printable(result.model.name) for result in results]
    table = new_table(["domain", names[0], *(title for name in names[1:] for title in (name, "difference"))])
    for domain, losses in first.domains.items():
        cells = [number(getattr(losses, measure))]
        for other in others:
            cells.append(number(getattr(other.domains[domain], measure)))
            cells.append(_with_interval(difference(losses, other.domains[domain], measure)))
        table.add_row(printable(domain), *cells)
    table.add_section()
    for title, value in (("average", _average), ("worst", _worst)):
        cells = [number(value(first, measure))]
        for other in others:
            cells.append(number(value(other, measure)))
            if title == "average":
                cells.append(_with_interval(_average_difference(first, other, measure)))
            else:
                _, largest = _largest_difference(first, other, measure)
                cells.append(_with_interval(largest))
        table.add_row(title, *cells)
    return table


def _average(result: ModelLosses, measure: Comparable) -> float:
    return result.average(measure)


def _worst(result: ModelLosses, measure: Comparable) -> float:
    return result.worst(measure)[1]


def _each(first: ModelLosses, other: ModelLosses, measure: Comparable) -> dict[str, Difference]:
    return {name: difference(losses, other.domains[name], measure) for name, losses in first.domains.items()}


def _average_difference(first: ModelLosses, other: ModelLosses, measure: Comparable) -> Difference:
    """Domains are independent and count alike, so the variances of their differences add."""
    each = _each(first, other, measure).values()
    return Difference(
        sum(item.value for item in each) / len(each), math.sqrt(sum(item.error**2 for item in each)) / len(each)
    )


def _largest_difference(first: ModelLosses, other: ModelLosses, measure: Comparable) -> tuple[str, Difference]:
    each = _each(first, other, measure)
    name = max(each, key=lambda domain: each[domain].value)
    return name, each[name]


def _differences(first: ModelLosses, other: ModelLosses, measure: Comparable) -> dict[str, Any]:
    name, largest = _largest_difference(first, other, measure)
    return {
        "domains": {domain: _plain(item) for domain, item in _each(first, other, measure).items()},
        "average": _plain(_average_difference(first, other, measure)),
        "worst": {"domain": name, **_plain(largest)},
    }


def _plain(item: Difference) -> dict[str, float | None]:
    return {"value": _finite(item.value), "standard_error": _finite(item.error)}


def _model(result: ModelLosses) -> dict[str, Any]:
    worst = result.worst("loss")
    return {
        "model": result.model.name,
        "path": result.model.path,
        "parameters": result.parameters,
        "ids": result.ids,
        "domains": {
            name: {
                "loss": losses.loss,
                "standard_error": _finite(losses.loss_error),
                "perplexity": _finite(losses.perplexity),
                "bits_per_byte": _finite(losses.bits_per_byte),
                "documents": len(losses.nats),
                "tokens": int(losses.tokens.sum()),
                "bytes": None if losses.sizes is None else int(losses.sizes.sum()),
            }
            for name, losses in result.domains.items()
        },
        "average": {
            "loss": result.average("loss"),
            "perplexity": _finite(result.average("perplexity")),
            "bits_per_byte": _finite(result.average("bits_per_byte")),
        },
        "worst": {"domain": worst[0], "loss": worst[1]},
    }


def _same_ids(results: Sequence[ModelLosses]) -> bool:
    return all(result.ids != "own" for result in results)


def _knows_bytes(results: Sequence[ModelLosses]) -> bool:
    return all(losses.sizes is not None for result in results for losses in result.domains.values())


def _with_interval(item: Difference) -> str:
    around = f" ± {NORMAL_95 * item.error:.3f}" if math.isfinite(item.error) else ""
    return signed(item.value) + around


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
