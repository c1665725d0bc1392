"""The section ``data``: the corpus and the reference ratio."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from drpruning.config.section import Positive, Section, Shares, StaticName


class DataConfig(Section):
    """The corpus and the reference ratio."""

    corpus: str = Field(
        description="Corpus: a folder with corpus.json; `demo` for text of installed packages; or `synthetic` for "
        "generated text in the domains of the recipe, to test a recipe."
    )
    seq_len: Positive = Field(description="Tokens per row.")
    reference_ratio: Shares | StaticName = Field(
        description="Share of each domain; the shares sum to 1. It is the mixture at the start and the centre of the "
        "chi-square ball. Or the name of a static mixture of all domains of the corpus: `natural`, `uniform`, "
        "`temperature:0.5`, `unimax:4` (epochs over the tokens of the stages prune and continue), or "
        "`average:RUN`, what the run in a folder drew. The run folder stores the shares of a name. In `--set` and in "
        "methods, `power:0.5` is the recipe's ratio to a power."
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
