"""The scaling law of a domain's loss curve: fitted during the run, to predict the end of the curve.

The law is ::

    loss(P, T) = A P^-alpha T^-beta + E

with ``P`` parameters in use (the expected number, while units are pruned), ``T`` tokens trained on in the stage, ``E``
the irreducible loss. It is the law of Hoffmann et al. (2022, eq. 10) in the product form that Deng et al. (2024) use to
predict the end of pruning and of continued pretraining. A learning rate that decays bends real curves below it; where
the schedule is known, :class:`LearningRates` takes that into account.

:func:`fit_size_law` fits ``loss(P) = A P^-alpha + E`` to finished models of several sizes, for reference losses.
"""

from drpruning.scaling.annealing import LearningRates
from drpruning.scaling.fit import fit_scaling_law, fit_scaling_laws
from drpruning.scaling.law import LawStatus, ScalingLaw
from drpruning.scaling.learning_rates import parse_learning_rates
from drpruning.scaling.sizes import SizeLaw, fit_size_law

__all__ = [
    "LawStatus",
    "LearningRates",
    "ScalingLaw",
    "SizeLaw",
    "fit_scaling_law",
    "fit_scaling_laws",
    "fit_size_law",
    "parse_learning_rates",
]
