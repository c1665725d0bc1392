"""The section ``data``: the corpus and the reference ratio."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.section import Positive, Section


class DataConfig(Section):
    """The corpus and the reference ratio."""

    corpus: str = Field(
        description="Corpus: a folder with corpus.json; `demo` for text of installed packages; or `synthetic` for "
        "generated text in the domains of the recipe, to test a recipe."
    )
    seq_len: Positive = Field(description="Tokens per row.")
    reference_ratio: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        description="Share of each domain; the shares sum to 1. It is the mixture at the start and the centre of the "
        "chi-square ball."
    )
    draw: Literal["balanced", "random"] = Field(
        default="balanced",
        description="Order of the domains: `balanced` keeps the number of rows of each domain close to its weight at "
        "every row; `random` draws rows independently.",
    )
    document_mask: bool = Field(
        default=False,
        description="Restrict attention to the tokens of a document, and restart positions at each document.",
    )

    @model_validator(mode="after")
    def _ratio_sums_to_one(self) -> Self:
        total = sum(self.reference_ratio.values())
        if not self.reference_ratio:
            raise ValueError("reference_ratio names no domain")
        if abs(total - 1) > 1e-6:
            raise ValueError(f"reference_ratio sums to {total:.6g}; shares must sum to 1")
        return self
