"""The strategies that choose the data mixture after every evaluation.

:data:`STRATEGIES` maps the name of each strategy in recipes to its class:

>>> list(STRATEGIES)
['constant', 'schedule', 'sheared', 'group_dro', 'cvar', 'chi_square', 'drpruning', 'ado', 'doremi', 'odm', 'aioli']

A strategy is a frozen dataclass of settings. Its state is plain JSON-able data that the caller stores, so a run can be
saved, resumed and replayed::

    strategy = DRPruning(rho=0.1)
    state = strategy.init(["web", "code"], {"web": 0.8, "code": 0.2})
    state, update = strategy.update(state, Observation(step=50, tokens=10**6, params=1e8,
                                                       losses={"web": 2.1, "code": 1.2}, final_tokens=10**8))
    sampler.set_weights(update.weights)

``losses`` are held-out losses in nats per token. The weights are always finite: a domain whose loss is missing, NaN or
infinite keeps its weight, the others share the rest, and the status of the update is ``incomplete`` (``unchanged`` if
no domain has a loss: all weights stay; see :class:`UpdateStatus`). :class:`Bounds` limit the weights of any strategy.
"""

from __future__ import annotations

from drpruning.mixture.bounds import Bounds
from drpruning.mixture.observation import Observation, State, Update, UpdateStatus
from drpruning.mixture.registry import STRATEGIES, build, settings_of
from drpruning.mixture.schedule_io import megatron_blends, merge_spans, parse_schedule, read_schedule, write_schedule
from drpruning.mixture.strategies.ado import ADO
from drpruning.mixture.strategies.aioli import Aioli
from drpruning.mixture.strategies.chi_square import ChiSquareDRO
from drpruning.mixture.strategies.constant import Constant
from drpruning.mixture.strategies.cvar import CVaR, worst_fraction
from drpruning.mixture.strategies.drpruning import DRPruning
from drpruning.mixture.strategies.exponentiated import DoReMi, GroupDRO, ShearedLoading
from drpruning.mixture.strategies.odm import ODM
from drpruning.mixture.strategies.schedule import Schedule, ScheduleChange, ScheduleSpan
from drpruning.mixture.strategy import Strategy

__all__ = [
    "ADO",
    "ODM",
    "STRATEGIES",
    "Aioli",
    "Bounds",
    "CVaR",
    "ChiSquareDRO",
    "Constant",
    "DRPruning",
    "DoReMi",
    "GroupDRO",
    "Observation",
    "Schedule",
    "ScheduleChange",
    "ScheduleSpan",
    "ShearedLoading",
    "State",
    "Strategy",
    "Update",
    "UpdateStatus",
    "build",
    "megatron_blends",
    "merge_spans",
    "parse_schedule",
    "read_schedule",
    "settings_of",
    "worst_fraction",
    "write_schedule",
]
