"""Output of ``drpruning plan verify``: the properties of a model class under masks and extraction."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drpruning.cli.render.result import CommandResult
from drpruning.errors import ConfigError
from drpruning.planning.model_shape import read_config_json
from drpruning.pruning.architectures import ARCHITECTURES
from drpruning.pruning.verification import failure, verify_architecture
from drpruning.tables import Row, Table
from drpruning.tables.terminal import print_table

if TYPE_CHECKING:
    from rich.console import Console


def verification(source: str) -> CommandResult:
    """Show all properties for a model or a model type.

    Args:
        source: A model type with a description, a folder of transformers, a ``config.json``, or a name on the hub.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # tiny models are written and loaded
    logging.set_verbosity_error()
    config = _config(source)
    checks = verify_architecture(config)

    def write(console: Console) -> None:
        console.print(f"{source}: a tiny model of type {config.model_type}", markup=False)
        rows = [
            Row.of(
                check.name,
                check.error if isinstance(check.error, str) else f"{check.error:.2g}",
                f"{check.bound:g}",
                "holds" if check.passed else "fails",
            )
            for check in checks
        ]
        print_table(console, Table(["property", "error", "bound", "result"], rows, text_columns=("result",)))

    body = {"model_type": config.model_type, "checks": [asdict(check) | {"passed": check.passed} for check in checks]}
    return CommandResult(body, write, failure(config.model_type, checks))


def _config(source: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = {"model_type": source} if source in ARCHITECTURES else read_config_json(source)[0]
    if fields.get("quantization_config", 0) is None:
        del fields["quantization_config"]
    try:
        return AutoConfig.for_model(**fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(
            f"transformers has no configuration for {source!r}: {(str(error).strip() or 'no reason').splitlines()[0]}",
            "Update transformers, or give the config.json of a causal language model.",
        ) from error
