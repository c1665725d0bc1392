"""The base class of the sections of a recipe, and their types of numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Losses = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]

PerDomain = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())
