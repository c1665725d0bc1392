"""Batches of rows drawn from the domains of a corpus, in proportions that may change at any step."""

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
from drpruning.documents import Documents, document_boundaries
from drpruning.errors import ConfigError, StateError, WeightError

STATE_VERSION = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one rank trains on in one step.

    Attributes:
        tokens: int64 (or int32, as the sampler was told) ``[rows, seq_len]``.
        domains: int32 ``[rows]``, number of each row's domain in ``Corpus.domains``.
        rows: int64 ``[rows]``, number of each row within its domain.
        step: Number of the batch in the stream, 0 for the first.
        end_token: Id at the end of each document; None if the corpus does not say.
    """

    tokens: NDArray[np.int32] | NDArray[np.int64]
    domains: NDArray[np.int32]
    rows: NDArray[np.int64]
    step: int
    end_token: int | None = None

    def document_boundaries(self) -> Documents:
        """Where documents begin and end in ``tokens``, found now; see :func:`drpruning.document_boundaries`.

        Raises:
            ConfigError: The corpus names no end token.
        """
        if self.end_token is None:
            raise ConfigError(
                "the corpus does not say which token ends a document",
                next_step="Say so: Corpus(..., end_token=2) or document_boundaries(batch.tokens, end_token=2).",
            )
        return document_boundaries(self.tokens, self.end_token)


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of a global batch, not read.

    Attributes:
        domains: int32 ``[batch_size]``, number of each row's domain in ``Corpus.domains``.
        rows: int64 ``[batch_size]``, number of each row within its domain.
        step: Number of the batch in the stream.
    """

    domains: NDArray[np.int32]
    rows: NDArray[np.int64]
    step: int


