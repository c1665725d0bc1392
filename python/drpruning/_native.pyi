"""The compiled module of drpruning, defined in `rust/python`. The public API is in `drpruning`."""

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

def project(y: NDArray[np.float64], p: NDArray[np.float64], rho: float, floor: float) -> BallSolution: ...
def worst_case(
    losses: NDArray[np.float64],
    p: NDArray[np.float64],
    rho: float,
    floor: float,
    penalties: NDArray[np.float64],
) -> BallSolution: ...
def find_documents(tokens: _Tokens, end_token: int) -> tuple[NDArray[np.int32], NDArray[np.int64], int]: ...
def fit_law(
    x: NDArray[np.float64], t: NDArray[np.float64], y: NDArray[np.float64], delta: float, learn_alpha: bool
) -> LawFit: ...
def profile_law(
    x: NDArray[np.float64], t: NDArray[np.float64], y: NDArray[np.float64], delta: float, alpha: float, beta: float
) -> LawFit: ...
def project_many(
    y: NDArray[np.float64], p: NDArray[np.float64], rho: NDArray[np.float64], floor: NDArray[np.float64]
) -> BallSolutions: ...
def worst_case_many(
    losses: NDArray[np.float64], p: NDArray[np.float64], rho: NDArray[np.float64], floor: NDArray[np.float64]
) -> BallSolutions: ...
def permuted(seed: int, size: int, count: int) -> NDArray[np.uint64]: ...
def verify_mds(shard: _MdsShard) -> int: ...
def read_index(path: str | PathLike[str]) -> tuple[str, int, int]: ...
def verify_index(path: str | PathLike[str]) -> tuple[str, int, int]: ...

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
class Sampler:
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
    ) -> Sampler: ...
    def next(self) -> tuple[int, NDArray[np.int32], NDArray[np.int64], _Tokens]: ...
    def next_into(self, tokens: _Tokens) -> tuple[int, NDArray[np.int32], NDArray[np.int64]]: ...
    def set_weights(self, weights: Sequence[float]) -> None: ...
    def weights(self) -> list[float]: ...
    def state(self) -> tuple[int, list[int], list[int], list[int]]: ...
    def restore(self, step: int, drawn: Sequence[int], weights: Sequence[int], credit: Sequence[int]) -> None: ...
    def skip(self, steps: int) -> None: ...
    def peek(self, step: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...

@final
class TokenReader:
    def __new__(
        cls,
        domains: Sequence[tuple[str, Sequence[tuple[str | PathLike[str], str | None] | _MdsShard]]],
        vocab_size: int | None = None,
        *,
        cache: str | PathLike[str],
    ) -> TokenReader: ...
    def tokens(self) -> list[int]: ...
    def shards(self, domain: int) -> list[tuple[Path, str, int, int | None, int]]: ...
    def ends_sha256(self, domain: int) -> list[bytes]: ...
    def gather(
        self,
        domains: NDArray[np.int32],
        rows: NDArray[np.int64],
        out: NDArray[np.int64] | NDArray[np.int32],
        *,
        threads: int = 1,
    ) -> None: ...
