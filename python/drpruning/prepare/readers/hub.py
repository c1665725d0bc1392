"""Data sets on the Hugging Face hub: downloaded by the hub's library, then read like any other files."""

from __future__ import annotations

import re
from pathlib import Path

from drpruning.errors import ConfigError, MissingExtraError

HUB = "hf:"
CARD = "README.md"
"""Every data set on the hub has one: it describes the text and is none of it."""

_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<pattern>.+))?")


def downloaded(name: str) -> tuple[Path, str | None]:
    """Downloads what ``hf:owner/name[@revision][:pattern]`` stands for; again it costs a look.

    Returns:
        The folder of the snapshot in the hub's cache, and the pattern to read in it, if there is one.

    Raises:
        ConfigError: The name is malformed, or the data set cannot be had: no network, no such name, no access.
        MissingExtraError: huggingface_hub is not installed.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ConfigError(
            f"{name!r} is not of the form hf:owner/name[@revision][:pattern]", "For example hf:allenai/c4:en/*.json.gz"
        )
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 -- slow to import
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(f"{name} needs huggingface_hub", "pip install huggingface_hub") from error
    pattern = found["pattern"]
    try:
        folder = snapshot_download(
            found["repo"],
            repo_type="dataset",
            revision=found["revision"],
            allow_patterns=None if pattern is None else [pattern],
        )
    except (OSError, ValueError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"cannot download the data set {found['repo']} from the Hugging Face hub: {reason}",
            "Without a network, name files or folders instead; with one, check the name and your access to it.",
        ) from None
    return Path(folder), pattern
