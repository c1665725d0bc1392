"""The compiled module of drpruning, defined in `rust/python`; `drpruning` has the public API.

Functions release the GIL while they read files or solve large problems. Errors are classes of `drpruning.errors`;
`ValueError` means an invalid argument of a binding, `OSError` that the system cannot read a file.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, Protocol, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BallSolution",
    "BallSolutions",
    "LawFit",
    "Sampler",
    "SamplerState",
    "TokenReader",
    "__version__",
    "find_documents",
    "fit_law",
    "permuted",
    "profile_law",
    "project",
    "project_many",
    "read_index",
    "verify_index",
    "verify_mds",
    "worst_case",
    "worst_case_many",
]

__version__: str

_Tokens = NDArray[np.int32] | NDArray[np.int64]
_Status = Literal["center", "interior", "boundary", "face"]

class _MdsShard(Protocol):
    """See `drpruning.corpus.mds.MdsShard`."""

    @property
    def path(self) -> str | PathLike[str]: ...
    @property
    def samples(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def zstd_bytes(self) -> int | None: ...
    @property
    def columns(self) -> Sequence[int | None]: ...
    @property
    def token_column(self) -> int: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def encoding(self) -> Literal["plain", "shaped", "typed"]: ...

def project(y: NDArray[np.float64], p: NDArray[np.float64], rho: float, floor: float) -> BallSolution:
    """Minimise 1/2 |q - y|^2 over the ball around `p`; see `drpruning.project`."""

def worst_case(
    losses: NDArray[np.float64],
    p: NDArray[np.float64],
    rho: float,
    floor: float,
    penalties: NDArray[np.float64],
) -> BallSolution:
    """Maximise <q, losses>, less a penalty for each entry that moves, over the ball; see `drpruning.worst_case`."""

def find_documents(tokens: _Tokens, end_token: int) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Return `cu_seqlens`, `position_ids` and `max_seqlen`; see `drpruning.document_boundaries`."""

def fit_law(
    x: NDArray[np.float64], t: NDArray[np.float64], y: NDArray[np.float64], delta: float, learn_alpha: bool
) -> LawFit: ...
def profile_law(
    x: NDArray[np.float64], t: NDArray[np.float64], y: NDArray[np.float64], delta: float, alpha: float, beta: float
) -> LawFit: ...
def project_many(
    y: NDArray[np.float64], p: NDArray[np.float64], rho: NDArray[np.float64], floor: NDArray[np.float64]
) -> BallSolutions:
    """Solve `project` for each row of `y`; `p`, `rho` and `floor` have one entry for all rows or one for each."""

def worst_case_many(
    losses: NDArray[np.float64], p: NDArray[np.float64], rho: NDArray[np.float64], floor: NDArray[np.float64]
) -> BallSolutions:
    """Solve `worst_case` for each row of `losses`; arguments as in `project_many`."""

def permuted(seed: int, size: int, count: int) -> NDArray[np.uint64]:
    """Return the first `count` numbers of the permutation of 0 to `size` - 1 with key `seed`."""

def verify_mds(shard: _MdsShard) -> int:
    """Read every sample of an MDS shard, check it against the header, and return the number of tokens."""

def read_index(path: str | PathLike[str]) -> tuple[str, int, int]:
    """Read the header of the `.idx` of a `.bin` file; return dtype, number of tokens and number of documents."""

def verify_index(path: str | PathLike[str]) -> tuple[str, int, int]:
    """Check every sequence in the `.idx` of a `.bin` file; as `read_index`."""

@final
class BallSolution:
    """A point of the ball with its certificate; see `drpruning.Solution`."""

    @property
    def weights(self) -> NDArray[np.float64]: ...
    @property
    def divergence(self) -> float: ...
    @property
    def status(self) -> _Status: ...
    @property
    def ball_multiplier(self) -> float: ...
    @property
    def sum_multiplier(self) -> float: ...
    @property
    def floor_multipliers(self) -> NDArray[np.float64]: ...
    @property
    def at_floor(self) -> NDArray[np.bool_]: ...

