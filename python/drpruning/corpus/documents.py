"""Document boundaries within rows, for attention that does not cross documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drpruning import _native
from drpruning.errors import ConfigError

MAX_TOKENS = 2**31 - 1  # attention kernels take int32 ends


@dataclass(frozen=True, slots=True)
class Documents:
    """Document boundaries in a batch of rows.

    Attributes:
        cu_seqlens: int32 ``[documents + 1]``: 0, then the end of each document in the concatenated rows;
            the format of flash-attention's ``flash_attn_varlen_func`` for queries and keys.
        position_ids: int64 ``[rows, seq_len]``, position of each token in its document, 0 for the first.
        max_seqlen: Tokens of the longest document.
    """

    cu_seqlens: NDArray[np.int32]
    position_ids: NDArray[np.int64]
    max_seqlen: int


def document_boundaries(tokens: NDArray[np.int32] | NDArray[np.int64], end_token: int) -> Documents:
    """Find the documents in ``tokens``; each ends with ``end_token`` or at the end of its row.

    A document that continues in the next row counts as two documents, since rows do not attend to each other.

    Args:
        tokens: int32 or int64 ``[rows, seq_len]``, fewer than 2^31 tokens.
        end_token: Id of the token at the end of each document.

    Raises:
        ConfigError: An argument has another shape, dtype or range.

    Example:
        >>> import numpy as np, drpruning as dp
        >>> found = dp.document_boundaries(np.array([[5, 6, 0, 7], [8, 9, 5, 0]]), end_token=0)
        >>> found.cu_seqlens.tolist(), found.max_seqlen
        ([0, 3, 4, 8], 4)
        >>> found.position_ids.tolist()
        [[0, 1, 2, 0], [0, 1, 2, 3]]
    """
    if not isinstance(tokens, np.ndarray):
        raise ConfigError(
            f"tokens is a {type(tokens).__name__}; expected a NumPy array, int32 or int64 [rows, seq_len]",
            "Convert it with numpy.asarray(tokens).",
        )
    if tokens.ndim != 2 or tokens.dtype not in (np.int32, np.int64):
        raise ConfigError(f"tokens are {tokens.dtype} {tokens.shape}; expected int32 or int64 [rows, seq_len]")
    if tokens.shape[1] == 0 or tokens.size > MAX_TOKENS:
        raise ConfigError(
            f"tokens have the shape {tokens.shape}; expected rows of 1 token or more, {MAX_TOKENS} in all"
        )
    if not isinstance(end_token, int | np.integer) or not 0 <= end_token < 2**31:
        raise ConfigError(f"end_token is {end_token!r}; ids are 0 to {2**31 - 1}")
    if not tokens.flags.c_contiguous:
        tokens = tokens.copy()
    return Documents(*_native.find_documents(tokens, end_token))
