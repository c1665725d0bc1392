"""A transformers model under learned masks, which decide which of its units are active.

    masked = MaskedModel(model, Target(layers=4, hidden=96, heads=3, intermediate=256), warmup_steps=75)
    for step in range(150):
        masked.sample_masks(generator)
        loss = masked(input_ids, labels=labels).loss + masked.constraint(step)
        ...                                          # descend on weights and gates, ascend on multipliers
        masked.clamp_gates()                         # after each optimizer step
    masked.eval()                                    # from here on exactly the target's units are active
    small = masked.extract()                         # the same function as an ordinary model

A gate is a learned log-alpha. A mask is a value that is sampled or derived from it. ``docs/masks.md`` has the maths,
:mod:`drpruning.pruning.masked_modules` the modules that apply masks, :mod:`drpruning.pruning.lookahead` the prediction
of active units, :mod:`drpruning.pruning.sizes` expected and scheduled sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from drpruning.errors import ConfigError, StateError
from drpruning.hf.tensor_stream import ReadTensor
from drpruning.pruning import deterministic_gates, hard_concrete, lagrangian
from drpruning.pruning.async_copy import copy_to_device
from drpruning.pruning.extract import Cut, Fold, KeptUnits, PruningDecisions, extract, write_cut, write_pruned_model
from drpruning.pruning.learning_rates import QUADRATIC_MULTIPLIER_INIT
from drpruning.pruning.lookahead import MaskLookahead, versions
from drpruning.pruning.masked_modules import AppliedMasks, Masks, check_parameters, install
from drpruning.pruning.sparse_forward import ActiveUnits
from drpruning.pruning.target import Protected, Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

KINDS = {
    "layer": "layers",
    "head": "kv_heads",
    "intermediate": "intermediate",
    "hidden": "hidden",
    "expert": "experts",
}
"""Mask kinds, and the size of :class:`Target` that each reduces."""

OPEN_LOG_ALPHA = 1e4
"""Log-alpha of a protected unit: its mask is exactly one, for any noise, and has no gradient."""

Gates = Literal["hard_concrete", "deterministic"]
"""How masks in training follow from gates: sampled, or without noise (:mod:`.deterministic_gates`)."""

MaskValues = Literal["hard", "soft"]
"""Masks of kept units where nothing is sampled: one, or the values of :func:`.hard_concrete.soft_value`."""

PER_BLOCK = ("head", "intermediate", "expert")
"""Kinds with a row of gates for each block; the others have one row. ``intermediate`` has one for each expert."""


class MaskedModel(nn.Module):
    """Wrap ``model`` so that learned masks decide which of its units are active.

    The model keeps its modules, parameters and their names; it is masked in place. In training mode the masks are those
    of the last :meth:`sample_masks`. In evaluation mode exactly the target's number of units is active in every row.
    Each forward pass of ``model`` applies the masks, through this wrapper or directly. Gates and multipliers are
    float32, whatever the model's dtype.

    Attributes:
        model: The wrapped model.
        source: Its shape.
        target: The shape to reach, complete.
        applied: The masks that the masked modules applied in the last forward pass.
        gates: Log-alpha of each gate: ``layer`` [L], ``head`` [L, kv_heads] (a key/value head with its query heads),
            ``intermediate`` [L, F], ``hidden`` [D]; in a mixture of experts ``expert`` [L, E] and ``intermediate``
            [L, E, F]. A kind that the target does not change has none.
        multipliers: For each kind of ``gates`` its linear and quadratic multiplier, [2].
        schedule: Sparsity over the steps, from zero to the target.
        num_protected: By kind, the largest number of protected units in a row.
        initial_sparsity: Expected sparsity of the initial gates, float32 [kinds] in the order of ``gates``: the chance
            that a sampled mask is zero although nothing is pruned yet.
        deterministic: Whether the gates are deterministic.
        step: Step of the schedule that deterministic masks are at; :meth:`sample_masks` sets it. -1 before the first:
            then all of them are one.
        lookahead: Prediction of the active units of the next step.

    Args:
        model: A causal language model of a supported architecture, as transformers loads it.
        target: The shape to prune to.
        warmup_steps: Steps over which the scheduled sparsity rises from zero to the target; 0 starts at the target.
        cycles: Prune, recover, prune again: the scheduled sparsity rises to the target in this number of rises, each
            over ``warmup_steps``, with rests between. Each rise prunes the same fraction of the units that are left.
        cycle_steps: Steps from the start of one rise to that of the next; the last cycle has no end.
        protected: Units that are never pruned.
        log_alpha_init: Initial log-alpha of all gates, clamped to the range of :meth:`clamp_gates`. At the default 2 a
            unit is active with probability 0.97: training starts near the source model and still samples every mask at
            zero now and then.
        log_alpha_init_noise: Standard deviation of normal noise that is added to ``log_alpha_init`` before the clamp.
            The public code starts at 5 with noise of 0.01.
        generator: Source of that noise, on the CPU; torch's default generator by default.
        quadratic_multiplier_init: Initial value of the quadratic multipliers; the linear ones start at zero.
        gates: ``hard_concrete`` gates sample their masks and reach the scheduled size by a Lagrangian;
            ``deterministic`` gates have masks without noise that sum to the scheduled size in every step. They compute
            all units, since the gates of pruned units learn too, and need the step in :meth:`sample_masks`.
        mask_values: Masks of kept units in evaluation: ``hard`` masks are one; ``soft`` masks depend on their gates,
            and :meth:`extract` multiplies them into the weights. The public code has soft masks.
        mask_norms: Multiply the outputs of the norms of the residual stream by the hidden mask and not the embedding,
            as the public code does. Changes nothing where all masks are zero or one.
        skip_pruned_units: Leave blocks and units whose mask is exactly zero out of the computation. Losses and
            gradients are the same up to rounding, and a step gets cheaper as units are pruned. The first forward pass
            after each :meth:`sample_masks` synchronises with the device once, unless the lookahead is used.

    Raises:
        ConfigError: The architecture is not supported, the model has other parameters than its config describes, or
            the target cannot be reached.
    """

    initial_sparsity: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        target: Target,
        *,
        warmup_steps: int = 0,
        cycles: int = 1,
        cycle_steps: int = 0,
        protected: Protected | None = None,
        log_alpha_init: float = 2.0,
        log_alpha_init_noise: float = 0.0,
        generator: torch.Generator | None = None,
        quadratic_multiplier_init: float = QUADRATIC_MULTIPLIER_INIT,
        gates: Gates = "hard_concrete",
        mask_values: MaskValues = "hard",
        mask_norms: bool = False,
        skip_pruned_units: bool = True,
    ) -> None:
        super().__init__()
        if not log_alpha_init_noise >= 0:
            raise ConfigError(f"log_alpha_init_noise must be at least 0, got {log_alpha_init_noise}")
        if mask_values not in get_args(MaskValues):
            raise ConfigError(f"mask_values is {mask_values!r}; it can be {' or '.join(get_args(MaskValues))}")
        if gates not in get_args(Gates):
            raise ConfigError(f"gates is {gates!r}; it can be {' or '.join(get_args(Gates))}")
        if gates == "deterministic" and mask_values == "soft":
            raise ConfigError(
                "soft mask values are those of hard-concrete gates, got deterministic gates",
                "Leave out mask_values: deterministic masks of kept units are one at the target.",
            )
        self.deterministic, self.step = gates == "deterministic", -1
        self.mask_values = mask_values
        self.schedule = lagrangian.SparsitySchedule(warmup_steps, cycles, cycle_steps)
        self.source = Target.of(model.config)
        self.target = target.resolve(model.config)
        if mask_values == "soft" and self.target.experts != self.source.experts:
            raise ConfigError(
                "soft mask values of experts cannot be multiplied into the weights, because routers have no bias; got "
                f"target experts={self.target.experts} of {self.source.experts}",
                "Leave out mask_values, or experts in the target.",
            )
        self.skip_pruned_units = skip_pruned_units and not self.deterministic
        check_parameters(model)
        device = torch.device("cpu") if model.device.type == "meta" else model.device  # weights are loaded later
        sizes = self.source.sizes()
        self.gates, self.multipliers = nn.ParameterDict(), nn.ParameterDict()
        for kind, name in KINDS.items():
            if name in sizes and self.target_size(kind) < sizes[name]:
                shape: tuple[int, ...] = (sizes["layers"], sizes[name]) if kind in PER_BLOCK else (sizes[name],)
                if kind == "intermediate" and "experts" in sizes:
                    shape = sizes["layers"], sizes["experts"], sizes[name]
                gate = torch.full(shape, log_alpha_init, dtype=torch.float32)
                if log_alpha_init_noise:
                    gate += log_alpha_init_noise * torch.randn(shape, generator=generator)
                self.gates[kind] = nn.Parameter(gate.to(device))
                self.multipliers[kind] = nn.Parameter(torch.tensor([0.0, quadratic_multiplier_init], device=device))
        self.clamp_gates()
        self._protect(protected or Protected(), device)
        self.register_buffer("initial_sparsity", self.expected_sparsity())
        self.lookahead = MaskLookahead(dict(self.gates), self.log_alpha)
        self._num_missed: Tensor | None = None
        self._noise: dict[str, Tensor] = {}
        self._samples = 0
        # Active units of a step's masks, and the version of the masks they belong to: micro-batches share them.
        self._active: tuple[tuple[int, ...], ActiveUnits] = (), ActiveUnits()
        self._fixed: Masks | None = None
        self.applied = AppliedMasks(model.config, mask_norms=mask_norms)
        self.model = install(model, self.applied)
        self._register_hook()

    def _protect(self, protected: Protected, device: torch.device) -> None:
        marked = {kind: torch.from_numpy(rows) for kind, rows in protected.masks(self.source, self.target).items()}
        for kind in self.gates:
            rows = marked[kind].to(device) if kind in marked else None
            self.register_buffer(f"protected_{kind}", rows, persistent=False)
        self.num_protected = {kind: int(marked[kind].sum(-1).max()) if kind in marked else 0 for kind in self.gates}

    # ---- the forward pass and its masks

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """Run the wrapped model's forward pass under :meth:`masks`.

        Args:
            input_ids: Tokens, int64 [batch, length].
            **kwargs: Arguments of the wrapped model (``labels``, ``attention_mask``, ...); ``use_cache`` is False by
                default.

        Raises:
            StateError: In training mode, before the first :meth:`sample_masks`.
        """
        output: CausalLMOutputWithPast = self.model(input_ids=input_ids, **{"use_cache": False, **kwargs})
        return output

    def generate(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Generate with the wrapped model under :meth:`masks`, with its key/value cache.

        Args:
            input_ids: Tokens, int64 [batch, length].
            **kwargs: Arguments of ``generate`` of transformers.

        Returns:
            The result of ``generate`` of transformers.

        Raises:
            StateError: In training mode, before the first :meth:`sample_masks`.
        """
        with self.fixed_masks(self.masks()):
            generate: Any = self.model.generate
            return generate(input_ids, **kwargs)

    def _register_hook(self) -> None:
        """Register :meth:`_apply_masks` as a hook of the model, in place of that of an earlier wrapper."""
        hooks = self.model._forward_pre_hooks
        own = MaskedModel._apply_masks
        for number in [number for number, hook in hooks.items() if getattr(hook, "__func__", None) is own]:
            del hooks[number]
        self.model.register_forward_pre_hook(self._apply_masks)

    def _apply_masks(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Apply :meth:`masks` in the forward pass that begins, also if ``model`` is called directly."""
        if self._fixed is not None:  # applied already, but each backward pass needs a separate graph
            self.applied.set(self._fixed, skip_pruned_units=self.skip_pruned_units, active=self.applied.active)
            return
        version = self._mask_version() if self.training and self.skip_pruned_units else ()
        known = self._active[1] if version and version == self._active[0] else None
        self.applied.set(self.masks(), skip_pruned_units=self.skip_pruned_units, active=known)
        if version:
            self._active = version, self.applied.active

    def masks(self) -> Masks:
        """Return the masks of the next forward pass: fixed ones if any, else sampled or deterministic by mode.

        Sampled masks are computed from the stored noise each time, so that each micro-batch of a step can run its
        backward pass through the same masks separately.
        """
        if self._fixed is not None:
            return self._fixed
        if not self.training:
            return self.deterministic_masks()
        if not self.deterministic and self._noise.keys() != self.gates.keys():
            raise StateError(
                "no masks have been sampled yet",
                "Call sample_masks() once before each optimizer step in training mode.",
            )
        return self._sampled()

    def log_alpha(self, gates: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the log-alphas that masks are sampled at, by kind: :data:`OPEN_LOG_ALPHA` for protected units.

        Args:
            gates: Log-alphas to use instead of the trained ones.
        """
        log_alpha: dict[str, Tensor] = {}
        chosen = self.gates if gates is None else gates
        for kind, gate in chosen.items():
            protected: Tensor | None = getattr(self, f"protected_{kind}")
            log_alpha[kind] = gate if protected is None else torch.where(protected, OPEN_LOG_ALPHA, gate)
        return log_alpha

    @torch.no_grad()
    def clamp_gates(self) -> None:
        """Clamp log-alpha of every gate to [-4.605, 4.605], in place: once after each optimizer step.

        Without the clamp a gate whose log-alpha exceeds about 16 has a gradient of exactly zero and stays active
        forever. Does not wait for the device. The masks of protected units do not depend on their gates.

        ``max_gate_step`` of :meth:`sample_masks` bounds step and clamp together: the clamp never increases the distance
        of two numbers, and does not change a gate from before the step, which is in the range already.
        """
        for gate in self.gates.values():
            gate.clamp_(hard_concrete.LOWEST, hard_concrete.HIGHEST)

    def sample_masks(
        self,
        generator: torch.Generator | None = None,
        *,
        next_generator: torch.Generator | None = None,
        max_gate_step: float | None = None,
        step: int | None = None,
    ) -> None:
        """Draw the noise of the masks that apply until the next call: once per optimizer step.

        The host needs the active units to leave pruned ones out. With ``next_generator`` and ``max_gate_step`` the
        lookahead predicts, during this step, a superset of the units that the next step keeps active: then no step
        synchronises with the device (:mod:`drpruning.pruning.lookahead`). :meth:`num_missed_units` verifies the
        prediction. Without them the first forward pass finds the active units exactly, with one synchronisation.

        Args:
            generator: Source of the noise, on any device; torch's default CPU generator by default. The same state
                gives the same masks, on every rank and after a resume.
            next_generator: A generator in the state that ``generator`` of the next call will have; a separate object,
                since this call draws from it.
            max_gate_step: Upper bound of the distance that the optimizer moves a log-alpha until the next call
                (:func:`drpruning.pruning.learning_rates.max_adam_step` at the learning rate of this step).
            step: The step of the schedule. Deterministic gates need it, and nothing else.

        Raises:
            StateError: The gates are deterministic, and ``step`` is missing.
        """
        if self.deterministic:
            if step is None:
                raise StateError("deterministic gates need the step", "Call sample_masks(step=...) in each step.")
            self.step = step
            self._samples += 1
            return
        self._samples += 1
        self._noise, self._num_missed = self._draw(generator), None
        if next_generator is None or max_gate_step is None or not (self.skip_pruned_units and self.gates):
            self.lookahead.reset()
            return
        predicted = self.lookahead.current(self._noise)
        self._active = self._mask_version(), ActiveUnits()
        if predicted is not None:
            self._active = self._mask_version(), predicted.units(**self.applied.widths)
            with torch.no_grad():
                self._num_missed = predicted.num_missed_units(self._sampled())
        self.lookahead.advance(dict(self.gates), self._draw(next_generator), max_gate_step)

    def assume_active(self, active: ActiveUnits) -> None:
        """Use ``active`` as the active units until the next :meth:`sample_masks`, without a check.

        The result is correct only if ``active`` has every unit whose mask is not zero.
        """
        self._active = self._mask_version(), active

    def num_missed_units(self) -> Tensor:
        """Count the active units of this step that the lookahead did not predict.

        The count is zero unless ``max_gate_step`` or ``next_generator`` were wrong.

        Returns:
            int64, a scalar on the device.
        """
        device = next(iter(self.gates.values())).device if self.gates else None
        return torch.zeros((), dtype=torch.int64, device=device) if self._num_missed is None else self._num_missed

    def deterministic_masks(self, sizes: Mapping[str, int] | None = None) -> Masks:
        """Return masks that keep the most probable units, the same number in every row; the others are zero.

        Args:
            sizes: Units to keep by kind, for instance :func:`drpruning.pruning.sizes.expected_sizes`; the target's by
                default.

        Raises:
            ConfigError: A kind has no gates in this model, or fewer units than ``sizes`` keeps.
        """
        sizes = sizes or {}
        self._check_kinds(sizes)
        for kind, size in sizes.items():
            if not 1 <= size <= self.gates[kind].shape[-1]:
                raise ConfigError(f"cannot keep {size} of {self.gates[kind].shape[-1]} units of kind {kind!r}")
        masks = {}
        for kind, gate in self.log_alpha().items():
            masks[kind] = hard_concrete.keep_top(gate, sizes.get(kind, self.target_size(kind)))
            if self.mask_values == "soft":
                masks[kind] *= hard_concrete.soft_value(gate.detach())
        return masks

    @torch.no_grad()
    def init_from_importance(self, scores: Mapping[str, Tensor], spread: float = 1.0) -> None:
        """Initialise the gates by importance instead of all at one value, before training.

        In each row the gates are placed evenly from ``init - spread`` to ``init + spread`` in the order of their
        scores, where ``init`` is their current mean. Both ends are clamped to the range of :meth:`clamp_gates`, which
        keeps the order. The expected size hardly changes; the order in which units are pruned does.

        Args:
            scores: By kind, in the shape of the gates, see :func:`drpruning.pruning.importance.importance`; gates of
                missing kinds do not change.
            spread: Half of the range, in log-alpha; a gate moves by about 5 until its unit is pruned. A very large
                spread lets importance alone decide.

        Raises:
            ConfigError: A kind has no gates in this model, or scores of another shape, or scores are not finite.
        """
        self._check_kinds(scores)
        self.lookahead.reset()
        for kind, score in scores.items():
            gate = self.gates[kind]
            if score.shape != gate.shape:
                raise ConfigError(
                    f"scores of {kind!r}: expected shape {tuple(gate.shape)} of the gates, got {tuple(score.shape)}"
                )
            if not score.isfinite().all():
                raise ConfigError(
                    f"scores of {kind!r}: expected finite numbers, got {int((~score.isfinite()).sum())} that are not",
                    "Look for weights or calibration text that make the model's loss infinite or NaN.",
                )
            rank = score.to(gate.device).argsort(dim=-1, stable=True).argsort(dim=-1).float()
            center = gate.mean(-1, keepdim=True)
            low, high = (
                (center + side).clamp(hard_concrete.LOWEST, hard_concrete.HIGHEST) for side in (-spread, spread)
            )
            gate.copy_(low + (high - low) * (rank / max(gate.shape[-1] - 1, 1)))
        if not self.deterministic:  # the masks of deterministic gates have their scheduled size from the start
            self.initial_sparsity.copy_(self.expected_sparsity())

    @contextmanager
    def fixed_masks(self, masks: Masks) -> Iterator[None]:
        """Apply ``masks`` within the context, in either mode.

        Raises:
            ConfigError: A kind has no gates in this model.
        """
        self._check_kinds(masks)
        before = self._fixed
        self._fixed = masks
        self.applied.set(masks, skip_pruned_units=self.skip_pruned_units)
        try:
            yield
        finally:
            self._fixed = before
            self.applied.set(before or {}, skip_pruned_units=self.skip_pruned_units)

    def unmasked(self) -> AbstractContextManager[None]:
        """Apply no mask within the context: ``model`` is the stock model with its current weights."""
        return self.fixed_masks({})

    # ---- training

    def target_size(self, kind: str) -> int:
        """Return the number of units of ``kind`` that the target keeps in a row."""
        return self.target.sizes()[KINDS[kind]]

    def num_removed(self) -> dict[str, int]:
        """Return, by kind, the number of units that the target removes from a row."""
        return {kind: gate.shape[-1] - self.target_size(kind) for kind, gate in self.gates.items()}

    def protected(self) -> dict[str, Tensor]:
        """Return, by kind, which units are never pruned, bool in the shape of the gates; only kinds with any."""
        marked = {kind: getattr(self, f"protected_{kind}") for kind in self.gates}
        return {kind: rows for kind, rows in marked.items() if rows is not None}

    def target_sparsity(self) -> dict[str, float]:
        """Return, by kind, the expected sparsity at the end of the schedule: the fraction of units the target prunes.

        It is lower where clamped gates cannot reach that fraction in expectation and still separate kept from pruned
        units. A pruned unit has a mask of zero with probability 0.953 at most, a kept unit that is not protected with
        1/2 at most. Without protected units this limits only targets that keep less than a twelfth.
        """
        if self.deterministic:
            return {kind: 1 - self.target_size(kind) / gate.shape[-1] for kind, gate in self.gates.items()}
        max_pruned = 1 - hard_concrete.probability_active(torch.tensor(hard_concrete.LOWEST)).item()
        sparsity = {}
        for kind, gate in self.gates.items():
            units, kept = gate.shape[-1], self.target_size(kind)
            attainable = max_pruned * (units - kept) + (kept - self.num_protected[kind]) / 2
            sparsity[kind] = min(1 - kept / units, attainable / units)
        return sparsity

    @torch.no_grad()
    def expected_active(self) -> dict[str, Tensor]:
        """Return, by kind, the probability that each unit is active; with deterministic gates the mask of the step."""
        if self.deterministic:
            return self._sampled()
        return {kind: hard_concrete.probability_active(gate) for kind, gate in self.log_alpha().items()}

    @torch.no_grad()
    def expected_sparsity(self) -> Tensor:
        """Return the expected sparsity of each kind over all rows: float32 [kinds], in the order of ``gates``."""
        values = [1 - active.mean() for active in self.expected_active().values()]
        return torch.stack(values) if values else torch.empty(0)

    def scheduled_sparsity(self, step: int) -> dict[str, float]:
        """Return, by kind, the sparsity that the constraint has as its goal at ``step``."""
        return {kind: self.schedule.at(final, step) for kind, final in self.target_sparsity().items()}

    def constraint(self, step: int) -> Tensor:
        """Return the Lagrangian penalty of the expected sizes at ``step``: a scalar to add to the loss.

        It is zero with deterministic gates, whose sizes are the scheduled ones.
        """
        if self.deterministic:
            return torch.stack([0.0 * pair.sum() for pair in self.multipliers.values()] or [torch.zeros(())]).sum()
        scheduled = self.scheduled_sparsity(step)
        terms = [
            lagrangian.penalty(
                1 - hard_concrete.probability_active(gate).mean(-1), scheduled[kind], self.multipliers[kind]
            )
            for kind, gate in self.log_alpha().items()
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return ``weights`` and ``gates`` to descend on, ``multipliers`` to ascend on (``maximize=True``)."""
        return {
            "weights": list(self.model.parameters()),
            "gates": list(self.gates.values()),
            "multipliers": list(self.multipliers.values()),
        }

    # ---- the pruned model

    def kept_units(self) -> KeptUnits:
        """Return the units that the target's masks keep."""
        return KeptUnits.of(self.deterministic_masks(), self.source)

    def extract(self) -> PreTrainedModel:
        """Return an ordinary model of the target shape that computes the same as this model in evaluation."""
        pruned = extract(self.model, self.kept_units(), self.target, self._fold())
        pruned.train(self.training)
        return pruned

    def export(
        self,
        folder: Path | str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        dtype: torch.dtype | None = None,
        max_shard_size: str = "5GB",
        scores: Mapping[str, Tensor] | None = None,
        adjust: Callable[[MaskedModel, PreTrainedModel], None] | None = None,
    ) -> PreTrainedModel:
        """Extract the model of the target shape and write a folder that transformers loads.

        Args:
            folder: A new or empty folder; it appears complete or not at all.
            tokenizer: Written with the model.
            dtype: Dtype of the weights; the model's by default.
            max_shard_size: Largest file of weights, in the notation of transformers.
            scores: Importance of the units by kind, written to ``masks.safetensors`` as ``score.KIND``.
            adjust: Called with this model and the extracted one, which it may change in place, before the folder is
                written; for instance a repair (:mod:`drpruning.export.repair`).

        Returns:
            The extracted model.

        Raises:
            ConfigError: ``folder`` exists and is not empty.
        """
        pruned = self.extract()
        if adjust is not None:
            adjust(self, pruned)
        if dtype is not None:
            nn.Module.to(pruned, dtype=dtype)
        write_pruned_model(pruned, self._decisions(scores), Path(folder), tokenizer, max_shard_size=max_shard_size)
        return pruned

    def write_extracted(
        self,
        folder: Path | str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        read: ReadTensor | None = None,
    ) -> None:
        """Write the folder of :meth:`export` one weight at a time, without the extracted model in memory.

        Args:
            folder: A new or empty folder; it appears complete or not at all.
            tokenizer: Written with the model.
            read: Returns a whole weight of :attr:`model` by name, for a sharded model.

        Raises:
            ConfigError: ``folder`` exists and is not empty.
            DiskError: It cannot be written.
        """
        weights = dict(self.model.named_parameters())
        cut = Cut.of(
            self.model,
            self.kept_units(),
            self.target,
            self._fold(),
            read or (lambda name: weights[name].detach()),
        )
        generation = self.model.generation_config
        write_cut(cut, self._decisions(), Path(folder), tokenizer, generation_config=generation)

    # ---- internals

    def _fold(self) -> Fold:
        """Return the mask values that the extracted weights are multiplied by."""
        values = self.deterministic_masks() if self.mask_values == "soft" else {}
        return Fold(values, norms=self.applied.mask_norms)

    def _decisions(self, scores: Mapping[str, Tensor] | None = None) -> PruningDecisions:
        """Return what is written next to the extracted weights; ``scores`` is the importance of the units by kind."""
        tensors = {f"log_alpha.{kind}": gate.detach() for kind, gate in self.gates.items()}
        tensors |= {f"score.{kind}": score for kind, score in (scores or {}).items()}
        tensors |= {f"mask.{kind}": mask for kind, mask in self.deterministic_masks().items()}
        return PruningDecisions(self.kept_units(), self.source, self.target, tensors)

    def _check_kinds(self, by_kind: Mapping[str, Any]) -> None:
        for kind in by_kind:
            if kind not in self.gates:
                raise ConfigError(f"this model has no masks of kind {kind!r}; it has {', '.join(self.gates) or 'none'}")

    def _mask_version(self) -> tuple[int, ...]:
        """Return numbers that change when the sampled masks do."""
        return self._samples, *versions(dict(self.gates))

    def _sampled(self) -> dict[str, Tensor]:
        if self.deterministic:
            scheduled = self.scheduled_sparsity(self.step)
            temperature = deterministic_gates.temperature(self.schedule.progress(self.step))
            return {
                kind: deterministic_gates.masks_at(gate, scheduled[kind], temperature)
                for kind, gate in self.log_alpha().items()
            }
        return {kind: hard_concrete.sample(gate, self._noise[kind]) for kind, gate in self.log_alpha().items()}

    def _draw(self, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Draw noise for all gates; the copy to their device does not synchronise."""
        counts = [gate.numel() for gate in self.gates.values()]
        device = torch.device("cpu") if generator is None else generator.device
        noise = torch.rand(sum(counts), generator=generator, device=device)
        if self.gates:
            noise = copy_to_device(noise, next(iter(self.gates.values())).device)
        parts = torch.split(noise, counts)
        return {kind: part.view(gate.shape) for (kind, gate), part in zip(self.gates.items(), parts, strict=True)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedModel:
        """Move with the model, and keep gates and multipliers in float32 when the model changes its dtype."""
        own = [*self.gates.values(), *self.multipliers.values(), self.initial_sparsity]
        before = [parameter.data for parameter in own]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter, value in zip(own, before, strict=True):
            if parameter.dtype != torch.float32:
                parameter.data = value.to(parameter.device)
        return self
