"""Mixtures found from a swarm of small runs: read them, fit a law, search the best mixture, propose the next swarm."""

from __future__ import annotations

from drpruning.swarm.design import Design, propose, round_shares
from drpruning.swarm.law import Form, LawFit, MixtureLaw, TargetStatus, fit_law
from drpruning.swarm.recommend import Recommendation, Support, recommend
from drpruning.swarm.search import BestMixture, SearchStatus, best_mixture
from drpruning.swarm.table import Swarm, read_swarm
from drpruning.swarm.trade import Trade, TradeCurve, trade

__all__ = [
    "BestMixture",
    "Design",
    "Form",
    "LawFit",
    "MixtureLaw",
    "Recommendation",
    "SearchStatus",
    "Support",
    "Swarm",
    "TargetStatus",
    "Trade",
    "TradeCurve",
    "best_mixture",
    "fit_law",
    "propose",
    "read_swarm",
    "recommend",
    "round_shares",
    "trade",
]
