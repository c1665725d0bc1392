"""The base class of the sections of a recipe, and their types of numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from drpruning.mixture.static import check_name

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Losses = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]

PerDomain = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


def sums_to_one(shares: dict[str, float]) -> dict[str, float]:
    """Return ``shares`` if they sum to 1.

    Raises:
        ValueError: They do not, or there is none.
    """
    if not shares:
        raise ValueError("expected a share for each domain, got none")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"the shares sum to {sum(shares.values()):.6g}; expected 1")
    return shares


Shares = Annotated[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], AfterValidator(sums_to_one)]
StaticName = Annotated[str, AfterValidator(check_name)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())
