"""Output of `drpruning inspect MODEL`: architecture, shape, parameters, whether masks can prune it, tokenizer."""

from __future__ import annotations

import json
import math
import struct
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from drpruning.formatting import printable

if TYPE_CHECKING:
    from rich.console import Console

LARGEST_HEADER = 100_000_000
"""Maximum bytes of a safetensors header, from the format's specification."""
FIELDS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
}


def model_facts(model: str) -> dict[str, Any]:
    """Read the facts of a model from its folder, its ``config.json`` or its name on the hub, as JSON-able data.

    No weights are loaded; of a name on the hub only ``config.json`` is downloaded. Unknown values are None.

    Raises:
        ConfigError: There is no such model, or its files are damaged.
    """
    from drpruning.planning.model_shape import read_config_json
    from drpruning.pruning.architectures import EXPERT_FIELDS

    config, folder = read_config_json(model)
    reason, counted = _maskable(config, model)
    stored = None if folder is None else _stored_parameters(folder)
    shape = {name: config.get(field) for name, field in FIELDS.items()}
    if (experts := next((config[name] for name in EXPERT_FIELDS if config.get(name)), None)) is not None:
        shape |= {"intermediate": config.get("moe_intermediate_size") or shape["intermediate"], "experts": experts}
    shape["kv_heads"] = shape["kv_heads"] or shape["heads"]
    if shape["head_dim"] is None and shape["hidden"] and shape["heads"]:
        shape["head_dim"] = shape["hidden"] // shape["heads"]
    return {
        "kind": "model",
        "model": model,
        "architecture": config.get("model_type"),
        "class": next(iter(config.get("architectures") or []), None),
        "shape": shape,
        "parameters": counted if stored is None else stored["parameters"],
        "dtypes": None if stored is None else stored["dtypes"],
        "supports_masks": reason is None,
        "why_not": reason,
        "vocabulary": config.get("vocab_size"),
        "tied_embeddings": config.get("tie_word_embeddings"),
        "positions": config.get("max_position_embeddings"),
        "tokenizer": None if folder is None else _tokenizer(folder),
        "pruned": None if folder is None else (folder / "pruning.json").is_file(),
    }


def _maskable(config: dict[str, Any], model: str) -> tuple[str | None, int | None]:
    """Return why the model cannot be masked (None: it can), and the number of parameters of its configuration."""
    from drpruning.errors import ConfigError
    from drpruning.planning.model_shape import ModelShape
    from drpruning.pruning.architectures import architecture_of
    from drpruning.pruning.target import parameter_count

    try:
        architecture_of(SimpleNamespace(**{"model_type": None, **config}))  # type: ignore[arg-type] # has the attributes that are read
        return None, parameter_count(ModelShape.from_config(config, model))  # type: ignore[arg-type] # likewise
    except ConfigError as error:
        return error.message, None


def _stored_parameters(folder: Path) -> dict[str, Any] | None:
    """Count parameters by data type from the headers of a folder's safetensors files; None without such files.

    Raises:
        ConfigError: A file is damaged.
    """
    from drpruning.errors import ConfigError

    parameters = 0
    dtypes: dict[str, int] = {}
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > LARGEST_HEADER:
                    raise ValueError(f"its header has {length:,} bytes; at most {LARGEST_HEADER:,} are valid")
                header = json.loads(file.read(length))
            for name, tensor in header.items():
                if name != "__metadata__":
                    count = math.prod(tensor["shape"])
                    parameters += count
                    dtypes[tensor["dtype"]] = dtypes.get(tensor["dtype"], 0) + count
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
            raise ConfigError(f"{path} is damaged: its header cannot be read ({error})", "Copy it again.") from error
    return {"parameters": parameters, "dtypes": dtypes} if files else None


def _tokenizer(folder: Path) -> dict[str, Any] | None:
    """Return the files and the number of entries of the folder's tokenizer; None without one.

    Raises:
        ConfigError: ``tokenizer.json`` is damaged.
    """
    from drpruning.errors import ConfigError
    from drpruning.hf.files import TOKENIZER_FILES

    files = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    entries = None
    if "tokenizer.json" in files and find_spec("tokenizers") is not None:
        from tokenizers import Tokenizer

        try:
            entries = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        except Exception as error:  # tokenizers raises bare Exception
            raise ConfigError(f"{folder / 'tokenizer.json'} is damaged: {error}", "Copy it again.") from error
    return {"files": files, "entries": entries} if files else None


def print_model(console: Console, facts: dict[str, Any]) -> None:
    """Print the facts of :func:`model_facts`."""

    def line(title: str, text: str) -> None:
        console.print(f"{title:<14}{printable(text)}", highlight=False, markup=False, soft_wrap=True)

    line("model", facts["model"])
    named = "" if facts["class"] is None else f" ({facts['class']})"
    line("architecture", f"{facts['architecture'] or 'not known'}{named}")
    line("shape", ", ".join(f"{name} {size}" for name, size in facts["shape"].items() if size is not None))
    if facts["parameters"] is not None:
        dtypes = "" if not facts["dtypes"] else f", {', '.join(facts['dtypes'])}"
        line("parameters", f"{facts['parameters']:,}{dtypes}")
    tied = ", tied to the output" if facts["tied_embeddings"] else ""
    line("vocabulary", "not known" if facts["vocabulary"] is None else f"{facts['vocabulary']:,}{tied}")
    line("positions", "not known" if facts["positions"] is None else f"{facts['positions']:,}")
    tokenizer = facts["tokenizer"]
    if tokenizer is not None:
        entries = "" if tokenizer["entries"] is None else f", {tokenizer['entries']:,} entries"
        line("tokenizer", f"{', '.join(tokenizer['files'])}{entries}")
    elif facts["pruned"] is not None:  # a folder
        line("tokenizer", "none in the folder")
    if facts["pruned"]:
        line("pruned", "by drpruning; pruning.json lists the kept units")
    line("can be masked", "yes" if facts["supports_masks"] else f"no: {facts['why_not']}")
