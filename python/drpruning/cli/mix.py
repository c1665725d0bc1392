"""`drpruning mix`: find a mixture from a swarm of small runs, or propose the runs."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from drpruning.cli.options import (
    check_megatron,
    examples,
    figure_path,
    json_option,
    parse_names,
    parse_numbers_by_domain,
    positive_amount,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drpruning.comparison.results import Results
    from drpruning.config import RunConfig
    from drpruning.swarm import Recommendation, Swarm

FORMS = ("effective-data", "log-linear", "linear")

OF_RUNS = (
    "swarm", "losses", "targets", "objective", "rho", "target_weights", "reference_loss", "kl", "form", "megatron",
    "as_yaml", "as_json", "plot",
)  # fmt: skip
"""Parameters that need runs; --design proposes them."""
OF_DESIGN = ("methods_file", "run_tokens")
"""Parameters that need --design."""


@click.command(
    short_help="Find a mixture from many small runs.",
    epilog=examples("""
  drpruning mix swarm.csv
  drpruning mix mixtures.csv --losses losses.csv --prior ratio.yaml --kl 0.1
  drpruning mix swarm.csv --objective worst --reference-loss web=2.1,code=1.2 --max-share code=0.4
  drpruning mix swarm.csv --domain-tokens web=800B,code=90B --target-tokens 200B --megatron 'data/<domain>'
  drpruning mix --design 40 --prior web=0.8,code=0.2 --domain-tokens web=800B,code=90B --run-tokens 2B > design.csv
  drpruning mix --design 40 --recipe small.yaml --methods-file design.yaml    # then train them:
  drpruning compare small.yaml --methods design.yaml --seeds 1 --out runs/design
  drpruning mix runs/design --recipe small.yaml --reference-loss base --rho 0.1 --plot trade.png --yaml"""),
)
@click.argument("swarm", required=False, type=click.Path())
@click.option("--losses", type=click.Path(dir_okay=False), help="CSV file of the losses, if SWARM has only the shares.")
@click.option(
    "--recipe",
    metavar="FILE_OR_NAME",
    help="Take the prior, the tokens of the domains and the tokens of a run from a recipe and its corpus.",
)
@click.option("--targets", metavar="A,B", help="Losses to use.  [default: all]")
@click.option(
    "--prior",
    metavar="RATIO",
    help="Mixture to compare with: web=0.8,code=0.2, a JSON or YAML file, or with the tokens of the domains a static "
    "mixture, such as natural.  [default: that of the recipe or the comparison, else the mean of the runs]",
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
@click.option(
    "--reference-loss",
    metavar="LOSSES",
    help="Loss that each target's loss is compared with; with a comparison also base: those of the unpruned model.  "
    "[default: 0]",
)
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
@click.option(
    "--methods-file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --design: write the mixtures as methods for `drpruning compare` instead of CSV.",
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
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the mixture in the form of a recipe.")
@click.option(
    "--plot",
    metavar="PATH",
    callback=figure_path,
    help="Plot the predicted trade between weighted mean and worst target, and the runs, to a .png, .svg or .pdf file.",
)
@json_option()
def mix(**options: Any) -> None:
    """Fit a law to the runs in SWARM and print the mixture that is best under it, or propose the runs.

    SWARM is a CSV file with a row per run: shares in columns mixture/<domain>, losses in columns loss/<target>. With
    --losses, SWARM has the shares and another file the losses, as RegMix and Olmix write them; rows are matched by the
    columns run, name and index. Or SWARM is the folder of `drpruning compare`, or its results.json: each method is a
    run, with the mixture that its runs drew, averaged over tokens and seeds.

    The verdict is `supported`, `uncertain` (with reasons) or `unsupported`. An unsupported mixture is the prior, or the
    nearest mixture within the bounds.
    """
    context = click.get_current_context()
    given = {
        parameter.name: "SWARM" if isinstance(parameter, click.Argument) else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    }
    request = Request(given=given, **options)
    if request.megatron is not None:
        check_megatron(request.megatron, request.as_json)
    request.check_options()
    if request.design is not None:
        request.propose()
        return
    swarm, found = request.recommendation()
    if request.plot is not None:
        from drpruning.report.figures.mixture_trade import draw_trade
        from drpruning.swarm import trade

        title = f"Predicted trade from {len(swarm)} runs: {found.support}"
        draw_trade(request.plot, trade(swarm, found), excess=request.reference_loss is not None, title=title)
    from drpruning.cli.render.mix import print_recommendation, recipe_section, recipe_shares, to_dict

    if request.megatron is not None:
        from drpruning.cli.render.advice import megatron_data_path

        click.echo(megatron_data_path(recipe_shares(found), request.megatron))
    elif request.as_json:
        click.echo(json.dumps(to_dict(found), indent=2))
    elif request.as_yaml:
        click.echo(recipe_section(found), nl=False)
    else:
        print_recommendation(found)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command; ``given`` are the names of those that are not defaults, as on the command line."""

    given: Mapping[str, str]
    swarm: str | None
    losses: str | None
    recipe: str | None
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
    methods_file: Path | None
    run_tokens: float | None
    seed: int
    megatron: str | None
    as_yaml: bool
    plot: Path | None
    as_json: bool

    def check_options(self) -> None:
        """Check that every option has an effect, and that those of the output do not contradict each other.

        Raises:
            ConfigError: They do, or one has none.
        """
        from drpruning.errors import ConfigError

        forms = {"--json": self.as_json, "--yaml": self.as_yaml, "--megatron": self.megatron is not None}
        chosen = [option for option, is_chosen in forms.items() if is_chosen]
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} are both given", "Keep one of them.")
        if self.design is None and (idle := self._given(OF_DESIGN)):
            raise ConfigError(f"{idle} needs --design: the number of mixtures to propose", "For example --design 32")
        if self.design is not None and (idle := self._given(OF_RUNS)):
            raise ConfigError(f"{idle} has no effect with --design, which proposes the runs", "Leave one of them out.")
        self._check_objective()
        if self.domain_tokens is not None or self.recipe is not None:
            return
        if idle := self._given(("max_epochs",)):
            raise ConfigError(
                f"{idle} needs --domain-tokens: the tokens that each domain has",
                "For example --domain-tokens web=800B,code=90B",
            )
        if self.target_tokens is not None and self.run_tokens is None:
            also = ", or --run-tokens" if self.design is not None else ""
            raise ConfigError(
                f"--target-tokens needs --domain-tokens: the tokens that each domain has{also}",
                "For example --domain-tokens web=800B,code=90B",
            )
        if self.run_tokens is not None and self.target_tokens is None:
            raise ConfigError(
                "--run-tokens needs --domain-tokens: the tokens that each domain has, or --target-tokens",
                "For example --domain-tokens web=800B,code=90B",
            )

    def _check_objective(self) -> None:
        """Check that reference losses and weights change the mixture, or the axes of the plot."""
        from drpruning.errors import ConfigError

        if self.plot is not None:
            return
        if self.reference_loss is not None and self.objective == "mean" and not self.rho:
            raise ConfigError(
                "--reference-loss has no effect on a mean of losses",
                "Add --objective worst or --rho 0.1, or leave it out.",
            )
        if self.target_weights is not None and (self.objective == "worst" or self.rho == math.inf):
            raise ConfigError(
                "--target-weights has no effect on the worst target", "Give --rho 10 in its place, or leave it out."
            )

    def _given(self, names: tuple[str, ...]) -> str | None:
        """Return the first of these parameters that is not a default, as on the command line."""
        return next((self.given[name] for name in names if name in self.given), None)

    @cached_property
    def _config(self) -> RunConfig | None:
        """The recipe with shares."""
        if self.recipe is None:
            return None
        from drpruning.prepare.recipe_corpus import with_recorded_shares
        from drpruning.recipes import load_recipe

        return with_recorded_shares(load_recipe(self.recipe))

    @cached_property
    def _domain_tokens(self) -> dict[str, float] | None:
        if self.domain_tokens is not None:
            return _amounts("--domain-tokens", self.domain_tokens)
        if self._config is None:
            return None
        from drpruning.prepare.recipe_corpus import recorded_tokens

        tokens = recorded_tokens(self._config)
        return {domain: float(tokens[domain]) for domain in self._config.domains if domain in tokens}

    @cached_property
    def _recipe_tokens(self) -> float | None:
        config = self._config
        return None if config is None else config.tokens(*(name for name in config.stages if name != "pretrain"))

    @cached_property
    def _prior(self) -> dict[str, float] | None:
        """The mixture to compare with, or to draw around."""
        if self.prior is None:
            return None if self._config is None else self._config.reference_ratio
        if "=" in self.prior or Path(self.prior).is_file():
            return _numbers("--prior", self.prior)
        from drpruning.errors import ConfigError
        from drpruning.mixture.static import RULES, static_mixture

        rule, tokens = self.prior.partition(":")[0], self._domain_tokens
        if tokens is None and rule not in RULES:
            return _numbers("--prior", self.prior)
        if tokens is None and rule != "average":
            raise ConfigError(
                f"--prior {self.prior} needs the tokens of the domains: --domain-tokens or --recipe",
                "For example --domain-tokens web=800B,code=90B",
            )
        return static_mixture(self.prior, tokens or {}, self._target_tokens)

    @property
    def _target_tokens(self) -> float | None:
        """Tokens of the run that the mixture is for."""
        return self.target_tokens or self.run_tokens or self._recipe_tokens

    def _read(self) -> tuple[Swarm, Results | None]:
        """Read the swarm, and the comparison that it is from, if any; methods that are left out go to stderr."""
        assert self.swarm is not None
        path = Path(self.swarm)
        if not path.is_dir() and path.suffix != ".json":
            from drpruning.swarm import read_swarm

            return read_swarm(path, self.losses), None
        from drpruning.comparison.swarm import read_comparison, swarm_of
        from drpruning.errors import ConfigError

        if self.losses is not None:
            raise ConfigError(
                f"--losses needs a CSV file of shares, and {self.swarm} is a comparison, which has losses",
                "Leave --losses out.",
            )
        results = read_comparison(path)
        swarm, left_out = swarm_of(results)
        for name, reason in left_out.items():
            click.echo(f"left out: {name}, {reason}", err=True)
        return swarm, results

    def _reference_losses(self, targets: tuple[str, ...], results: Results | None) -> dict[str, float] | None:
        if self.reference_loss != "base":
            return _numbers("--reference-loss", self.reference_loss)
        from drpruning.comparison.swarm import base_losses
        from drpruning.errors import ConfigError

        losses = None if results is None else base_losses(results)
        if losses is None:
            raise ConfigError("--reference-loss base needs a comparison that measured an unpruned model")
        return {target: losses[target] for target in targets}

    def recommendation(self) -> tuple[Swarm, Recommendation]:
        """Read the swarm and return it with the recommended mixture.

        Raises:
            ConfigError: An option is missing or contradicts another.
            LossTableError, StateError, WeightError: The files or the numbers are not usable.
        """
        from drpruning.errors import ConfigError
        from drpruning.swarm import recommend

        if self.swarm is None:
            raise ConfigError(
                "SWARM is missing: a CSV file with a row per run", "`drpruning mix --design 32` proposes runs."
            )
        if self.rho is not None and self.objective == "worst":
            raise ConfigError(
                "--rho and --objective worst are both given", "Keep one of them: worst is an infinite rho"
            )
        if self.domain_tokens is not None and self._target_tokens is None:
            raise ConfigError(
                "--domain-tokens needs --target-tokens: the length of the run the mixture is for",
                "For example --target-tokens 200B",
            )
        swarm, results = self._read()
        if (chosen := parse_names(self.targets)) is not None:
            swarm = swarm.select(chosen)
        rho = math.inf if self.objective == "worst" else self.rho or 0.0
        found = recommend(
            swarm,
            prior=self._prior or (None if results is None else results.reference_ratio),
            target_weights=_numbers("--target-weights", self.target_weights),
            reference_loss=self._reference_losses(swarm.targets, results),
            rho=rho,
            kl=self.kl,
            min_share=_shares("--min-share", self.min_share, 0.0, swarm.domains),
            max_share=self._largest_shares(swarm.domains),
            form=self.form,
            seed=self.seed,
        )
        return swarm, found

    def _largest_shares(self, domains: tuple[str, ...]) -> Mapping[str, float] | float:
        from drpruning.errors import ConfigError

        given = _shares("--max-share", self.max_share, 1.0, domains)
        tokens, run = self._domain_tokens, self._target_tokens
        if tokens is None or run is None:
            return given
        if missing := [domain for domain in domains if domain not in tokens]:
            raise ConfigError(f"--domain-tokens has no number for domain {missing[0]!r}")
        least = {domain: given if isinstance(given, float) else given.get(domain, 1.0) for domain in domains}
        return {domain: min(least[domain], self.max_epochs * tokens[domain] / run) for domain in domains}

    def propose(self) -> None:
        """Print the proposed runs as CSV, or write them as methods; what the small runs should read goes to stderr.

        Raises:
            ConfigError: The prior or the tokens of a run are missing, or no mixture is within the bounds.
            WeightError: The numbers are not usable.
        """
        from drpruning.errors import ConfigError
        from drpruning.swarm import propose

        prior = self._prior
        if self.design is None or prior is None:
            raise ConfigError(
                "--design needs --prior or --recipe: the mixture to draw around", "For example --prior web=0.8,code=0.2"
            )
        if self.domain_tokens is not None and self._target_tokens is None:
            raise ConfigError(
                "--domain-tokens needs --run-tokens or --target-tokens: the length of a run",
                "For example --run-tokens 2B",
            )
        run_tokens = self.run_tokens or self._recipe_tokens
        design = propose(
            prior,
            self.design,
            domain_tokens=self._domain_tokens,
            run_tokens=run_tokens,
            target_tokens=self.target_tokens,
            max_epochs=self.max_epochs,
            min_share=_shares("--min-share", self.min_share, 0.0, tuple(prior)),
            max_share=_shares("--max-share", self.max_share, 1.0, tuple(prior)),
            seed=self.seed,
        ).rounded()
        if design.subsample < 1:
            click.echo(
                f"Let the small runs read {design.subsample:.3g} of each domain's text: a share then means as many "
                "epochs as in the target run.",
                err=True,
            )
        if self.methods_file is not None:
            from drpruning.comparison.swarm import write_design

            write_design(
                self.methods_file,
                design,
                domain_tokens=self._domain_tokens,
                run_tokens=run_tokens,
                target_tokens=self.target_tokens,
            )
            click.echo(self.methods_file)
            return
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["run", *(f"mixture/{domain}" for domain in design.domains)])
        for number, mixture in enumerate(design.mixtures.tolist(), 1):
            table.writerow([number, *(f"{share:.6f}" for share in mixture)])
        click.echo(text.getvalue(), nl=False)


def _numbers(option: str, text: str | None) -> dict[str, float] | None:
    return None if text is None else parse_numbers_by_domain(option, text)


def _shares(option: str, text: str | None, default: float, domains: tuple[str, ...]) -> dict[str, float] | float:
    if text is None:
        return default
    from drpruning.errors import ConfigError, did_you_mean

    shares: dict[str, float] | float
    try:
        shares = float(text)
    except ValueError:
        shares = parse_numbers_by_domain(option, text)
    by_domain = shares if isinstance(shares, dict) else dict.fromkeys(domains, shares)
    for name, share in by_domain.items():
        if name not in domains:
            raise ConfigError(
                f"{option} names {name!r}; the domains are {', '.join(domains)}", did_you_mean(name, domains)
            )
        if not 0 <= share <= 1:
            raise ConfigError(f"{option} is {text!r}; expected shares from 0 to 1", f"For example {option} 0.2")
    return shares


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
            raise ConfigError(
                f"{option}: {item!r} is not of the form NAME=TOKENS", f"For example {option} web=800B,code=90B"
            )
        amounts[name] = number
    return amounts
