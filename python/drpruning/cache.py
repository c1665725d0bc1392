"""Where things are kept that a later run can use again: bases trained on the spot, the demo corpus."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$DRPRUNING_CACHE``, else ``drpruning`` in the user's cache folder. Not created here."""
    named = os.environ.get("DRPRUNING_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drpruning"
