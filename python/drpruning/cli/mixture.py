"""How `drpruning weights` shows its answer: a table, JSON-able data, or a blend for Megatron."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.losses import amount, console

if TYPE_CHECKING:
    from drpruning.advice import Advice, Tally
    from drpruning.reweight import Update


def print_tally(tally: Tally, advice: Advice) -> None:
    """What the reader should know about the rows, on stderr."""
    before = f", {tally.known} counted before" if tally.known else ""
    click.echo(f"{tally.new} new evaluation{'' if tally.new == 1 else 's'}{before}", err=True)
    first_time = tally.new == len(advice.counted)
    if first_time and advice.reference_loss is None and _answer(advice).excess_loss:
        click.echo("no --reference-loss: excess is over losses that the strategy found itself", err=True)
    if tally.changed:
        click.echo(
            f"{tally.changed} of those have other losses now; the first stand. To count anew, remove the state.",
            err=True,
        )
    if tally.late:
        click.echo(
            f"{tally.late} not counted: they lie before the last one counted. To count anew, remove the state.",
            err=True,
        )
    last = advice.counted[-1]
    if advice.final_tokens is not None and last.tokens > advice.final_tokens:
        end = amount(advice.final_tokens, advice.counts_tokens)
        click.echo(f"the last evaluation lies beyond the end of training, {end}", err=True)


def _answer(advice: Advice) -> Update:
    assert advice.update is not None, "a table has at least one row, so there is an answer"
    return advice.update


def print_mixture(advice: Advice) -> None:
    """Prints losses and mixture by domain, and what decided."""
    from rich.text import Text

    from drpruning.cli.tables import new_table
    from drpruning.report.run import shown as printable
    from drpruning.report.words import number, signed

    update, last = _answer(advice), advice.counted[-1]
    place = amount(last.tokens, advice.counts_tokens, advice.final_tokens)
    columns = {
        "reference\nloss": update.reference_loss,
        "excess": update.excess_loss,
        "predicted\nend": update.predicted_loss,
    }
    shown = {title: values for title, values in columns.items() if values}
    ratios = {"started\nwith": advice.reference_ratio, "reference\nratio": update.reference_ratio}
    if update.reference_ratio == advice.reference_ratio:  # it has not moved
        del ratios["reference\nratio"]
    table = new_table(["domain", "loss", *shown, *ratios, "weight\nfrom now on"], text=["domain"])
    for domain, loss in zip(advice.domains, last.losses, strict=True):
        cells = [number(math.nan if loss is None else loss)]
        for title, values in shown.items():
            write = signed if title == "excess" else number
            cells.append(write((values or {}).get(domain, math.nan)))
        shares = [*(ratio[domain] for ratio in ratios.values()), update.weights[domain]]
        table.add_row(Text(printable(domain)), *cells, *(f"{share:.2%}" for share in shares))
    out = console()
    out.print(f"{advice.strategy} after {place}, losses in nats per token", style="bold")
    out.print(table)
    distance = "" if update.divergence is None else f", divergence {update.divergence:.3f} from the reference ratio"
    out.print(f"{update.status}{distance}", style="dim")


def described(advice: Advice, tally: Tally) -> dict[str, Any]:
    """The answer, and the mixtures before it, as JSON-able data."""
    from dataclasses import asdict

    update, last = _answer(advice), advice.counted[-1]
    return {
        "strategy": advice.strategy,
        "settings": advice.settings,
        "unit": "tokens" if advice.counts_tokens else "steps",
        "step": last.step,
        "tokens": last.tokens,
        "final_tokens": advice.final_tokens,
        "learning_rates": advice.learning_rates,
        "losses": dict(zip(advice.domains, last.losses, strict=True)),
        **asdict(update),
        "evaluations": asdict(tally),
        "history": [
            {"tokens": row.tokens, "weights": dict(zip(advice.domains, row.weights, strict=True)), "status": row.status}
            for row in advice.counted
        ],
    }


def megatron_blend(advice: Advice, pattern: str) -> str:
    """The mixture as Megatron's blend: weight and path prefix in turn."""
    import shlex

    weights = _answer(advice).weights
    pairs = (f"{weights[name]:.6f} {shlex.quote(pattern.replace('<domain>', name))}" for name in advice.domains)
    return f"--data-path {' '.join(pairs)}"