@final
class LawFit:
    """A fitted law in the form of the core, `(u, w, alpha, beta)`, with the objective at its parameters."""

    @property
    def level(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def beta(self) -> float: ...
    @property
    def objective(self) -> float: ...

@final
class BallSolutions:
    """The solutions of a batch: the attributes of `BallSolution` with a leading axis of rows."""

    @property
    def weights(self) -> NDArray[np.float64]: ...
    @property
    def divergence(self) -> NDArray[np.float64]: ...
    @property
    def status(self) -> list[_Status]: ...
    @property
    def ball_multiplier(self) -> NDArray[np.float64]: ...
    @property
    def sum_multiplier(self) -> NDArray[np.float64]: ...
    @property
    def floor_multipliers(self) -> NDArray[np.float64]: ...
    @property
    def at_floor(self) -> NDArray[np.bool_]: ...

@final
class SamplerState:
    """The state of a sampler: batches drawn, and for each domain rows drawn, weight and credit, in units of 2^-42."""

    @property
    def step(self) -> int: ...
    @property
    def rows(self) -> list[int]: ...
    @property
    def weights(self) -> list[int]: ...
    @property
    def credit(self) -> list[int]: ...

@final
class Sampler:
    """The sampler and prefetch queue of one rank; see `drpruning.DomainSampler`."""

    def __new__(
        cls,
        reader: TokenReader,
        weights: Sequence[float],
        *,
        seq_len: int,
        batch_size: int,
        start: int,
        count: int,
        seed: int,
        draw: Literal["balanced", "random"],
        dtype: Literal["int64", "int32"],
        prefetch: int,
    ) -> Sampler:
        """Create a sampler that reads rows `start` to `start + count` of each batch of `batch_size` rows."""

    def next(self) -> tuple[int, NDArray[np.int32], NDArray[np.int64], _Tokens]:
        """Return step, domains, rows and tokens of the next batch."""

    def next_into(self, tokens: _Tokens) -> tuple[int, NDArray[np.int32], NDArray[np.int64]]:
        """Write the next batch's tokens into `tokens`, `[count, seq_len]`; return step, domains and rows."""

    def set_weights(self, weights: Sequence[float]) -> None:
        """Set the weights of the next batch, and discard prefetched batches."""

    def weights(self) -> list[float]:
        """Return the mixture of the next batch."""

    def state(self) -> SamplerState:
        """Return the state to save."""

    def restore(self, *, step: int, rows: Sequence[int], weights: Sequence[int], credit: Sequence[int]) -> None:
        """Resume from the attributes of a state, and discard prefetched batches."""

    def skip(self, steps: int) -> None:
        """Skip `steps` batches, and discard prefetched batches."""

    def peek(self, step: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return domains and rows of batch `step`, over all ranks."""

    def pause(self) -> None:
        """Stop the prefetch thread until `resume`."""

    def resume(self) -> None:
        """Allow the next batch to start the prefetch thread."""

@final
class TokenReader:
    """Reads rows of tokens from the shards of all domains, through an LRU cache of file handles."""

    def __new__(
        cls,
        domains: Sequence[tuple[str, Sequence[tuple[str | PathLike[str], str | None] | _MdsShard]]],
        vocab_size: int | None = None,
        *,
        cache: str | PathLike[str],
    ) -> TokenReader:
        """Open the files of each domain: `.bin` files with a dtype, if known, or MDS shards.

        MDS shards that cannot be read in place are materialized in the folder `cache`.
        """

    def tokens(self) -> list[int]:
        """Return the number of tokens of each domain."""

    def shards(self, domain: int) -> list[tuple[Path, str, int, int | None, int]]:
        """Return path, dtype, tokens, documents (None if unknown) and bytes of each shard of a domain."""

    def ends_sha256(self, domain: int) -> list[bytes]:
        """Return the SHA-256 of the first and last 4,096 bytes of each shard of a domain."""

    def gather(
        self,
        domains: NDArray[np.int32],
        rows: NDArray[np.int64],
        out: NDArray[np.int64] | NDArray[np.int32],
        *,
        threads: int = 1,
    ) -> None:
        """Read row `rows[i]` of domain `domains[i]` into `out[i]`; `out` is `[len(rows), seq_len]`."""
