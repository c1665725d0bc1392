"""Repair an extracted model in closed form: fold what the cut removed into the weights that stay.

A projection of the extracted model reads fewer units than in the model before the cut, and the residual stream lacks
what removed blocks wrote. The repair changes the weights W of the projections that remain, one after another in the
order of the forward pass, by the ridge regression ::

    D = argmin  sum over tokens |r - D x|^2 + lambda |D|^2  =  R^T X (X^T X + lambda I)^-1,      W <- W + D

with the projection's inputs x [I] in the extracted model, whose earlier projections are repaired already, and the
error r [O] of what it writes, see :func:`repair`. Shapes do not change, and no parameter is added; a bias that exists
is an input that is always one. ``D = 0`` is feasible, so that for any lambda the error on the calibration tokens is not
larger than before. A penalty on the change D, not on W, keeps the extracted weights where the tokens say nothing.

A similar regression without the stream: OSSCAR (Meng et al. 2024), FLAP (An et al. 2024, biases only).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drpruning.errors import ConfigError
from drpruning.pruning.architecture_spec import Dimension, Part
from drpruning.pruning.architectures import architecture_of, experts_per_token, projections_of
from drpruning.pruning.extract import KeptUnits, unit_indices
from drpruning.pruning.target import Target, widest_input
from drpruning.pruning.verification import TinyModels, tiny_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

RIDGE = 0.01
"""lambda in units of the mean diagonal entry of X^T X."""
TOKENS_PER_INPUT = 4
"""Fewest calibration tokens for each input of a projection. With 2, a cut of SmolLM2 by activation was 0.2 nats worse
than without the repair, with 8 it was 1.2 nats better (docs/benchmarks/masks.md)."""


@dataclass(frozen=True)
class RepairedModule:
    """Squared errors of a projection over the calibration tokens, relative to the squares of what it is to write.

    Attributes:
        before: Without the repair of this projection, with that of earlier ones.
        after: With it; at most ``before``.
    """

    before: float
    after: float


@torch.no_grad()
def repair(
    reference: PreTrainedModel,
    pruned: PreTrainedModel,
    kept: KeptUnits,
    batches: Iterable[Tensor],
    *,
    ridge: float = RIDGE,
) -> dict[str, RepairedModule]:
    """Change the projections of ``pruned`` so that its stream and activations come near those of ``reference``.

    Embeddings, norms and the output layer do not change. Of what a removed block or hidden unit contributed,
    the part that is linear in the inputs of the projections is folded.

    Both models run block by block. In memory stay the streams of all tokens, two tensors [tokens, hidden], and what the
    projections of one block of ``reference`` write of the kept units. Products and the solution are float64; X^T X has
    the inputs of one projection squared.

    Args:
        reference: The model before the cut, computing all units (masked ones may be zero).
        pruned: Extracted from ``reference``; changed in place.
        kept: The units of ``reference`` in ``pruned``.
        batches: Tokens, int64 [rows, length]; several times as many tokens as a projection has inputs.
        ridge: lambda / mean diagonal of X^T X, positive.

    Returns:
        The errors by the name of the projection in ``pruned``.

    Raises:
        ConfigError: There is no batch, ``ridge`` is not positive, or the architecture is not supported.
    """
    tokens = list(batches)
    if not tokens or not ridge > 0:
        raise ConfigError(f"repair needs at least one batch and a positive ridge, got {len(tokens)} and {ridge}")
    architecture = architecture_of(pruned.config)
    training = pruned.training
    pruned.eval()
    found: dict[str, RepairedModule] = {}
    with torch.compiler.set_stance("force_eager"):
        before, after = _Streams(reference, tokens), _Streams(pruned, tokens)
        before.check_supported()
        passed = 0  # blocks of the reference
        for block, source in enumerate(kept.layers):
            for removed in range(passed, source):
                before.advance(removed)
            rows = {
                axis: index.to(reference.device) for axis, index in unit_indices(reference.config, kept, block).items()
            }
            expected = before.written(source, rows)
            for group in projections_of(pruned.config):
                sums = _Sums()
                for batch, goal in enumerate(expected):
                    small = after.watch(block, batch)
                    sums.add(
                        small.inputs[group[0].name],
                        {part.name: (goal[part.name], small.written(part)) for part in group},
                    )
                for part in group:
                    name = f"{architecture.blocks}.{block}.{part.name}"
                    found[name] = sums.repair(part.name, pruned.get_submodule(name), ridge)
            after.advance(block)
            passed = source + 1
    pruned.train(training)
    return found


def check_calibration(tokens: int, config: PreTrainedConfig, target: Target) -> None:
    """Check that there are :data:`TOKENS_PER_INPUT` calibration tokens for each input of a projection.

    With fewer, the regression fits the calibration text, and the model becomes worse on other text.

    Args:
        tokens: Calibration tokens.
        config: Configuration of the model before the cut.
        target: Shape of the pruned model.

    Raises:
        ConfigError: There are fewer.
    """
    inputs = widest_input(config, target)
    if tokens < TOKENS_PER_INPUT * inputs:
        raise ConfigError(
            f"the repair has {tokens:,} calibration tokens for projections with {inputs:,} inputs; expected at least "
            f"{TOKENS_PER_INPUT * inputs:,}",
            "Calibrate on more text (prune.calibration.tokens in a recipe, --rows of `export prune`), or leave the "
            "repair out.",
        )


@torch.no_grad()
def check_repairable(config: Any) -> None:
    """Check on a tiny model of a configuration's class that :func:`repair` supports it.

    Args:
        config: A transformers configuration; its features stay, its sizes become tiny.

    Raises:
        ConfigError: As :func:`repair`.
    """
    models = TinyModels(tiny_config(config, tied=False))
    with torch.compiler.set_stance("force_eager"):
        _Streams(models.stock(), [models.tokens]).check_supported()


@dataclass(frozen=True)
class _BlockOutputs:
    """The stream before and after a block, the projections that write to it by name, inputs and outputs of all."""

    stream: Tensor
    writers: list[str]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    after: Tensor

    def written(self, part: Part) -> Tensor:
        """Return the output of a projection or, if it writes to the stream, the stream after it."""
        if part.axes[0] != "hidden":
            return self.outputs[part.name]
        stream = self.stream
        for writer in self.writers[: self.writers.index(part.name) + 1]:
            stream = stream + self.outputs[writer]
        return stream


class _Streams:
    """The residual stream of a model before one of its blocks, for each batch.

    Args:
        model: The model.
        tokens: Batches of tokens, int64 [rows, length].
    """

    def __init__(self, model: PreTrainedModel, tokens: Sequence[Tensor]) -> None:
        self.parts = [part for group in projections_of(model.config) for part in group]
        self.blocks: Any = model.get_submodule(architecture_of(model.config).blocks)
        self.routes = experts_per_token(model.config) is not None
        self.streams: list[Tensor] = []
        self.arguments: list[list[dict[str, Any]]] = []  # of each block: masks, rotary embeddings

        def store(block: nn.Module, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> None:
            if block is self.blocks[0]:
                self.streams.append(inputs[0])
                self.arguments.append([])
            self.arguments[-1].append(arguments)

        handles = [block.register_forward_pre_hook(store, with_kwargs=True) for block in self.blocks.children()]
        try:
            for batch in tokens:
                model(input_ids=batch.to(model.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def advance(self, block: int) -> None:
        """Move the streams from before ``block`` to after it."""
        for batch, stream in enumerate(self.streams):
            self.streams[batch] = self.blocks[block](stream, **self.arguments[batch][block])

    def written(self, block: int, rows: Mapping[Dimension, Tensor]) -> list[dict[str, Tensor]]:
        """Return what the projections of ``block`` write for each batch, and move the streams to after it.

        Args:
            block: The block that the streams are before.
            rows: Indices of the outputs to return, by axis.
        """
        found = []
        for batch in range(len(self.streams)):
            watched = self.watch(block, batch)
            found.append({part.name: watched.written(part).index_select(-1, rows[part.axes[0]]) for part in self.parts})
            self.streams[batch] = watched.after
        return found

    def watch(self, block: int, batch: int) -> _BlockOutputs:
        """Return what the projections of ``block`` read and write for a batch."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def store(module: nn.Module, given: tuple[Any, ...], output: Tensor, *, name: str) -> None:
            inputs[name], outputs[name] = given[0], output

        handles = [
            self.blocks[block].get_submodule(part.name).register_forward_hook(partial(store, name=part.name))
            for part in self.parts
        ]
        stream = self.streams[batch]
        try:
            after = self.blocks[block](stream, **self.arguments[batch][block])
        finally:
            for handle in handles:
                handle.remove()
        writers = [part.name for part in self.parts if part.writes_to_stream]
        return _BlockOutputs(stream, writers, inputs, outputs, after)

    def check_supported(self) -> None:
        """Check that each projection has one kind of outputs, and that the stream adds up those that write to it.

        Raises:
            ConfigError: The architecture has fused projections, or norms or factors between a projection and the
                stream.
        """
        advice = "Leave the repair out for this architecture; the cut itself is exact."
        if self.routes:
            raise ConfigError("the repair cannot change the experts of a mixture of experts", advice)
        for part in self.parts:
            if not set(part.axes) <= {"hidden", "query", "key_value", "intermediate"}:
                raise ConfigError(f"the repair cannot change the fused projection {part.name!r}", advice)
        block = self.watch(0, 0)
        total = block.stream.double()
        for writer in block.writers:
            total = total + block.outputs[writer].double()
        error, size = torch.dist(total, block.after.double()), block.after.double().norm()
        if not block.writers or error > 0.02 * size:  # a sum in bfloat16 is within 0.004 of it
            raise ConfigError("the repair needs a residual stream that adds the outputs of projections", advice)


