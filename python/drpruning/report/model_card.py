"""The model card of a run: README.md of its finished model, from recipe and records; loads neither torch nor the hub.

The front matter has the fields by which the Hugging Face hub files a model: ``library_name``, ``pipeline_tag``,
``base_model``, ``license`` and ``tags``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drpruning.config import SHAPES_ONLY, RunConfig
from drpruning.errors import ConfigError
from drpruning.files import write_text
from drpruning.formatting import count, duration, held_out, number, signed
from drpruning.hf.files import cached_file, read_config_fields
from drpruning.inputs import parse_yaml, read_text
from drpruning.intervals import student_quantile
from drpruning.planning.model_shape import ModelShape
from drpruning.pruning.model_flops import flops_per_token
from drpruning.recipes import parse_recipe
from drpruning.records import (
    Evaluated,
    ModelMeasured,
    Record,
    RunEnded,
    RunStarted,
    StageEnded,
    StageStarted,
    read_records,
)
from drpruning.report.loss_tables import LossRow, summary_table
from drpruning.report.read.run import last, measured, open_run
from drpruning.run_folder import RunFolder
from drpruning.tables import Row, Table
from drpruning.tables.markdown import escape_markdown, table_markdown

CARD = "README.md"
RECORDED = ("masks.safetensors", "pruning.json")
"""Files next to the pruned model: gates, masks and scores of all units; indices of the kept units."""
MIXTURE_COLUMNS = 6
"""Most evaluations in the table of the mixture."""
PAPERS = """\
@article{deng2024drpruning,
  title = {DRPruning: Efficient Large Language Model Pruning through Distributionally Robust Optimization},
  author = {Deng, Hexuan and Jiao, Wenxiang and Liu, Xuebo and Li, Jing and Zhang, Min and Tu, Zhaopeng},
  journal = {arXiv preprint},
  year = {2024}
}
@article{xia2023sheared,
  title = {Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning},
  author = {Xia, Mengzhou and Gao, Tianyu and Zeng, Zhiyuan and Chen, Danqi},
  journal = {arXiv preprint arXiv:2310.06694},
  year = {2023}
}"""
"""The method and the one it extends, as in CITATION.cff."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The large model that a finished model comes from.

    Attributes:
        name: Its name on the hub; None for a local folder or a base that the run trained.
        licence: Identifier of its licence on the hub, such as ``apache-2.0``; None if not known.
    """

    name: str | None
    licence: str | None

    @classmethod
    def find(cls, config: RunConfig, name: str | None = None, licence: str | None = None) -> Origin:
        """Return the origin of a recipe's model, without a connection.

        Args:
            config: The recipe.
            name: Name on the hub, for a recipe whose model is a local folder.
            licence: The licence; by default that of the card in the model's folder or in the hub's cache.
        """
        source = config.model.source
        if name is None and source.count("/") == 1 and not source.startswith((".", "~")) and not Path(source).exists():
            name = source
        card = None if source in SHAPES_ONLY else cached_file(source, CARD)
        return cls(name=name, licence=licence or (None if card is None else licence_in(card)))


def write_card(
    folder: RunFolder, origin: Origin, *, repository: str | None = None, force: bool = False
) -> tuple[Path, bool]:
    """Write ``export/README.md``; an existing card is kept, since it may have been edited.

    Args:
        folder: A finished run.
        origin: Its large model.
        repository: Where the model will be published, for the example in the card.
        force: Whether an existing card is replaced.

    Returns:
        The path, and whether it was written.

    Raises:
        ConfigError: The run has no finished model, or its recipe is damaged.
        StateError: There is no such run.
    """
    path = folder.export / CARD
    text = model_card(folder, origin, repository)
    if path.exists() and not force:
        return path, False
    write_text(path, text)
    return path, True


def files_to_publish(folder: RunFolder) -> dict[str, Path]:
    """Return the files of a finished model by their names on the hub: the model, masks, recipe and card."""
    files = {path.name: path for path in sorted(folder.export.iterdir()) if path.is_file()}
    extra = [folder.recipe, *(folder.pruned / name for name in RECORDED)]
    return {path.name: path for path in extra if path.is_file()} | files


def model_card(folder: RunFolder, origin: Origin, repository: str | None = None) -> str:
    """Return the card of a run's finished model as Markdown; arguments as of :func:`write_card`.

    Raises:
        ConfigError: The run has no finished model, or its recipe is damaged.
        StateError: There is no such run.
    """
    records = open_run(folder.path).records
    evaluations = _evaluations(folder)
    config = parse_recipe(folder.read_recipe())
    recovered = measured(records, "recovered")
    if recovered is None or not (folder.export / "config.json").is_file():
        raise ConfigError(
            f"{folder.path} has no finished model: expected {folder.export}, measured by the run",
            f"Finish the run: drpruning train {folder.recipe} --out {folder.path} --resume",
        )
    sections = [
        _front_matter(config, origin),
        _summary(config, origin, records, recovered),
        _usage(repository or "."),
        _shapes(records),
        _training(config, folder, records),
        _losses(records, evaluations),
        _mixture(records, evaluations),
        _files(folder),
        f"## Citation\n\n```bibtex\n{PAPERS}\n```",
    ]
    return "\n\n".join(section.rstrip("\n") for section in sections if section) + "\n"


def _front_matter(config: RunConfig, origin: Origin) -> str:
    tags = ["drpruning", "pruning" if config.prune is not None else "continued-pretraining", "data-mixture"]
    if config.continue_.distill is not None:
        tags.append("distillation")
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if origin.name is not None:
        fields["base_model"] = origin.name
    if origin.licence is not None:
        fields["license"] = origin.licence
    return f"---\n{yaml.safe_dump({**fields, 'tags': tags}, sort_keys=False)}---"


def _summary(config: RunConfig, origin: Origin, records: Sequence[Record], recovered: ModelMeasured) -> str:
    source = config.model.source  # of a folder only the name: the card is published
    name = origin.name or ("a model trained in the run" if source in SHAPES_ONLY else Path(source).name)
    base = measured(records, "base")
    large = f" ({count(base.parameters)} parameters)" if base is not None else ""
    how = (
        "pruned to a smaller shape and trained further" if config.prune is not None else "trained further in its shape"
    )
    teacher = ", also on the outputs of the unpruned model" if config.continue_.distill is not None else ""
    return (
        f"# {escape_markdown(config.name)}\n\n"
        f"{count(recovered.parameters)} parameters: {escape_markdown(name)}{large}, {how}{teacher}. The data mixture "
        f"followed the strategy `{config.mixture.strategy}` of drpruning, which adds no instruction tuning and no "
        "safety training: limits and licence of the base apply."
    )


def _usage(path: str) -> str:
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{path}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{path}")\n```'
    )


def _shapes(records: Sequence[Record]) -> str:
    found = [("base", measured(records, "base")), ("this model", measured(records, "recovered"))]
    known = [(name, record) for name, record in found if record is not None]
    rows = [
        Row.of(name, *(f"{size:,}" for size in record.shape.values()), f"{record.parameters:,}")
        for name, record in known
    ]
    return f"## Shape\n\n{table_markdown(Table(['model', *known[-1][1].shape, 'parameters'], rows))}"


def _training(config: RunConfig, folder: RunFolder, records: Sequence[Record]) -> str:
    started, ended = last(records, RunStarted), last(records, RunEnded)
    rows = []
    for stage in _stages(records):
        row = [stage.started.stage, f"{stage.ended.steps:,}", f"{stage.ended.tokens:,}"]
        flops = stage.flops(folder, config.data.seq_len)
        rows.append(Row.of(*row, "–" if flops is None else f"{flops:.3g}", duration(stage.ended.seconds)))
    environment = {} if started is None else started.environment
    facts = [
        f"seed {config.seed}",
        f"rows of {config.data.seq_len:,} tokens",
        *(f"{name} {environment[name]}" for name in ("drpruning", "torch", "transformers") if name in environment),
        *([f"{environment['processes']} x {environment['device']}"] if "processes" in environment else []),
        *([f"corpus fingerprint `{environment['corpus'][:16]}`"] if "corpus" in environment else []),
        *([f"{duration(ended.seconds)} in all"] if ended is not None else []),
    ]
    table = Table(["stage", "steps", "tokens", "FLOPs", "time"], rows, note=f"{escape_markdown(', '.join(facts))}.")
    return f"## Training\n\n{table_markdown(table)}"


@dataclass(frozen=True)
class _Stage:
    """A finished stage."""

    started: StageStarted
    ended: StageEnded

    def flops(self, folder: RunFolder, length: int) -> float | None:
        """Return the recorded FLOPs; else those of training steps, from shape and tokens; None if not computable."""
        recorded: float | None = getattr(self.ended, "charged_flops", None)
        if recorded is not None:
            return recorded
        path = folder.export / "config.json"
        try:
            shape = ModelShape.from_config(read_config_fields(path, str(path)), str(path))
        except ConfigError:  # an architecture without masks
            return None
        return flops_per_token(shape, self.started.shape, length) * self.ended.tokens


def _stages(records: Sequence[Record]) -> Iterator[_Stage]:
    started = {record.stage: record for record in records if isinstance(record, StageStarted)}
    ended = {record.stage: record for record in records if isinstance(record, StageEnded)}
    for name, record in ended.items():
        if name in started:
            yield _Stage(started[name], record)


def _losses(records: Sequence[Record], evaluations: Sequence[Evaluated]) -> str:
    final = next((record for record in reversed(evaluations) if record.stage == "continue"), None)
    summary = summary_table(records)
    started = last(records, RunStarted)

    def row(of: LossRow) -> Row:
        cells = [number(of.base), *([number(of.pruned)] if summary.prunes else []), number(of.recovered)]
        interval = _interval(final, of.name) if final is not None else ""
        return Row.of(of.name, *cells, signed(of.excess), interval)

    columns = ["domain", "base", *(["pruned"] if summary.prunes else []), "this model", "difference"]
    rows = [*map(row, summary.rows), row(summary.mean), row(summary.ratio_weighted)]
    text = held_out(started.final_eval_tokens, "test") if started is not None else ""
    note = f"Nats per token{f', on {text}' if text else ''}; the difference is to the base."
    if final is not None and final.standard_errors:
        rows_read = f", on {held_out(started.eval_tokens, 'validation')}" if started is not None else ""
        note += (
            f" Last column: excess over the reference loss at the last evaluation{rows_read}, with its 95% interval "
            "over held-out rows."
        )
    table = Table([*columns, "excess, validation"], rows, note=note)
    return f"## Losses by domain\n\n{table_markdown(table)}"


def _interval(final: Evaluated, domain: str) -> str:
    excess = (final.excess_loss or {}).get(domain, math.nan)
    error = (final.standard_errors or {}).get(domain, math.nan)
    if not math.isfinite(excess) or not math.isfinite(error):
        return ""
    half = student_quantile(math.inf) * error
    return f"{signed(excess)} [{signed(excess - half)}, {signed(excess + half)}]"


def _mixture(records: Sequence[Record], evaluations: Sequence[Evaluated]) -> str:
    started = last(records, RunStarted)
    chosen = [record for record in evaluations if record.stage != "pretrain"]
    if started is None or not chosen:
        return ""
    places = [round(at * (len(chosen) - 1) / (MIXTURE_COLUMNS - 1)) for at in range(MIXTURE_COLUMNS)]
    shown = [chosen[at] for at in dict.fromkeys(places)]

    rows = [
        Row.of(
            domain, *(f"{mixture[domain]:.1%}" for mixture in (started.reference_ratio, *(at.weights for at in shown)))
        )
        for domain in started.domains
    ]
    columns = ["domain", "reference ratio", *(f"{record.stage} {record.step:,}" for record in shown)]
    note = "Shares of the rows drawn after the evaluation at a step of a stage."
    return f"## Data mixture\n\n{table_markdown(Table(columns, rows, note=note))}"


def _evaluations(folder: RunFolder) -> list[Evaluated]:
    """Return the evaluations in order, of those that a resumed run repeated the last."""
    found = (record for record in read_records(folder.metrics) if isinstance(record, Evaluated))
    return list({(record.stage, record.step): record for record in found}.values())


def _files(folder: RunFolder) -> str:
    described = {
        "masks.safetensors": "gates, masks and importance scores of all units of the base",
        "pruning.json": "both shapes, and the indices of the kept units",
        "recipe.yaml": "all settings of the run; `drpruning train recipe.yaml` repeats it on the same corpus",
    }
    rows = [f"- [{name}]({name}): {text}" for name, text in described.items() if name in files_to_publish(folder)]
    return "## Files\n\n" + "\n".join(rows)


def licence_in(card: Path) -> str | None:
    """Return the ``license`` in the front matter of a card; None without one."""
    try:
        parts = read_text(card).split("---\n", 2)
        if len(parts) != 3 or parts[0].strip():
            return None
        fields = parse_yaml(parts[1], card, any_tag=True)
    except ConfigError:  # not UTF-8, or not YAML
        return None
    licence = fields.get("license") if isinstance(fields, dict) else None
    return licence if isinstance(licence, str) else None
