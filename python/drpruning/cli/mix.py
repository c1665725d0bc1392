"""`drpruning mix`: find a mixture from a swarm of small runs, or propose the runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import (
    check_megatron,
    examples,
    json_option,
    parse_names,
    parse_numbers_by_domain,
    positive_amount,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drpruning.swarm import Recommendation
    from drpruning.tables.cells import Table

FORMS = ("effective-data", "log-linear", "linear")


@click.command(
    short_help="Find a mixture from many small runs.",
    epilog=examples("""
  drpruning mix swarm.csv
  drpruning mix mixtures.csv --losses losses.csv --prior ratio.yaml --kl 0.1
  drpruning mix swarm.csv --objective worst --reference-loss web=2.1,code=1.2 --max-share code=0.4
  drpruning mix swarm.csv --domain-tokens web=800B,code=90B --target-tokens 200B --megatron 'data/<domain>'
  drpruning mix --design 40 --prior web=0.8,code=0.2 --domain-tokens web=800B,code=90B --run-tokens 2B > design.csv"""),
)
@click.argument("swarm", required=False, type=click.Path(dir_okay=False))
@click.option("--losses", type=click.Path(dir_okay=False), help="CSV file of the losses, if SWARM has only the shares.")
@click.option("--targets", metavar="A,B", help="Losses to use.  [default: all]")
@click.option(
    "--prior",
    metavar="RATIO",
    help="Mixture to compare with: web=0.8,code=0.2, or a JSON or YAML file.  [default: the mean of the runs]",
)
@click.option(
    "--objective",
    type=click.Choice(["mean", "worst"]),
    default="mean",
    show_default=True,
    help="Minimise the weighted mean of the targets' losses, or the largest.",
)
@click.option(
    "--rho",
    type=click.FloatRange(min=0),
    help="Minimise the worst case in the chi-square ball of this radius around the target weights: 0 is the mean.",
)
@click.option("--target-weights", metavar="RATIO", help="Weight of each target.  [default: equal]")
@click.option("--reference-loss", metavar="LOSSES", help="Loss that each target's loss is compared with.  [default: 0]")
@click.option(
    "--kl",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Weight of the KL divergence from the prior, in the unit of the losses.",
)
@click.option("--min-share", metavar="SHARES", help="Least share: one number, or by domain.")
@click.option("--max-share", metavar="SHARES", help="Largest share: one number, or by domain.")
@click.option("--domain-tokens", metavar="TOKENS", help="Tokens that each domain has: web=800B,code=90B, or a file.")
@click.option(
    "--target-tokens", metavar="N", callback=positive_amount, help="Tokens of the run that the mixture is for."
)
@click.option(
    "--max-epochs",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="How often the text of a domain may be read, with --domain-tokens.",
)
@click.option("--form", type=click.Choice(FORMS), default="effective-data", show_default=True, help="Form of the law.")
@click.option(
    "--design", type=click.IntRange(min=2), metavar="N", help="Propose the mixtures of N small runs as CSV instead."
)
@click.option("--run-tokens", metavar="N", callback=positive_amount, help="With --design: tokens of a small run.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the resampling or of the proposal.",
)
@click.option(
    "--megatron", metavar="PATTERN", help="Print a --data-path for Megatron, with each domain in place of <domain>."
)
@json_option()
def mix(**options: Any) -> None:
    """Fit a law to the runs in SWARM and print the mixture that is best under it, or propose the runs.

    SWARM is a CSV file with a row per run: shares in columns mixture/<domain>, losses in columns loss/<target>. With
    --losses, SWARM has the shares and another file the losses, as RegMix and Olmix write them; rows are matched by the
    columns run, name and index.

    The verdict is `supported`, `uncertain` (with reasons) or `unsupported`. An unsupported mixture is the prior.
    """
    request = Request(**options)
    if request.megatron is not None:
        check_megatron(request.megatron, request.as_json)
    if request.design is not None:
        click.echo(request.design_csv(), nl=False)
        return
    found = request.recommendation()
    if request.megatron is not None:
        from drpruning.cli.render.advice import megatron_data_path

        click.echo(megatron_data_path(dict(zip(found.domains, found.mixture.tolist(), strict=True)), request.megatron))
    elif request.as_json:
        click.echo(json.dumps(to_dict(found), indent=2))
    else:
        _print(found)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command."""

    swarm: str | None
    losses: str | None
    targets: str | None
    prior: str | None
    objective: str
    rho: float | None
    target_weights: str | None
    reference_loss: str | None
    kl: float
    min_share: str | None
    max_share: str | None
    domain_tokens: str | None
    target_tokens: float | None
    max_epochs: float
    form: Any
    design: int | None
    run_tokens: float | None
    seed: int
    megatron: str | None
    as_json: bool

    def recommendation(self) -> Recommendation:
        """Read the swarm and return the recommended mixture.

        Raises:
            ConfigError: An option is missing or contradicts another.
            LossTableError, WeightError: The files or the numbers are not usable.
        """
        from drpruning.errors import ConfigError
        from drpruning.swarm import read_swarm, recommend

        if self.swarm is None:
            raise ConfigError(
                "SWARM is missing: a CSV file with a row per run", "`drpruning mix --design 32` proposes runs."
            )
        if self.rho is not None and self.objective == "worst":
            raise ConfigError(
                "--rho and --objective worst are both given", "Keep one of them: worst is an infinite rho"
            )
        swarm = read_swarm(self.swarm, self.losses)
        if (chosen := parse_names(self.targets)) is not None:
            swarm = swarm.select(chosen)
        rho = math.inf if self.objective == "worst" else self.rho or 0.0
        return recommend(
            swarm,
            prior=_numbers("--prior", self.prior),
            target_weights=_numbers("--target-weights", self.target_weights),
            reference_loss=_numbers("--reference-loss", self.reference_loss),
            rho=rho,
            kl=self.kl,
            min_share=_shares("--min-share", self.min_share, 0.0),
            max_share=self._largest_shares(swarm.domains),
            form=self.form,
            seed=self.seed,
        )

    def _largest_shares(self, domains: tuple[str, ...]) -> Mapping[str, float] | float:
        from drpruning.errors import ConfigError

        given = _shares("--max-share", self.max_share, 1.0)
        if self.domain_tokens is None:
            return given
        if self.target_tokens is None:
            raise ConfigError("--domain-tokens needs --target-tokens: the length of the run the mixture is for")
        tokens = _amounts("--domain-tokens", self.domain_tokens)
        if missing := [domain for domain in domains if domain not in tokens]:
            raise ConfigError(f"--domain-tokens has no number for domain {missing[0]!r}")
        least = {domain: given if isinstance(given, float) else given.get(domain, 1.0) for domain in domains}
        return {domain: min(least[domain], self.max_epochs * tokens[domain] / self.target_tokens) for domain in domains}

    def design_csv(self) -> str:
        """Return the proposed runs as CSV; what the small runs should read goes to stderr.

        Raises:
            ConfigError: The prior is missing.
            WeightError: The numbers are not usable.
        """
        from drpruning.errors import ConfigError
        from drpruning.swarm import propose

        prior = _numbers("--prior", self.prior)
        if self.design is None or prior is None:
            raise ConfigError(
                "--design needs --prior: the mixture to draw around", "For example --prior web=0.8,code=0.2"
            )
        design = propose(
            prior,
            self.design,
            domain_tokens=None if self.domain_tokens is None else _amounts("--domain-tokens", self.domain_tokens),
            run_tokens=self.run_tokens,
            target_tokens=self.target_tokens,
            max_epochs=self.max_epochs,
            seed=self.seed,
        )
        if design.subsample < 1:
            click.echo(
                f"Let the small runs read {design.subsample:.3g} of each domain's text: a share then means as many "
                "epochs as in the target run.",
                err=True,
            )
        rows = [",".join(["run", *(f"mixture/{domain}" for domain in design.domains)])]
        rows += [
            ",".join([str(number), *(f"{share:.6f}" for share in mixture)])
            for number, mixture in enumerate(design.mixtures, 1)
        ]
        return "\n".join(rows) + "\n"


