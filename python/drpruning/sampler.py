"""Domain sampler: batches of rows from the domains of a corpus, drawn by a mixture that can change at any step.

``drpruning._native`` implements it; ``rust/core/src/draw/balanced.rs`` documents the algorithm of balanced draws,
``rust/core/src/shuffle.rs`` the order of rows within a domain.
"""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from drpruning import _native
from drpruning.corpus import Corpus
from drpruning.corpus.documents import Documents, document_boundaries
from drpruning.errors import ConfigError, StateError, WeightError
from drpruning.inputs import shown

STATE_VERSION = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one rank in one step.

    Attributes:
        tokens: int64 or int32 (the sampler's ``dtype``), ``[rows, seq_len]``.
        domains: int32 ``[rows]``, index of each row's domain in ``Corpus.domains``.
        rows: int64 ``[rows]``, index of each row within its domain.
        step: Index of the batch in the stream, 0 for the first.
        end_token: Id of the token that ends each document; None if the corpus does not define one.
    """

    tokens: NDArray[np.int32] | NDArray[np.int64]
    domains: NDArray[np.int32]
    rows: NDArray[np.int64]
    step: int
    end_token: int | None = None

    def document_boundaries(self) -> Documents:
        """Find the document boundaries in ``tokens``; see :func:`drpruning.document_boundaries`.

        Raises:
            ConfigError: The corpus defines no end token.
        """
        if self.end_token is None:
            raise ConfigError(
                "the corpus defines no end token, which document boundaries need",
                next_step="Pass it: Corpus(..., end_token=2) or document_boundaries(batch.tokens, end_token=2).",
            )
        return document_boundaries(self.tokens, self.end_token)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The rows of a global batch, without their tokens.

    Attributes:
        domains: int32 ``[batch_size]``, index of each row's domain in ``Corpus.domains``.
        rows: int64 ``[batch_size]``, index of each row within its domain.
        step: Index of the batch in the stream.
    """

    domains: NDArray[np.int32]
    rows: NDArray[np.int64]
    step: int


class DomainSampler:
    """An endless stream of batches; the mixture can change between any two of them.

    The stream of global batches is a pure function of corpus fingerprint, seed, sequence length, batch size and the
    history of weights. Rank r of W ranks gets rows ``[r*B/W, (r+1)*B/W)`` of each global batch of B.

    Each domain is drawn without replacement, epoch after epoch. Each epoch has another order: a Feistel network with
    Philox keys permutes the rows of a large domain, a Fisher-Yates shuffle those of a small one.

    A sampler can be pickled. In a forked or spawned process it resumes after the last batch taken.

    Args:
        corpus: The corpus to draw from; its training split.
        weights: A number >= 0 for each domain of the corpus. Weights are normalised and rounded to multiples of 2^-42.
            A domain of weight 0 is not drawn.
        seq_len: Tokens in a row.
        batch_size: Rows in a global batch, over all ranks; a multiple of ``world_size``.
        seed: 0 to 2^64 - 1.
        rank: Rank of this process, 0 to ``world_size - 1``.
        world_size: Number of processes that share each global batch. It may differ when a state is loaded.
        draw: ``"balanced"``: earliest deadline first (EDF). Each domain earns its weight in credit per row and pays 1
            for each row drawn; among eligible domains, the one with the earliest deadline is drawn. At constant
            weights every domain stays within 1 - 1/(2n - 2) rows of its share for n domains (Tijdeman 1980). A change
            of weights does not repay earlier rows. The rows of a batch are shuffled. ``"random"``: the domain of each
            row is drawn independently, as in the paper's code; counts deviate by about the square root of the rows
            drawn.
        dtype: Type of ``Batch.tokens``, ``"int64"`` or ``"int32"``.
        prefetch: Number of batches that a background thread reads in advance; each needs the memory of a batch. 0: the
            calling thread reads each batch. Prefetching is transparent: weights, states and errors apply to the next
            batch. ``docs/sampler.md`` describes when it helps.

    Raises:
        WeightError: A weight is negative or not finite, all are 0, a domain has none, or a domain without a row has a
            positive one.
        ConfigError: Another argument is out of range.

    Example:
        >>> import tempfile, numpy as np, drpruning as dp
        >>> folder = tempfile.TemporaryDirectory()
        >>> for name in ("web", "code"):
        ...     np.arange(10_000, dtype="uint16").tofile(f"{folder.name}/{name}.bin")

        >>> corpus = dp.Corpus({name: f"{folder.name}/{name}.bin" for name in ("web", "code")}, dtype="uint16")
        >>> sampler = dp.DomainSampler(corpus, weights={"web": 0.75, "code": 0.25}, seq_len=16, batch_size=8, seed=17)
        >>> batch = next(sampler)
        >>> batch.tokens.shape, np.bincount(batch.domains).tolist()
        ((8, 16), [6, 2])
        >>> sampler.set_weights({"web": 0, "code": 1})
        >>> next(sampler).domains.tolist(), sampler.tokens
        ([1, 1, 1, 1, 1, 1, 1, 1], {'web': 96, 'code': 160})
        >>> folder.cleanup()
    """

    def __init__(
        self,
        corpus: Corpus,
        weights: Mapping[str, float],
        *,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        draw: Literal["balanced", "random"] = "balanced",
        dtype: Literal["int64", "int32"] = "int64",
        prefetch: int = 2,
    ) -> None:
        if not isinstance(corpus, Corpus):
            raise ConfigError(f"corpus is {shown(corpus)}; expected a Corpus", "For example Corpus.open(folder).")
        self.corpus = corpus
        self.seq_len = _check_int("seq_len", seq_len, 1, 2**31 - 1)
        self.batch_size = _check_int("batch_size", batch_size, 1, 2**24)
        self.seed = _check_int("seed", seed, 0, 2**64 - 1)
        self.world_size = _check_int("world_size", world_size, 1, self.batch_size)
        self.rank = _check_int("rank", rank, 0, self.world_size - 1)
        if batch_size % world_size:
            raise ConfigError(f"batch_size is {batch_size}; expected a multiple of world_size, {world_size}")
        if draw not in ("balanced", "random"):
            raise ConfigError(f'draw is {draw!r}; expected "balanced" or "random"')
        if dtype not in ("int64", "int32"):
            raise ConfigError(f'dtype is {dtype!r}; expected "int64" or "int32"')
        self.draw: Literal["balanced", "random"] = draw
        self.dtype: Literal["int64", "int32"] = dtype
        self.prefetch = _check_int("prefetch", prefetch, 0, 2**16)
        self._num_rows = corpus.num_rows(self.seq_len)
        self._native = _native.Sampler(
            corpus.reader(),
            self._ordered_weights(weights),
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            start=self.rank * self.rows_per_rank,
            count=self.rows_per_rank,
            seed=self.seed,
            draw=self.draw,
            dtype=self.dtype,
            prefetch=self.prefetch,
        )
        if self.prefetch:
            _prefetching.add(self)

    def __reduce__(self) -> tuple[Callable[..., DomainSampler], tuple[Any, ...]]:
        names = ("seq_len", "batch_size", "seed", "rank", "world_size", "draw", "dtype", "prefetch")
        return _unpickle, (self.corpus, self.weights, {name: getattr(self, name) for name in names}, self.state_dict())

    def __iter__(self) -> DomainSampler:
        return self

    def __next__(self) -> Batch:
        try:
            if not self.prefetch:
                return self.next_into(np.empty((self.rows_per_rank, self.seq_len), self.dtype))
            step, domains, rows, tokens = self._native.next()
        except MemoryError:
            size = self.rows_per_rank * self.seq_len * np.dtype(self.dtype).itemsize
            raise ConfigError(
                f"the system has no memory for a batch of {size:,} bytes: {self.rows_per_rank} rows of {self.seq_len} "
                f"tokens in {self.dtype}",
                next_step='Choose a smaller batch_size, seq_len or prefetch, or dtype="int32".',
            ) from None
        return Batch(tokens, domains, rows, step, self.corpus.end_token)

    def next_into(self, buffer: NDArray[np.int32] | NDArray[np.int64]) -> Batch:
        """Write the tokens of the next batch into ``buffer`` and return the batch.

        A prefetched batch is copied, which takes about half as long as reading it from the page cache; with
        ``prefetch=0`` it is read into ``buffer``. After an error the sampler is unchanged.

        Args:
            buffer: ``[rows_per_rank, seq_len]`` of the sampler's dtype, C-contiguous; for example the memory of a
                pinned torch tensor (``tensor.numpy()``).

        Raises:
            ConfigError: ``buffer`` has another shape, dtype or layout.
            CorpusError: A file changed since the corpus was opened, or contains an id outside the vocabulary.
        """
        shape = (self.rows_per_rank, self.seq_len)
        if not isinstance(buffer, np.ndarray):
            raise ConfigError(f"buffer is a {type(buffer).__name__}; expected a NumPy array, {self.dtype} {shape}")
        if buffer.shape != shape or buffer.dtype != self.dtype:
            raise ConfigError(f"buffer is {buffer.dtype} {buffer.shape}; expected {self.dtype} {shape}")
        if not (buffer.flags.c_contiguous and buffer.flags.writeable and buffer.flags.aligned):
            raise ConfigError("buffer is not C-contiguous, not aligned or not writeable; expected all three")
        step, domains, rows = self._native.next_into(buffer)
        return Batch(buffer, domains, rows, step, self.corpus.end_token)

    def skip(self, steps: int) -> None:
        """Skip ``steps`` batches without reading them.

        Balanced draws take some microseconds for any number of batches; random draws some nanoseconds per row.

        Raises:
            StateError: The target is past the end of the stream, row 2^63. The sampler is then unchanged.
        """
        self._native.skip(_check_int("steps", steps, 0, 2**63 - 1))

    def peek(self, step: int) -> BatchPlan:
        """Return the rows of batch ``step`` under the current weights, over all ranks, without moving the sampler.

        Takes the time of :meth:`skip`. Past batches are available back to the last change of weights or loaded state.

        Raises:
            StateError: ``step`` is before the last change of weights or loaded state, or past row 2^63 of the stream.
        """
        step = _check_int("step", step, 0, 2**63 - 1)
        return BatchPlan(*self._native.peek(step), step)

    @property
    def rows_per_rank(self) -> int:
        """Number of rows of this rank in a batch."""
        return self.batch_size // self.world_size

    @property
    def step(self) -> int:
        """Number of batches drawn so far."""
        return self._native.state().step

    @property
    def weights(self) -> dict[str, float]:
        """Mixture of the next batch; sums to 1."""
        return self._by_domain(self._native.weights())

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Set the weights of the next batch. The new weights do not compensate for earlier rows.

        Raises:
            WeightError: As for the constructor; the weights are then unchanged.
        """
        self._native.set_weights(self._ordered_weights(weights))

    @property
    def tokens(self) -> dict[str, int]:
        """Number of tokens drawn so far from each domain, over all ranks."""
        return self._by_domain([rows * self.seq_len for rows in self._native.state().rows])

    @property
    def epochs(self) -> dict[str, float]:
        """Number of epochs of each domain drawn so far; 0 for a domain without rows."""
        drawn = self._by_domain(self._native.state().rows)
        return {name: rows / max(1, self._num_rows[name]) for name, rows in drawn.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch taken, for :meth:`load_state_dict`: a few JSON numbers per domain."""
        saved = self._native.state()
        return {
            "version": STATE_VERSION,
            **self._identity(),
            "step": saved.step,
            "rows": saved.rows,
            "weights": saved.weights,
            "credit": saved.credit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume after the batch at which ``state`` was saved. Rank and world size may differ.

        Raises:
            StateError: The state has another version, corpus, seed, sequence length, batch size or ``draw``, or is
                damaged. The sampler is then unchanged.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"the saved sampler state is {shown(state)}; expected a mapping")
        for key, expected in {"version": STATE_VERSION, **self._identity()}.items():
            if key not in state:
                raise StateError(f"the saved sampler state has no key {key!r}")
            if type(state[key]) is not type(expected) or state[key] != expected:
                raise StateError(
                    f"the saved sampler state has {key} {shown(state[key])}; this sampler has {expected!r}"
                )
        try:
            self._native.restore(
                step=state["step"], rows=state["rows"], weights=state["weights"], credit=state["credit"]
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StateError(f"the saved sampler state is damaged: {shown(error)}") from None

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.corpus.fingerprint,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "draw": self.draw,
        }

    def _ordered_weights(self, weights: Mapping[str, float]) -> list[float]:
        names = self.corpus.domains
        if not isinstance(weights, Mapping):
            raise WeightError(f"weights is {shown(weights)}; expected a mapping from each domain to a number")
        unknown = [name for name in weights if name not in names]
        if missing := [name for name in names if name not in weights]:
            raise WeightError(
                f"domain {missing[0]!r} has no weight; expected one for each domain, 0 to exclude it",
                f"The weights name {unknown[0]!r}, which is not a domain of the corpus." if unknown else None,
            )
        if unknown:
            raise WeightError(f"got a weight for unknown domain {unknown[0]!r}; the corpus has {', '.join(names)}")
        try:
            return [float(weights[name]) for name in names]
        except (TypeError, ValueError, OverflowError) as error:
            raise WeightError(f"a weight is not a number: {error}") from None

    def _by_domain(self, values: list[T]) -> dict[str, T]:
        return dict(zip(self.corpus.domains, values, strict=True))


def _unpickle(
    corpus: Corpus, weights: dict[str, float], arguments: dict[str, Any], state: dict[str, Any]
) -> DomainSampler:
    sampler = DomainSampler(corpus, weights, **arguments)
    sampler.load_state_dict(state)
    return sampler


# A forked process inherits no threads. So prefetch threads stop before the fork, and each process starts its own with
# its next batch.

_prefetching: weakref.WeakSet[DomainSampler] = weakref.WeakSet()


def _pause_all() -> None:
    for sampler in tuple(_prefetching):
        sampler._native.pause()


def _resume_all() -> None:
    for sampler in tuple(_prefetching):
        sampler._native.resume()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_resume_all)


def _check_int(name: str, value: int, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; expected an integer") from None
    if not low <= number <= high:
        raise ConfigError(f"{name} is {number}; expected {low} to {high}")
    return number