class DomainSampler:
    """An endless stream of batches with a mixture that can be changed between any two of them.

    The stream of global batches is a pure function of corpus fingerprint, seed, sequence length, batch size and the
    history of weights. Rank r of W ranks gets rows ``[r*B/W, (r+1)*B/W)`` of each global batch of B.

    Each domain is drawn without replacement, epoch after epoch, each epoch in an order of its own.

    A sampler may be pickled, and used in a process that was forked: there it goes on by itself from where it was.

    Args:
        corpus: What to draw from; its training split.
        weights: For each domain of the corpus a number >= 0; they are normalised, and rounded to
            multiples of 2^-42. A domain of weight 0 is not drawn.
        seq_len: Tokens in a row.
        batch_size: Rows in a global batch, over all ranks; a multiple of ``world_size``.
        seed: 0 to 2^64 - 1.
        rank: This process's number, 0 to ``world_size - 1``.
        world_size: Processes that share each global batch. May differ when a state is loaded.
        draw: ``"balanced"``: at constant weights no domain is ever off by a whole row from its share (1 - 1/(2n - 2)
            rows for n domains; Tijdeman 1980), a change of weights repays nothing of the past, and the rows of a
            batch are shuffled. ``"random"``: each row's domain is drawn independently, as in the paper's code; counts
            stray by about the square root of the rows drawn.
        dtype: Type of ``Batch.tokens``, ``"int64"`` or ``"int32"``.
        prefetch: Batches that a thread reads ahead of their use; their memory is taken beside that of the batch in use.
            0: each is read when it is asked for. Nothing else depends on it: weights, states and errors are those of
            the next batch, whatever was read ahead. ``docs/sampler.md`` has figures.

    Raises:
        WeightError: Weights are not usable, or not one for each domain, or a domain without a row has one.
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
        self.corpus = corpus
        self.seq_len = _whole("seq_len", seq_len, 1, 2**31 - 1)
        self.batch_size = _whole("batch_size", batch_size, 1, 2**24)
        self.seed = _whole("seed", seed, 0, 2**64 - 1)
        self.world_size = _whole("world_size", world_size, 1, self.batch_size)
        self.rank = _whole("rank", rank, 0, self.world_size - 1)
        if batch_size % world_size:
            raise ConfigError(f"batch_size is {batch_size}, not a multiple of world_size {world_size}")
        if draw not in ("balanced", "random"):
            raise ConfigError(f'draw is {draw!r}; it can be "balanced" or "random"')
        if dtype not in ("int64", "int32"):
            raise ConfigError(f'dtype is {dtype!r}; it can be "int64" or "int32"')
        self.draw: Literal["balanced", "random"] = draw
        self.dtype: Literal["int64", "int32"] = dtype
        self.prefetch = _whole("prefetch", prefetch, 0, 2**16)
        self._num_rows = corpus.num_rows(self.seq_len)
        self._native = _native.Sampler(
            corpus.reader(),
            self._in_order(weights),
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
            _reading_ahead.add(self)

    def __reduce__(self) -> tuple[Callable[..., DomainSampler], tuple[Any, ...]]:
        names = ("seq_len", "batch_size", "seed", "rank", "world_size", "draw", "dtype", "prefetch")
        return _unpickle, (self.corpus, self.weights, {name: getattr(self, name) for name in names}, self.state_dict())

    def __iter__(self) -> DomainSampler:
        return self

    def __next__(self) -> Batch:
        if not self.prefetch:
            return self.next_into(np.empty((self.rows_per_rank, self.seq_len), self.dtype))
        step, domains, rows, tokens = self._native.next()
        return Batch(tokens, domains, rows, step, self.corpus.end_token)

    def next_into(self, buffer: NDArray[np.int32] | NDArray[np.int64]) -> Batch:
        """The next batch, its tokens in ``buffer``: ``[rows_per_rank, seq_len]`` of the sampler's dtype, C-contiguous.

        The memory may be anyone's, a pinned torch tensor's for instance (``tensor.numpy()``). A batch that was read
        ahead is copied, which takes about half as long as reading it from the page cache; with ``prefetch=0`` it is
        read into ``buffer``. After an error the sampler is where it was.

        Raises:
            ConfigError: ``buffer`` is not such an array.
            CorpusError: A file changed since the corpus was opened, or holds an id outside the vocabulary.
        """
        shape = (self.rows_per_rank, self.seq_len)
        if buffer.shape != shape or buffer.dtype != self.dtype:
            raise ConfigError(f"the buffer is {buffer.dtype} {buffer.shape}; expected {self.dtype} {shape}")
        if not (buffer.flags.c_contiguous and buffer.flags.writeable):
            raise ConfigError("the buffer must be C-contiguous and writeable")
        step, domains, rows = self._native.next_into(buffer)
        return Batch(buffer, domains, rows, step, self.corpus.end_token)

    def skip(self, steps: int) -> None:
        """Passes over ``steps`` batches without reading them.

        Balanced draws take some microseconds, however many batches; random ones some nanoseconds for each row.

        Raises:
            StateError: That leads past row 2^63 of the stream. The sampler then stays where it is.
        """
        self._native.skip(_whole("steps", steps, 0, 2**63 - 1))

    def peek(self, step: int) -> Plan:
        """The rows of batch number ``step`` under the weights now, over all ranks; the sampler stays where it is.

        Takes the time of :meth:`skip`. A batch that was already drawn is known back to the last change of weights or
        the state that was loaded.

        Raises:
            StateError: ``step`` lies before that, or past row 2^63 of the stream.
        """
        step = _whole("step", step, 0, 2**63 - 1)
        return Plan(*self._native.peek(step), step)

    @property
    def rows_per_rank(self) -> int:
        """Rows in this rank's part of a batch."""
        return self.batch_size // self.world_size

    @property
    def step(self) -> int:
        """Batches drawn so far."""
        return self._native.state()[0]

    @property
    def weights(self) -> dict[str, float]:
        """The mixture of the next batch; sums to 1."""
        return self._by_domain(self._native.weights())

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Draws by ``weights`` from the next batch on. Nothing of the past is repaid.

        Raises:
            WeightError: As for the arguments of the class; the weights then stay as they are.
        """
        self._native.set_weights(self._in_order(weights))

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens drawn so far from each domain, over all ranks."""
        return self._by_domain([rows * self.seq_len for rows in self._native.state()[1]])

    @property
    def epochs(self) -> dict[str, float]:
        """How often each domain has been gone through so far; 0 for one that has no rows."""
        drawn = self._by_domain(self._native.state()[1])
        return {name: rows / max(1, self._num_rows[name]) for name, rows in drawn.items()}

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on after the last batch; JSON-able, some bytes for each domain."""
        step, rows, weights, credit = self._native.state()
        return {
            "version": STATE_VERSION,
            **self._identity(),
            "step": step,
            "rows": rows,
            "weights": weights,
            "credit": credit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on after the batch at which ``state`` was saved. Rank and world size may have changed since.

        Raises:
            StateError: The state is of another version, corpus, seed, sequence length, batch size or way of drawing,
                or damaged. The sampler then stays as it is.
        """
        for key, here in {"version": STATE_VERSION, **self._identity()}.items():
            if key not in state:
                raise StateError(f"the saved sampler state has no {key!r}")
            if state[key] != here:
                raise StateError(f"the saved sampler state has {key} {state[key]!r}; this sampler has {here!r}")
        try:
            self._native.restore(state["step"], state["rows"], state["weights"], state["credit"])
        except (KeyError, TypeError, OverflowError) as error:
            raise StateError(f"the saved sampler state is damaged: {error}") from None

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.corpus.fingerprint,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "draw": self.draw,
        }

    def _in_order(self, weights: Mapping[str, float]) -> list[float]:
        names = self.corpus.domains
        if missing := [name for name in names if name not in weights]:
            raise WeightError(f"no weight for domain {missing[0]!r}; each needs one, 0 if it is not to be drawn")
        if unknown := [name for name in weights if name not in names]:
            raise WeightError(f"a weight for {unknown[0]!r}, which is no domain; the corpus has {', '.join(names)}")
        try:
            return [float(weights[name]) for name in names]
        except (TypeError, ValueError) as error:
            raise WeightError(f"weights must be numbers: {error}") from None

    def _by_domain(self, values: list[T]) -> dict[str, T]:
        return dict(zip(self.corpus.domains, values, strict=True))


def _unpickle(
    corpus: Corpus, weights: dict[str, float], arguments: dict[str, Any], state: dict[str, Any]
) -> DomainSampler:
    sampler = DomainSampler(corpus, weights, **arguments)
    sampler.load_state_dict(state)
    return sampler


# A forked process has no threads. Threads end before the fork and start again, in each process, with the next batch.

_reading_ahead: weakref.WeakSet[DomainSampler] = weakref.WeakSet()


def _pause_all() -> None:
    for sampler in tuple(_reading_ahead):
        sampler._native.pause()


def _resume_all() -> None:
    for sampler in tuple(_reading_ahead):
        sampler._native.resume()


os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_resume_all)


def _whole(name: str, value: int, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number") from None
    if not low <= number <= high:
        raise ConfigError(f"{name} is {number}; it can be {low} to {high}")
    return number
