"""The corpus and the mixture to start from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.section import Positive, Section


class DataConfig(Section):
    """The corpus and the mixture to start from."""

    corpus: str = Field(
        description="a folder with corpus.json; `demo`: built from installed packages; `synthetic`: made-up text with "
        "the recipe's domain names, to try a recipe"
    )
    seq_len: Positive = Field(description="tokens in a row")
    reference_ratio: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        description="p_R: share of each domain; the mixture at the start and the centre of the chi-square ball"
    )
    draw: Literal["balanced", "random"] = Field(
        default="balanced", description="`balanced`: within a sample of the weights at every row; `random`: i.i.d."
    )
    document_mask: bool = Field(
        default=False, description="attention stays within documents, and positions start anew with each"
    )

    @model_validator(mode="after")
    def _ratio_sums_to_one(self) -> Self:
        total = sum(self.reference_ratio.values())
        if not self.reference_ratio:
            raise ValueError("reference_ratio names no domain")
        if abs(total - 1) > 1e-6:
            raise ValueError(f"reference_ratio sums to {total:.6g}; shares must sum to 1")
        return self
