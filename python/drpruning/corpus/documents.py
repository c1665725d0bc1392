"""Where documents begin and end within rows, for attention that does not cross them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drpruning import _native
from drpruning.errors import ConfigError

MAX_TOKENS = 2**31 - 1  # ends are int32, as attention kernels want them


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents in a batch of rows.

    Attributes:
        cu_seqlens: int32 ``[documents + 1]``: 0, and where each document ends in the rows laid one after the other;
            what flash-attention's ``flash_attn_varlen_func`` takes for queries and keys.
        position_ids: int64 ``[rows, seq_len]``, each token's place in its document, 0 for the first.
        max_seqlen: Tokens of the longest document.
    """

    cu_seqlens: NDArray[np.int32]
    position_ids: NDArray[np.int64]
    max_seqlen: int


def document_boundaries(tokens: NDArray[np.int32] | NDArray[np.int64], end_token: int) -> Documents:
    """The documents in ``tokens``; each ends with ``end_token``, or where its row ends.

    The rest of a document that began in another row counts as a document of its own, since a row does not see another.

    Args:
        tokens: int32 or int64 ``[rows, seq_len]``, fewer than 2^31 tokens.
        end_token: Id of the token at the end of each document.

    Raises:
        ConfigError: An argument is not like that.

    Example:
        >>> import numpy as np, drpruning as dp
        >>> found = dp.document_boundaries(np.array([[5, 6, 0, 7], [8, 9, 5, 0]]), end_token=0)
        >>> found.cu_seqlens.tolist(), found.max_seqlen
        ([0, 3, 4, 8], 4)
        >>> found.position_ids.tolist()
        [[0, 1, 2, 0], [0, 1, 2, 3]]
    """
    if tokens.ndim != 2 or tokens.dtype not in (np.int32, np.int64):
        raise ConfigError(f"tokens are {tokens.dtype} {tokens.shape}; expected int32 or int64 [rows, seq_len]")
    if tokens.shape[1] == 0 or tokens.size > MAX_TOKENS:
        raise ConfigError(
            f"tokens have the shape {tokens.shape}; expected rows of 1 token or more, {MAX_TOKENS} in all"
        )
    if not 0 <= end_token < 2**31:
        raise ConfigError(f"end_token is {end_token}; ids are 0 to {2**31 - 1}")
    if not tokens.flags.c_contiguous:
        tokens = tokens.copy()
    return Documents(*_native.find_documents(tokens, end_token))
