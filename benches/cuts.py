"""Compare one-shot cuts right after the cut: `python benches/cuts.py MODEL CORPUS`.

MODEL is a folder: the base of benches/study/mixtures-recipe.yaml, cut to the target of that recipe. Seeds change the
calibration text, 65,536 tokens as in a recipe. Prints excess losses over MODEL on test text, and with ``--out`` writes
the loss of each domain, cut and seed as gzipped JSON. benches/study/cuts.yaml has the comparison after training.
"""

from __future__ import annotations

import gzip
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import torch
from torch import Tensor

from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.export.repair import repair
from drpruning.hf.models import load
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.domain_importance import combine
from drpruning.pruning.importance import importance
from drpruning.recipes import load_recipe
from drpruning.sampler import DomainSampler
from drpruning.train.validation import Validator

RECIPE = Path(__file__).parent / "study" / "mixtures-recipe.yaml"
Scores = Mapping[str, Tensor]
Losses = dict[str, float]


class Cutter:
    """Cuts a model by importance on calibration text of one seed, and measures the results."""

    def __init__(self, model: Path, corpus: Corpus, config: RunConfig, seed: int) -> None:
        self.model, self.corpus, self.config, self.seed = model, corpus, config, seed
        self.ratio = config.reference_ratio
        self.even = dict.fromkeys(self.ratio, 1 / len(self.ratio))
        self.target = Target(**config.pruning.target.model_dump())
        self.validator = Validator.from_corpus(
            corpus, list(self.ratio), seq_len=config.data.seq_len, tokens=65_536, batch_size=32, split="test"
        )

    def masked(self) -> MaskedModel:
        return MaskedModel(load(self.model), self.target).eval()

    def rows(self, shares: Mapping[str, float], share: float = 1.0) -> list[Tensor]:
        size, length = self.config.pruning.batch_size, self.config.data.seq_len
        weights = {domain: shares.get(domain, 0.0) for domain in self.corpus.domains}
        sampler = DomainSampler(self.corpus, weights, seq_len=length, batch_size=size, seed=self.seed)
        count = -(-int(share * self.config.pruning.calibration.tokens) // (size * length))
        return [torch.from_numpy(next(sampler).tokens) for _ in range(count)]

    def losses(self, scores: Scores, repair_on: Mapping[str, float] | None = None, ridge: float = 0.01) -> Losses:
        masked = self.masked()
        masked.init_from_importance(scores)
        pruned = masked.extract().eval()
        if repair_on is not None:
            with masked.unmasked():
                repair(masked.model, pruned, masked.kept_units(), self.rows(repair_on), ridge=ridge)
        return self.validator.losses(pruned)

    def cuts(self) -> Iterator[tuple[str, Losses]]:
        taylor = importance(self.masked(), self.rows(self.ratio), "taylor")
        taylor_even = importance(self.masked(), self.rows(self.even), "taylor")
        activation = importance(self.masked(), self.rows(self.ratio), "activation")
        share = 1 / len(self.ratio)
        by_domain = {
            domain: importance(self.masked(), self.rows({domain: 1.0}, share), "taylor") for domain in self.ratio
        }
        removed = self.masked().num_removed()
        worst = {rho: combine(by_domain, self.ratio, removed, "worst_case", rho=rho).scores for rho in (0.1, 1.0)}
        yield "taylor, rows at the ratio", self.losses(taylor)
        yield "taylor, even rows", self.losses(taylor_even)
        yield "activation, rows at the ratio", self.losses(activation)
        yield "depth activation, width taylor", self.losses({**taylor, "layer": activation["layer"]})
        yield "combine ratio", self.losses(combine(by_domain, self.ratio, removed, "ratio").scores)
        yield "combine even", self.losses(combine(by_domain, self.ratio, removed, "even").scores)
        for rho, scores in worst.items():
            yield f"combine worst_case, rho {rho:g}", self.losses(scores)
        yield "taylor, repaired on the ratio", self.losses(taylor, self.ratio)
        yield "taylor, repaired on even rows", self.losses(taylor, self.even)
        yield "combine worst_case, repaired on even rows", self.losses(worst[0.1], self.even)
        for ridge in (0.001, 0.1):
            yield f"taylor, repaired on even rows, ridge {ridge:g}", self.losses(taylor, self.even, ridge)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", metavar="CORPUS", type=click.Path(path_type=Path, exists=True))
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="File of raw numbers, such as benches/study/after-cut.json.gz"
)
def main(model: Path, folder: Path, seeds: int, out: Path | None) -> None:
    """Print the mean over seeds of the mean, the ratio-weighted and the worst excess of each cut."""
    torch.set_num_threads(1)
    corpus, config = Corpus.open(folder), load_recipe(str(RECIPE), [])
    ratio = config.reference_ratio
    found: dict[str, list[Losses]] = {}
    base: Losses = {}
    for seed in range(config.seed, config.seed + seeds):
        cutter = Cutter(model, corpus, config, seed)
        base = base or cutter.validator.losses(load(model).eval())
        for name, losses in cutter.cuts():
            found.setdefault(name, []).append(losses)
            excess = [losses[domain] - base[domain] for domain in ratio]
            print(f"seed {seed}  {name:45} mean {statistics.fmean(excess):.3f}  worst {max(excess):.3f}", flush=True)
        if out is not None:
            out.write_bytes(gzip.compress(json.dumps({"base": base, "cuts": found}).encode(), mtime=0))
    print(f"{'cut':45}  mean  weighted  worst")
    for name, runs in found.items():
        excess = [[losses[domain] - base[domain] for domain in ratio] for losses in runs]
        weighted = statistics.fmean(sum(p * e for p, e in zip(ratio.values(), each, strict=True)) for each in excess)
        mean, worst = statistics.fmean(map(statistics.fmean, excess)), statistics.fmean(map(max, excess))
        print(f"{name:45}  {mean:.3f}  {weighted:.3f}  {worst:.3f}")


if __name__ == "__main__":
    main()
