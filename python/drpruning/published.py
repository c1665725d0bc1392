"""Settings of the public code of the papers, for recipes and for strategies.

Source: hexuandeng/DRPruning at ac442bb (``DRO_loading_callback.py``, ``DRO_server.py``, ``train.py`` and the scripts)
and princeton-nlp/LLM-Shearing at b87218b (``l0_module.py``), which the former copies. See ``docs/fidelity.md``.
"""

from __future__ import annotations

from typing import Any

STRATEGIES: dict[str, dict[str, Any]] = {
    "drpruning": {
        "rho": 0.1,
        "delta": 0.1,
        "floor": 0.2,
        "collect_after_fraction": 0.02,
        "predict_after_fraction": 0.1,
        "min_points": 11,
        "predictions": "replace",
        "move_ratio_after_fraction": 0.2,
        "ratio_bound": 2.0,
        "ratio_rule": "published",
        "initial_floor": 0.0,
        "update_after_fraction": 0.1,
        "noise": 0.0,
        "law": "published",
        "carry_over": False,
        "solver": "published",
    },
    "sheared": {"eta": 1.0, "smoothing": 1e-4, "clip_excess": False},
}
"""By strategy, its settings."""

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
"""Of the recipe's section ``prune``."""
