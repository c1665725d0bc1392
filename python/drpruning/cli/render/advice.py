"""Output of `drpruning advise`: a table, JSON-able data, or a blend for Megatron."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.loss_options import format_amount, results_console
from drpruning.formatting import printable_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drpruning.advice import Advice, UpdateSummary
    from drpruning.mixture import Update

LITTLE = 0.5
"""A domain whose weight is below this fraction of its initial share gets a warning."""
WITHOUT_REFERENCE = {"constant", "schedule", "ado"}
"""Strategies that report excess losses without using them."""


def print_tally(tally: UpdateSummary, advice: Advice) -> None:
    """Print what happened to the evaluations, and warnings, on stderr."""
    before = f", {tally.known} counted before" if tally.known else ""
    click.echo(f"{tally.new} new evaluation{'' if tally.new == 1 else 's'}{before}", err=True)
    first_time = tally.new == len(advice.counted)
    if first_time and advice.reference_loss is None and _last_update(advice).excess_loss:
        click.echo("no --reference-loss: excess is over losses that the strategy estimated", err=True)
    if tally.changed:
        click.echo(
            f"{tally.changed} of these have other losses now; the first ones count. To count again, remove the state.",
            err=True,
        )
    if tally.late:
        click.echo(
            f"{tally.late} not counted: they are before the last one counted. To count again, remove the state.",
            err=True,
        )
    last = advice.counted[-1]
    if advice.final_tokens is not None and last.tokens > advice.final_tokens:
        end = format_amount(advice.final_tokens, advice.counts_tokens)
        click.echo(f"the last evaluation is beyond the end of training, {end}", err=True)
    for warning in starvation_warnings(advice):
        click.echo(f"warning: {printable_lines(warning)}", err=True)


def starvation_warnings(advice: Advice) -> list[str]:
    """Return warnings about domains that lost half of their share for a reason that the user should check.

    Without reference losses a slow domain looks like a finished one: both have little excess. With reference losses, a
    prediction may have replaced the reference loss, or the reference ratio may have moved, until a domain that is still
    above its given reference loss has hardly any weight. A single step inside the ball is no reason for a warning.
    """
    if advice.strategy in WITHOUT_REFERENCE:
        return []
    update, given = _last_update(advice), advice.reference_loss or {}
    losses = dict(zip(advice.domains, advice.counted[-1].losses, strict=True))
    fallen = {
        domain: f"{domain} {share:.1%} -> {update.weights[domain]:.1%}"
        for domain, share in advice.reference_ratio.items()
        if update.weights[domain] < LITTLE * share
    }
    warnings = []
    if unknown := [domain for domain in fallen if domain not in given]:
        example = ",".join(f"{domain}=N" for domain in (advice.domains if not given else unknown))
        warnings.append(
            f"{', '.join(fallen[domain] for domain in unknown)}: no reference loss was given, and without one a domain "
            "that falls slowly shows little excess.\n"
            f"Give --reference-loss {example}: losses of the unpruned model, or "
            "of finished models at the target's size (drpruning fit SIZES --at-params N)."
        )
    for domain, change in fallen.items():
        loss, share = losses[domain], advice.reference_ratio[domain]
        if loss is None or loss <= given.get(domain, math.inf):
            continue
        used, moved = (update.reference_loss or {}).get(domain), update.reference_ratio[domain]
        reasons = {}
        if used is not None and used != given[domain]:
            reasons["predictions=lower"] = f"a prediction, {used:.4g}, replaced it"
        if moved < LITTLE * share:
            reasons["ratio_bound=2"] = f"the reference ratio moved to {moved:.1%}"
        if reasons:
            warnings.append(
                f"{change}, with a loss {loss - given[domain]:.3f} above the reference loss given, "
                f"{given[domain]:g}: {'; '.join(reasons.values())}.\nTo limit that, give "
                f"{' or '.join(f'--set {setting}' for setting in (*reasons, f'min_share={LITTLE * share:.2g}'))}."
            )
    return warnings


def _last_update(advice: Advice) -> Update:
    assert advice.update is not None, "a table has at least one row, so there is an update"
    return advice.update


def print_mixture(advice: Advice) -> None:
    """Print losses and mixture by domain, and the status of the strategy."""
    from drpruning.formatting import number, signed
    from drpruning.tables import Row, Table
    from drpruning.tables.terminal import print_table

    update, last = _last_update(advice), advice.counted[-1]
    place = format_amount(last.tokens, advice.counts_tokens, advice.final_tokens)
    columns = {
        "reference\nloss": update.reference_loss,
        "excess": update.excess_loss,
        "predicted\nend": update.predicted_loss,
    }
    shown = {title: values for title, values in columns.items() if values}
    ratios = {"initial\nratio": advice.reference_ratio, "reference\nratio": update.reference_ratio}
    if update.reference_ratio == advice.reference_ratio:  # it has not moved
        del ratios["reference\nratio"]
    rows = []
    for domain, loss in zip(advice.domains, last.losses, strict=True):
        cells = [number(math.nan if loss is None else loss)]
        for title, values in shown.items():
            write = signed if title == "excess" else number
            cells.append(write((values or {}).get(domain, math.nan)))
        shares = [*(ratio[domain] for ratio in ratios.values()), update.weights[domain]]
        rows.append(Row.of(domain, *cells, *(f"{share:.2%}" for share in shares)))
    out = results_console()
    out.print(f"{advice.strategy} after {place}, losses in nats per token", style="bold")
    print_table(out, Table(["domain", "loss", *shown, *ratios, "next\nweight"], rows, text_columns=("domain",)))
    distance = "" if update.divergence is None else f", divergence {update.divergence:.3f} from the reference ratio"
    out.print(f"{update.status}{distance}", style="dim")


def advice_to_dict(advice: Advice, tally: UpdateSummary) -> dict[str, Any]:
    """Return the mixture, and the mixtures before it, as JSON-able data."""
    from dataclasses import asdict

    update, last = _last_update(advice), advice.counted[-1]
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
        "warnings": starvation_warnings(advice),
        "evaluations": asdict(tally),
        "history": [
            {"tokens": row.tokens, "weights": dict(zip(advice.domains, row.weights, strict=True)), "status": row.status}
            for row in advice.counted
        ],
    }


def megatron_data_path(mixture: Mapping[str, float], pattern: str) -> str:
    """Return a mixture as Megatron's ``--data-path``: weight and path prefix in turn.

    Weights are at least a millionth: Megatron accepts no weight of zero.
    """
    import shlex

    from drpruning.swarm import round_shares

    shares = round_shares(mixture).items()
    pairs = (f"{share:.6f} {shlex.quote(pattern.replace('<domain>', name))}" for name, share in shares)
    return f"--data-path {' '.join(pairs)}"


def megatron_blend(advice: Advice, pattern: str) -> str:
    """Return the mixture of the last update as Megatron's ``--data-path``."""
    weights = _last_update(advice).weights
    return megatron_data_path({name: weights[name] for name in advice.domains}, pattern)
