"""Output of `drpruning mix`: tables of the recommended mixture, JSON, and the section of a recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console

from drpruning.formatting import printable
from drpruning.swarm import SearchStatus, Support, round_shares
from drpruning.tables import Cell, Row, Table
from drpruning.tables.terminal import print_table

if TYPE_CHECKING:
    from drpruning.swarm import Recommendation


def recipe_shares(found: Recommendation) -> dict[str, float]:
    """Return the recommended mixture as ``data.reference_ratio`` of a recipe."""
    mixture, low, high = (
        dict(zip(found.domains, each.tolist(), strict=True))
        for each in (found.mixture, found.arguments["lower"], found.arguments["upper"])
    )
    return round_shares(mixture, low, high)


def recipe_option(found: Recommendation) -> str:
    """Return the recommended mixture as the option ``--set`` for a shell."""
    import shlex

    import yaml

    shares = yaml.safe_dump(
        recipe_shares(found), default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return f"--set {shlex.quote(f'data.reference_ratio={shares.strip()}')}"


def verdict(found: Recommendation) -> str:
    """Return the verdict with the improvement, or with the origin of a mixture that the runs do not determine."""
    if found.support is Support.UNSUPPORTED:
        return f"{found.support}: the runs do not determine a mixture; this one is from the prior"
    low, high = found.improvement_band
    return f"{found.support}: {found.improvement:.3f} [{low:.3f}, {high:.3f}] better than the prior"


def recipe_section(found: Recommendation) -> str:
    """Return the section of a recipe with the recommended mixture as YAML; the verdict is a comment."""
    import yaml

    notes = [verdict(found), *found.reasons]
    section = yaml.safe_dump({"data": {"reference_ratio": recipe_shares(found)}}, sort_keys=False, allow_unicode=True)
    return "".join(f"# {note}\n" for note in notes) + section


def to_dict(found: Recommendation) -> dict[str, Any]:
    """Return the recommendation as plain data; numbers that are not defined are null."""

    def plain(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        "support": str(found.support),
        "reasons": list(found.reasons),
        "improvement": found.improvement,
        "improvement_band": [plain(end) for end in found.improvement_band],
        "gap": found.best.gap,
        "status": str(found.best.status),
        "domains": {
            domain: {
                "prior": found.prior[i],
                "share": found.mixture[i],
                "band": [plain(end) for end in found.band[:, i]],
            }
            for i, domain in enumerate(found.domains)
        },
        "targets": {
            target: {
                "status": str(found.fit.status[j]),
                "loss_at_prior": found.losses_at_prior[j],
                "loss": found.losses[j],
                "band": found.losses_band[:, j].tolist(),
                "rank_correlation": plain(found.fit.rank_correlation[j]),
                "error": plain(found.fit.error[j]),
                "explained": plain(found.fit.explained[j]),
            }
            for j, target in enumerate(found.targets)
        },
    }


def print_recommendation(found: Recommendation) -> None:
    """Print shares, predicted losses, the verdict with its reasons, and the setting of a recipe."""
    console = Console(highlight=False)
    print_table(console, mixture_table(found))
    console.print()
    print_table(console, target_table(found))
    support, _, rest = verdict(found).partition(":")
    console.print(f"\n[bold]{support}[/bold]:{rest}", markup=True)
    for reason in found.reasons:
        console.print(f"  {printable(reason)}", markup=False)
    if found.best.status is SearchStatus.INEXACT:
        console.print(f"  the search is exact to {found.best.gap:.4f} only", markup=False)
    console.print(recipe_option(found), markup=False, soft_wrap=True)


def mixture_table(found: Recommendation) -> Table:
    """Return a row per domain: share in the prior, in the mixture, and its 90% band."""
    rows = [
        Row.of(
            domain,
            Cell(f"{found.prior[i]:.3f}"),
            Cell(f"{found.mixture[i]:.3f}", best=True),
            Cell("-" if math.isnan(found.band[0, i]) else f"{found.band[0, i]:.3f} to {found.band[1, i]:.3f}"),
        )
        for i, domain in enumerate(found.domains)
    ]
    return Table(("domain", "prior", "mixture", "90% band"), rows, title="Shares")


def target_table(found: Recommendation) -> Table:
    """Return a row per target: predicted losses, and the cross-validation of its law."""
    rows = [
        Row.of(
            target,
            Cell(f"{found.losses_at_prior[j]:.3f}"),
            Cell(f"{found.losses[j]:.3f}", best=True),
            Cell(f"{found.losses_band[0, j]:.3f} to {found.losses_band[1, j]:.3f}"),
            Cell("-" if math.isnan(found.fit.rank_correlation[j]) else f"{found.fit.rank_correlation[j]:.2f}"),
            Cell(f"{found.fit.error[j]:.3f}"),
            Cell(str(found.fit.status[j])),
        )
        for j, target in enumerate(found.targets)
    ]
    columns = ("target", "prior", "mixture", "90% band", "rank", "error", "law")
    title = "Predicted losses; cross-validated rank correlation and error of the law"
    return Table(columns, rows, title=title, text_columns=("law",))