def _numbers(option: str, text: str | None) -> dict[str, float] | None:
    return None if text is None else parse_numbers_by_domain(option, text)


def _shares(option: str, text: str | None, default: float) -> dict[str, float] | float:
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        return parse_numbers_by_domain(option, text)


def _amounts(option: str, text: str) -> dict[str, float]:
    """Parse numbers of tokens by domain, which may end in K, M, B or T."""
    from drpruning.errors import ConfigError
    from drpruning.formatting import amount_of

    if "=" not in text:
        return parse_numbers_by_domain(option, text)
    amounts: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        number = amount_of(value)
        if not name or not number or name in amounts:
            raise ConfigError(f"{option}: {item!r} is no NAME=TOKENS", f"For example {option} web=800B,code=90B")
        amounts[name] = number
    return amounts


def to_dict(found: Recommendation) -> dict[str, Any]:
    """Return the recommendation as plain data; numbers that are not defined are null."""

    def plain(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        "support": str(found.support),
        "reasons": list(found.reasons),
        "improvement": found.improvement,
        "improvement_band": list(found.improvement_band),
        "gap": found.best.gap,
        "status": str(found.best.status),
        "domains": {
            domain: {"prior": found.prior[i], "share": found.mixture[i], "band": found.band[:, i].tolist()}
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


def _print(found: Recommendation) -> None:
    from rich.console import Console

    from drpruning.formatting import printable
    from drpruning.swarm import SearchStatus
    from drpruning.tables.terminal import print_table

    console = Console(highlight=False)
    print_table(console, mixture_table(found))
    console.print()
    print_table(console, target_table(found))
    low, high = found.improvement_band
    console.print(
        f"\n[bold]{found.support}[/bold]: {found.improvement:.3f} [{low:.3f}, {high:.3f}] better than the prior",
        markup=True,
    )
    for reason in found.reasons:
        console.print(f"  {printable(reason)}", markup=False)
    if found.best.status is SearchStatus.INEXACT:
        console.print(f"  the search is exact to {found.best.gap:.4f} only", markup=False)


def mixture_table(found: Recommendation) -> Table:
    """Return a row per domain: share in the prior, in the mixture, and its 90% band."""
    from drpruning.tables.cells import Cell, Row, Table

    rows = [
        Row.of(
            domain,
            Cell(f"{found.prior[i]:.3f}"),
            Cell(f"{found.mixture[i]:.3f}", best=True),
            Cell(f"{found.band[0, i]:.3f} to {found.band[1, i]:.3f}"),
        )
        for i, domain in enumerate(found.domains)
    ]
    return Table(("domain", "prior", "mixture", "90% band"), rows, title="Shares")


def target_table(found: Recommendation) -> Table:
    """Return a row per target: predicted losses, and the cross-validation of its law."""
    from drpruning.tables.cells import Cell, Row, Table

    rows = [
        Row.of(
            target,
            Cell(f"{found.losses_at_prior[j]:.3f}"),
            Cell(f"{found.losses[j]:.3f}", best=True),
            Cell(f"{found.losses_band[0, j]:.3f} to {found.losses_band[1, j]:.3f}"),
            Cell(f"{found.fit.rank_correlation[j]:.2f}"),
            Cell(f"{found.fit.error[j]:.3f}"),
            Cell(str(found.fit.status[j])),
        )
        for j, target in enumerate(found.targets)
    ]
    columns = ("target", "prior", "mixture", "90% band", "rank", "error", "law")
    title = "Predicted losses; cross-validated rank correlation and error of the law"
    return Table(columns, rows, title=title, text_columns=("law",))
