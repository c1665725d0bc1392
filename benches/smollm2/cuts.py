"""Compare measures of importance on SmolLM2 right after a cut: `python benches/smollm2/cuts.py WORK`.

WORK is that of run.py, which needs a package and builds the model and the corpus. The cut is that of recipe.yaml, from
135 to 71 million parameters; nothing is trained. Importance and repair see the same text, equal shares of four domains.
Prints losses on test text of each domain, and writes them with the command to WORK/cuts.json.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import click
import torch
from run import RECIPE, build_base, build_corpus

from drpruning.corpus import Corpus
from drpruning.export.repair import repair
from drpruning.files import write_text
from drpruning.hf.models import load
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.importance import importance
from drpruning.recipes import load_recipe
from drpruning.sampler import DomainSampler
from drpruning.train.validation import Validator

DOMAINS = ("python", "cpp", "math", "readme")
LENGTH, ROWS = 128, 4
CUTS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "activation": ("activation", (), False),
    "taylor": ("taylor", (), False),
    "taylor, hidden by activation": ("taylor", ("hidden",), False),
    "activation, repaired": ("activation", (), True),
    "taylor, repaired": ("taylor", (), True),
}
"""For each cut: the measure, the kinds that have the other measure, and whether it is repaired."""


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False, resolve_path=True))
@click.option("--tokens", default=8192, show_default=True, help="Calibration tokens.")
@click.option("--test-tokens", default=2048, show_default=True, help="Test tokens of each domain.")
@click.option("--seed", default=17, show_default=True)
def main(work: Path, tokens: int, test_tokens: int, seed: int) -> None:
    """Print the loss of each domain after each cut."""
    torch.set_num_threads(1)
    build_base(work)
    build_corpus(work)
    corpus, model = Corpus.open(work / "corpus"), work / "base"
    target = Target(**load_recipe(str(RECIPE), []).pruning.target.model_dump())
    weights = {domain: float(domain in DOMAINS) / len(DOMAINS) for domain in corpus.domains}
    sampler = DomainSampler(corpus, weights, seq_len=LENGTH, batch_size=ROWS, seed=seed)
    rows = [torch.from_numpy(next(sampler).tokens) for _ in range(tokens // (ROWS * LENGTH))]
    validator = Validator.from_corpus(
        corpus, list(DOMAINS), seq_len=LENGTH, tokens=test_tokens, batch_size=ROWS, split="test"
    )
    found = {"base": validator.losses(load(model).eval())}
    scores = {
        measure: importance(MaskedModel(load(model), target).eval(), rows, measure)
        for measure in ("taylor", "activation")
    }
    other = {"taylor": "activation", "activation": "taylor"}
    for name, (measure, exceptions, is_repaired) in CUTS.items():
        masked = MaskedModel(load(model), target).eval()
        masked.init_from_importance(
            {kind: scores[other[measure] if kind in exceptions else measure][kind] for kind in masked.gates}
        )
        pruned = masked.extract().eval()
        if is_repaired:
            with masked.unmasked():
                repair(masked.model, pruned, masked.kept_units(), rows, ridge=0.01)
        found[name] = validator.losses(pruned)
        print(f"{name:50} mean {statistics.fmean(found[name].values()):.3f}", flush=True)
        body = {"tokens": tokens, "test_tokens": test_tokens, "seed": seed, "losses": found}
        write_text(work / "cuts.json", json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