class _Sums:
    """The sums over tokens of a regression, float64, for the projections that read the same inputs."""

    def __init__(self) -> None:
        self.gram_II: Any = 0.0
        self.cross_OI: dict[str, Any] = defaultdict(float)
        self.error: dict[str, Any] = defaultdict(float)
        self.scale: dict[str, Any] = defaultdict(float)

    def add(self, inputs: Tensor, outputs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add a batch: the inputs; what each projection is to write, and what it writes now."""
        x_NI = functional.pad(inputs.double().flatten(0, -2), (0, 1), value=1.0)
        self.gram_II = self.gram_II + x_NI.T @ x_NI
        for name, (expected, written) in outputs.items():
            expected_NO = expected.double().flatten(0, -2)
            r_NO = expected_NO - written.double().flatten(0, -2)
            self.cross_OI[name] = self.cross_OI[name] + r_NO.T @ x_NI
            self.error[name] = self.error[name] + r_NO.square().sum()
            self.scale[name] = self.scale[name] + expected_NO.square().sum()

    def repair(self, name: str, projection: Any, ridge: float) -> RepairedModule:
        """Change the weight of the projection called ``name``, and its bias if it has one."""
        size = projection.in_features + (projection.bias is not None)
        gram_II, cross_OI = self.gram_II[:size, :size], self.cross_OI[name][:, :size]
        penalty = ridge * gram_II.diagonal().mean() * torch.eye(size, dtype=torch.float64, device=gram_II.device)
        change_OI = torch.linalg.solve(gram_II + penalty, cross_OI, left=False)
        after = self.error[name] - 2 * (change_OI * cross_OI).sum() + ((change_OI @ gram_II) * change_OI).sum()
        weight = projection.weight
        weight.copy_((weight.double() + change_OI[:, : projection.in_features]).to(weight.dtype))
        if projection.bias is not None:
            projection.bias.copy_((projection.bias.double() + change_OI[:, -1]).to(projection.bias.dtype))
        scale = max(float(self.scale[name]), torch.finfo(torch.float64).tiny)
        return RepairedModule(before=float(self.error[name]) / scale, after=float(after) / scale)
