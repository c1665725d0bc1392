"""The runs of a comparison as a swarm, and the proposed runs of a swarm as methods of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from drpruning.comparison.methods import Method
from drpruning.comparison.results import RESULTS, Results, RunResult, read_results
from drpruning.errors import StateError
from drpruning.files import write_text
from drpruning.swarm import Design, Swarm, round_shares

OF_THE_MIXTURE = ("mixture.", "data.reference_ratio", "prune.eval_every", "continue.eval_every")
"""Settings that change the mixture of a run and nothing else."""


def read_comparison(path: Path) -> Results:
    """Read the results of a comparison.

    Args:
        path: Its folder, or its ``results.json``.

    Raises:
        StateError: There is no such file, or it has no results.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise StateError(f"{file.parent} has no {file.name}", "Give the folder of a finished `drpruning compare`.")
    return read_results(file)


def swarm_of(results: Results) -> tuple[Swarm, dict[str, str]]:
    """Return the methods of a comparison as a swarm.

    A row is a method: the mixture that its runs drew, averaged over tokens and seeds, and the final losses, averaged
    over seeds. One row for each run would put runs of one mixture on both sides of a cross-validation. The effect of
    each seed is subtracted: by least squares, a loss is the sum of one term of its method and one of its seed.

    Returns:
        The swarm, and the reason why a method is not in it, by name.

    Raises:
        StateError: Fewer than two methods are left.
    """
    left_out = {name: reason for name, method in results.methods.items() if (reason := _unlike(method))}
    left_out |= {name: "no finished run" for name in results.methods if name not in left_out and not results.of(name)}
    rows = {name: results.of(name) for name in results.methods if name not in left_out}
    if len(rows) < 2:
        raise StateError(f"{len(rows)} methods of {results.name!r} differ in the mixture alone; expected at least 2")
    effect = _seed_effects(results, rows)
    mixtures, losses, tokens = [], [], []
    for runs in rows.values():
        drawn = np.array([[run.drawn.get(domain, 0) for domain in results.domains] for run in runs], np.float64)
        mixtures.append((drawn / drawn.sum(axis=1, keepdims=True)).mean(axis=0))
        losses.append(np.mean([_losses(results, run) - effect[run.seed] for run in runs], axis=0))
        tokens.append(float(drawn.sum(axis=1).mean()))
    swarm = Swarm.of(results.domains, mixtures, results.domains, losses, list(rows), tokens)
    return swarm, left_out


def _unlike(method: Method) -> str | None:
    """Return why the runs of a method differ from others in more than the mixture; None if they do not."""
    if method.model is not None:
        return "a model that is not trained"
    if method.scratch:
        return "trained from new weights"
    odd = [key for key in (*method.set, *method.times) if not key.startswith(OF_THE_MIXTURE)]
    return f"sets {odd[0]}" if odd else None


def _seed_effects(results: Results, rows: Mapping[str, list[RunResult]]) -> dict[int, NDArray[np.float64]]:
    """Return what each seed adds to the loss of each domain; their sum is zero over seeds that methods connect.

    These are the normal equations of the least squares without the terms of the methods: a graph Laplacian, in which
    each method connects its seeds. A seed that no method connects to another has the effect zero.
    """
    seeds = sorted({run.seed for runs in rows.values() for run in runs})
    laplacian, right = np.zeros((len(seeds), len(seeds))), np.zeros((len(seeds), len(results.domains)))
    for runs in rows.values():
        places = [seeds.index(run.seed) for run in runs]
        values = np.array([_losses(results, run) for run in runs])
        laplacian[np.ix_(places, places)] += np.eye(len(runs)) - 1 / len(runs)
        right[places] += values - values.mean(axis=0)
    return dict(zip(seeds, np.linalg.pinv(laplacian, hermitian=True) @ right, strict=True))


def _losses(results: Results, run: RunResult) -> NDArray[np.float64]:
    return np.array([run.recovered[domain] for domain in results.domains])


def base_losses(results: Results) -> dict[str, float] | None:
    """Return the losses of the unpruned model, the mean over the seeds; None if it was not measured."""
    if not results.base:
        return None
    return {domain: float(np.mean([each[domain] for each in results.base.values()])) for domain in results.domains}


def write_design(
    file: Path,
    design: Design,
    *,
    domain_tokens: Mapping[str, float] | None = None,
    run_tokens: float | None = None,
    target_tokens: float | None = None,
) -> None:
    """Write proposed runs as a file of methods, one constant mixture each.

    Args:
        file: Replaced atomically.
        design: The proposed runs.
        domain_tokens: Tokens that each domain has, if known; a row then names its most repeated domain.
        run_tokens: Tokens of a run, if known.
        target_tokens: Tokens of the run that the mixture is for, if it is not one of these.
    """
    digits = len(str(len(design.mixtures)))
    methods = {}
    for number, mixture in enumerate(design.mixtures, 1):
        shares = round_shares(dict(zip(design.domains, mixture.tolist(), strict=True)))
        what = f"Proposed mixture {number}."
        if domain_tokens is not None and run_tokens is not None:
            epochs = {domain: share * run_tokens / domain_tokens[domain] for domain, share in shares.items()}
            most = max(epochs, key=lambda domain: epochs[domain])
            what = f"Proposed mixture {number}; {most} is read {epochs[most]:.2g} times."
        methods[f"mixture-{number:0{digits}}"] = {
            "strategy": "constant",
            "set": {"data.reference_ratio": shares},
            "what": what,
        }
    notes = [
        f"{len(methods)} constant mixtures: drpruning compare RECIPE --methods {file.name} --seeds 1 --out FOLDER",
        "Then: drpruning mix FOLDER",
    ]
    if target_tokens is not None and run_tokens is not None and target_tokens > run_tokens:
        notes += [
            f"Not matched: runs of {run_tokens:g} tokens repeat text {target_tokens / run_tokens:.3g} times less often",
            f"than one of {target_tokens:g}. To match, compare on a corpus with {design.subsample:.3g} of each domain.",
        ]
    body = yaml.safe_dump({"methods": methods}, sort_keys=False, allow_unicode=True)
    write_text(file, "".join(f"# {note}\n" for note in notes) + "\n" + body)
