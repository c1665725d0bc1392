"""The strategies that choose the data mixture after every evaluation.

A strategy is a frozen dataclass of settings. Its state is plain JSON-able data that the caller keeps, so that a run
can be saved, resumed and replayed::

    strategy = DRPruning(rho=0.1)
    state = strategy.init(["web", "code"], {"web": 0.8, "code": 0.2})
    state, update = strategy.update(state, Observation(step=50, tokens=10**6, params=1e8,
                                                       losses={"web": 2.1, "code": 1.2}, final_tokens=10**8))
    sampler.set_weights(update.weights)

``losses`` are held-out losses in nats per token. A strategy never answers with NaN: a domain whose loss is missing, NaN
or infinite keeps the weight it had, the others share the rest, and the status of the update is ``"incomplete"``
(``"held"`` if no domain has a loss: every weight stays). :class:`Bounds` limit what any of them may answer.
"""

from __future__ import annotations

from drpruning.reweight.ado import ADO
from drpruning.reweight.bounds import Bounds
from drpruning.reweight.chi_square import ChiSquareDRO
from drpruning.reweight.constant import Constant
from drpruning.reweight.cvar import CVaR, worst_fraction
from drpruning.reweight.doremi import DoReMi
from drpruning.reweight.drpruning import DRPruning
from drpruning.reweight.group_dro import GroupDRO
from drpruning.reweight.history import fewer, megatron_blends, parse_schedule, read_schedule, write_schedule
from drpruning.reweight.observation import Observation, State, Update
from drpruning.reweight.registry import STRATEGIES, build, settings_of
from drpruning.reweight.schedule import Change, Schedule, Span
from drpruning.reweight.sheared import ShearedLoading
from drpruning.reweight.strategy import Strategy

__all__ = [
    "ADO",
    "STRATEGIES",
    "Bounds",
    "CVaR",
    "Change",
    "ChiSquareDRO",
    "Constant",
    "DRPruning",
    "DoReMi",
    "GroupDRO",
    "Observation",
    "Schedule",
    "ShearedLoading",
    "Span",
    "State",
    "Strategy",
    "Update",
    "build",
    "fewer",
    "megatron_blends",
    "parse_schedule",
    "read_schedule",
    "settings_of",
    "worst_fraction",
    "write_schedule",
]
