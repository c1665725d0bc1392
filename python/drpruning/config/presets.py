"""Settings that a recipe can start from: those of the public code of the papers.

Sources: hexuandeng/DRPruning at ac442bb (``train.py`` and the scripts) and princeton-nlp/LLM-Shearing at b87218b
(``l0_module.py``), which the former copies; for ODM alon-albalak/online-data-mixing at edbfdad. See
``docs/fidelity.md``.
"""

from __future__ import annotations

from typing import Any

from drpruning.mixture.strategies import drpruning, exponentiated, odm

STRATEGIES: dict[str, dict[str, Any]] = {
    "drpruning": drpruning.PUBLISHED,
    "sheared": exponentiated.SHEARED_PUBLISHED,
    "odm": odm.PUBLISHED,
}
"""Settings of the section ``mixture``, by strategy."""

PRUNE: dict[str, Any] = {
    "gate_learning_rate": 1.0,
    "multiplier_learning_rate": 1.0,
    "sparsity_warmup_fraction": 0.2,
    "log_alpha_init": 5.0,
    "log_alpha_init_noise": 0.01,
    "quadratic_multiplier_init": 0.0,
    "schedule_gates": True,
    "clip_gates": True,
    "mask_values": "soft",
    "mask_norms": True,
}
"""Settings of the section ``prune``."""
