"""A model under learned masks: an ordinary transformers model that finds out which of its units it can do without.

    masked = MaskedModel(model, Target(layers=4, hidden=96, heads=3, intermediate=256), warmup_steps=75)
    for step in range(150):
        masked.sample_masks(generator)
        loss = masked(input_ids, labels=labels).loss + masked.constraint(step)
        ...                                          # descend on weights and gates, ascend on multipliers
        masked.clamp_gates()                         # after each optimizer step
    masked.eval()                                    # exactly the target's units from here on
    small = masked.extract()                         # the same function as an ordinary model

The maths is in ``docs/masks.md``, where the masks act in :mod:`drpruning.pruning.modules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drpruning.errors import ConfigError, StateError
from drpruning.files import new_folder
from drpruning.pruning import export, hard_concrete, lagrangian
from drpruning.pruning.architectures import Axis, head_dim_of, weights_of
from drpruning.pruning.closed import OpenUnits
from drpruning.pruning.foretold import Foretold, versions
from drpruning.pruning.host_copy import send
from drpruning.pruning.install import check_parameters, install
from drpruning.pruning.modules import AppliedMasks, Masks
from drpruning.pruning.protected import Protected
from drpruning.pruning.rates import INITIAL_QUADRATIC
from drpruning.pruning.target import Target, axis_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

KINDS = {"layer": "layers", "head": "kv_heads", "intermediate": "intermediate", "hidden": "hidden"}
"""The kinds of masks, and the size of :class:`Target` that each of them brings down."""

HELD_OPEN = 1e4
"""Log-alpha that stands for a protected unit's: its mask is exactly one, whatever the noise, and has no gradient."""

MaskValues = Literal["hard", "soft"]
"""Values of the masks of kept units where nothing is sampled: one, or those of :func:`.hard_concrete.soft_value`."""

PER_BLOCK = ("head", "intermediate")
"""Kinds with a row of gates for each block; the others have one row."""


class MaskedModel(nn.Module):
    """Wraps ``model`` so that learned masks decide which of its units take part.

    The model keeps its modules, parameters and their names; it is masked in place. In training mode the masks are those
    of the last :meth:`sample_masks`, in evaluation mode exactly the target's number of units is open in every row. Each
    forward pass of ``model`` applies them, whether it is called through this wrapper or directly. Gates and multipliers
    are float32 whatever the model's type.

    Attributes:
        model: The wrapped model.
        source: Its shape.
        target: The shape to reach, complete.
        applied: What the masked modules applied in the last forward pass.
        gates: Location log-alpha of each gate: ``layer`` [L], ``head`` [L, kv_heads] (a key/value head with its query
            heads), ``intermediate`` [L, F], ``hidden`` [D]. A kind that the target leaves as it is has none.
        multipliers: For each kind of ``gates`` its linear and quadratic multiplier, [2].

    Args:
        model: A causal language model of a supported architecture, as transformers loads it.
        target: The shape to prune to.
        warmup_steps: Steps over which the wanted sparsity rises from zero to the target; 0 asks for all at once.
        cycles: Prune, repair, prune again: the wanted sparsity rises to the target in so many equal rises, each over
            ``warmup_steps``, and rests in between.
        cycle_steps: Steps from the start of one rise to that of the next; the last round has no end.
        protected: Units that stay whatever training finds out.
        log_alpha_init: Where gates start, clamped to the range of :meth:`clamp_gates`. At the default 2 a gate is
            open with probability 0.97, so that training starts near the source model and still sees every gate closed
            now and then.
        log_alpha_init_noise: Standard deviation of normal noise that is added to ``log_alpha_init`` before the
            clamp. The public code starts at 5 with noise of 0.01.
        generator: Source of that noise, on the CPU; torch's default generator when left out.
        quadratic_multiplier_init: Where the quadratic multipliers start; the linear ones start at zero.
        mask_values: Masks of kept units in evaluation: ``hard`` ones are one; ``soft`` ones depend on their gates, and
            :meth:`extract` multiplies them into the weights. The public code has soft ones.
        mask_norms: Multiply the outputs of the norms of the residual stream by the hidden mask and leave the embedding,
            as the public code does. Changes nothing where all masks are zero or one.
        skip_pruned_units: Leave blocks and units whose mask is exactly zero out of the computation. Losses and
            gradients are the same up to rounding, and a step gets cheaper as masks close. The first forward pass after
            each :meth:`sample_masks` waits for the device once, unless that was told of the step to follow.

    Raises:
        ConfigError: The architecture is not supported, the model has other parameters than it should, or the target
            cannot be reached.
    """

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
        quadratic_multiplier_init: float = INITIAL_QUADRATIC,
        mask_values: MaskValues = "hard",
        mask_norms: bool = False,
        skip_pruned_units: bool = True,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be at least 0, got {warmup_steps}")
        if cycles < 1 or (cycles > 1 and cycle_steps < max(1, warmup_steps)):
            raise ConfigError(
                f"{cycles} cycles of {cycle_steps} steps with warmup_steps={warmup_steps} do not fit",
                "There is at least one round, and each takes at least its warm-up.",
            )
        if not log_alpha_init_noise >= 0:
            raise ConfigError(f"log_alpha_init_noise must be at least 0, got {log_alpha_init_noise}")
        if mask_values not in get_args(MaskValues):
            raise ConfigError(f"mask_values is {mask_values!r}; it can be {' or '.join(get_args(MaskValues))}")
        self.mask_values = mask_values
        self.source = Target.of(model.config)
        self.target = target.resolve(model.config)
        self.rise = lagrangian.Rise(warmup_steps, cycles, cycle_steps)
        self.skip_pruned_units = skip_pruned_units
        check_parameters(model)
        device = torch.device("cpu") if model.device.type == "meta" else model.device  # a model to be read later
        sizes = self.source.sizes()
        self.gates, self.multipliers = nn.ParameterDict(), nn.ParameterDict()
        for kind, name in KINDS.items():
            if self._goal(kind) < sizes[name]:
                shape = (sizes["layers"], sizes[name]) if kind in PER_BLOCK else (sizes[name],)
                gate = torch.full(shape, log_alpha_init, dtype=torch.float32)
                if log_alpha_init_noise:
                    gate += log_alpha_init_noise * torch.randn(shape, generator=generator)
                self.gates[kind] = nn.Parameter(gate.to(device))
                self.multipliers[kind] = nn.Parameter(torch.tensor([0.0, quadratic_multiplier_init], device=device))
        self.clamp_gates()
        stays = (protected or Protected()).masks(self.source, self.target)
        for kind in self.gates:
            marked = stays[kind].to(device) if kind in stays else None
            self.register_buffer(f"protected_{kind}", marked, persistent=False)
        self._protected = {kind: int(stays[kind].sum(-1).max()) if kind in stays else 0 for kind in self.gates}
        self.foretold = Foretold(dict(self.gates), self.locations)
        self._left_out: Tensor | None = None
        self._noise: dict[str, Tensor] = {}
        self._samples = 0
        # What the masks of a step leave open, and for which masks that was found out: micro-batches share the wait.
        self._opened: tuple[tuple[int, ...], OpenUnits] = (), OpenUnits()
        self._fixed: Masks | None = None
        self.applied = AppliedMasks(
            sizes["layers"],
            head_dim=head_dim_of(model.config),
            group=sizes["heads"] // sizes["kv_heads"],
            mask_norms=mask_norms,
        )
        self.model = install(model, self.applied)
        self._apply_before_each_forward_pass()

    # ---- the forward pass and its masks

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """The wrapped model's forward pass under :meth:`masks`.

        Args:
            input_ids: Tokens, int64 [batch, length].
            **kwargs: As the wrapped model takes them (``labels``, ``attention_mask``, ...); there is no key/value cache
                unless ``use_cache=True`` is given.

        Raises:
            StateError: In training mode, before the first :meth:`sample_masks`.
        """
        output: CausalLMOutputWithPast = self.model(input_ids=input_ids, **{"use_cache": False, **kwargs})
        return output

    def generate(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Generates with the wrapped model under :meth:`masks`, with its key/value cache.

        Args:
            input_ids: Tokens, int64 [batch, length].
            **kwargs: As ``generate`` of transformers takes them.

        Returns:
            What ``generate`` of transformers returns.

        Raises:
            StateError: In training mode, before the first :meth:`sample_masks`.
        """
        with self.fixed_masks(self.masks()):
            generate: Any = self.model.generate
            return generate(input_ids, **kwargs)

    def _apply_before_each_forward_pass(self) -> None:
        """Registers :meth:`_apply_masks` as a hook of the model, in place of that of an earlier wrapper."""
        hooks = self.model._forward_pre_hooks
        own = MaskedModel._apply_masks
        for number in [number for number, hook in hooks.items() if getattr(hook, "__func__", None) is own]:
            del hooks[number]
        self.model.register_forward_pre_hook(self._apply_masks)

    def _apply_masks(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Applies :meth:`masks` in the forward pass that begins, also where ``model`` was called directly."""
        if self._fixed is not None:  # applied already, but each backward pass needs a graph of its own
            self.applied.set(self._fixed, skip_pruned_units=self.skip_pruned_units, opened=self.applied.open)
            return
        state = self._state() if self.training and self.skip_pruned_units else ()
        known = self._opened[1] if state and state == self._opened[0] else None
        self.applied.set(self.masks(), skip_pruned_units=self.skip_pruned_units, opened=known)
        if state:
            self._opened = state, self.applied.open

    def masks(self) -> Masks:
        """The masks that a forward pass applies now: fixed ones if any, else sampled or deterministic by mode.

        Sampled masks are computed anew from the stored noise, so that each micro-batch of a step can be sent backward
        through the same masks on its own.
        """
        if self._fixed is not None:
            return self._fixed
        if not self.training:
            return self.deterministic_masks()
        if self._noise.keys() != self.gates.keys():
            raise StateError(
                "no masks have been sampled yet",
                "Call sample_masks() once before each optimizer step in training mode.",
            )
        return self._sampled()

    def locations(self, gates: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Log-alpha of every gate by kind, as it counts: those of protected units far out of reach.

        Args:
            gates: In place of those that are trained.
        """
        located: dict[str, Tensor] = {}
        chosen = self.gates if gates is None else gates
        for kind, gate in chosen.items():
            stays: Tensor | None = getattr(self, f"protected_{kind}")
            located[kind] = gate if stays is None else torch.where(stays, HELD_OPEN, gate)
        return located

    @torch.no_grad()
    def clamp_gates(self) -> None:
        """Clamps log-alpha of every gate to [-4.605, 4.605], in place: once after each optimizer step.

        Without the clamp a gate whose log-alpha exceeds about 16 has a gradient of exactly zero and never closes again.
        Does not wait for the device. The masks of protected units do not depend on their gates.

        The bound of ``reach`` in :meth:`sample_masks` holds for step and clamp together: the clamp never increases the
        distance of two numbers, and does not change a gate from before the step, which is in the range already.
        """
        for gate in self.gates.values():
            gate.clamp_(hard_concrete.LOWEST, hard_concrete.HIGHEST)

    def sample_masks(
        self,
        generator: torch.Generator | None = None,
        *,
        following: torch.Generator | None = None,
        reach: float | None = None,
    ) -> None:
        """Draws the noise of the masks that apply until the next call: once per optimizer step.

        To leave out closed units, the host must know which are open. With ``following`` and ``reach`` it is found out a
        step ahead which units the next step can need at most, while the device has this step to work on: then no step
        waits for the device. What is left out has a mask of exactly zero all the same, and :meth:`left_out` proves it.
        Without them the first forward pass finds it out exactly, and waits.

        Args:
            generator: Source of the noise, on any device; torch's default CPU generator when left out. With the same
                state it gives the same masks, on every rank and after a resume.
            following: What the next call will be given as ``generator``, in the state it will have then. One of its
                own: this call draws from it.
            reach: The farthest that the optimizer moves a log-alpha until then
                (:func:`drpruning.pruning.rates.farthest_step` at the rate of the step in between).
        """
        self._samples += 1
        self._noise, self._left_out = self._draw(generator), None
        if following is None or reach is None or not (self.skip_pruned_units and self.gates):
            self.foretold.forget()
            return
        look = self.foretold.now(self._noise)
        self._opened = self._state(), OpenUnits()
        if look is not None:
            self._opened = self._state(), look.units(**self.applied.widths)
            with torch.no_grad():
                self._left_out = look.left_out(self._sampled())
        self.foretold.ahead(dict(self.gates), self._draw(following), reach)

    def assume_open(self, opened: OpenUnits) -> None:
        """Takes ``opened`` for what the sampled masks leave open, without a look at them, until they are drawn again.

        The result is that of the masks only if every unit is in ``opened`` whose mask is not zero.
        """
        self._opened = self._state(), opened

    def left_out(self) -> Tensor:
        """Units that are open in this step and were not foretold to be: zero, or ``reach`` or ``following`` were wrong.

        Returns:
            int64, a scalar on the device.
        """
        device = next(iter(self.gates.values())).device if self.gates else None
        return torch.zeros((), dtype=torch.int64, device=device) if self._left_out is None else self._left_out

    def deterministic_masks(self, sizes: Mapping[str, int] | None = None) -> Masks:
        """Masks that keep the most probable units, the same number in every row; the others are zero.

        Args:
            sizes: Units to keep by kind, for instance :meth:`expected_sizes`; the target's where left out.

        Raises:
            ConfigError: A kind has no gates here, or fewer units than are to be kept.
        """
        sizes = sizes or {}
        self._check_kinds(sizes)
        for kind, size in sizes.items():
            if not 1 <= size <= self.gates[kind].shape[-1]:
                raise ConfigError(f"cannot keep {size} of {self.gates[kind].shape[-1]} units of kind {kind!r}")
        masks = {}
        for kind, gate in self.locations().items():
            masks[kind] = hard_concrete.keep_top(gate, sizes.get(kind, self._goal(kind)))
            if self.mask_values == "soft":
                masks[kind] *= hard_concrete.soft_value(gate.detach())
        return masks

    @torch.no_grad()
    def start_from(self, scores: Mapping[str, Tensor], spread: float = 1.0) -> None:
        """Places the gates by importance instead of all at one point, before training.

        In each row the gates are spread evenly over ``start - spread`` to ``start + spread`` in the order of their
        scores, around the point ``start`` where they are now. Both ends are clamped to the range of
        :meth:`clamp_gates`, which keeps the order. The expected size hardly changes; who closes first does.

        Args:
            scores: By kind, in the shape of the gates, as :func:`drpruning.pruning.importance.importance` gives them;
                kinds left out stay where they are.
            spread: Half of the range, in log-alpha; a gate travels about 5 to close. Very large, it decides alone.

        Raises:
            ConfigError: A kind has no gates here, or scores of another shape.
        """
        self._check_kinds(scores)
        self.foretold.forget()
        for kind, score in scores.items():
            gate = self.gates[kind]
            if score.shape != gate.shape:
                raise ConfigError(f"scores of {kind!r} have shape {tuple(score.shape)}, the gates {tuple(gate.shape)}")
            rank = score.to(gate.device).argsort(dim=-1, stable=True).argsort(dim=-1).float()
            low, high = ((gate + side).clamp(hard_concrete.LOWEST, hard_concrete.HIGHEST) for side in (-spread, spread))
            gate.copy_(low + (high - low) * (rank / max(gate.shape[-1] - 1, 1)))

    @contextmanager
    def fixed_masks(self, masks: Masks) -> Iterator[None]:
        """Within the context ``masks`` apply, in either mode.

        Raises:
            ConfigError: A kind has no gates here.
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
        """Within the context no mask applies: ``model`` is the stock model with its present weights."""
        return self.fixed_masks({})

    # ---- sizes and their price

    def wanted_sparsity(self, step: int) -> dict[str, float]:
        """By kind, the fraction of units that should be removed in expectation at ``step``."""
        return {kind: self.rise.wanted(final, step) for kind, final in self.target_sparsity().items()}

    def target_sparsity(self) -> dict[str, float]:
        """By kind, the expected sparsity that training ends at: the fraction of units that the target removes.

        It is lower where clamped gates cannot have that fraction in expectation and still tell kept units apart: a
        removed unit is closed with probability 0.953 at most, and a kept one that is not protected with 1/2 at most.
        Without protected units this concerns targets that keep less than a twelfth.
        """
        most_closed = 1 - hard_concrete.probability_open(torch.tensor(hard_concrete.LOWEST)).item()
        sparsity = {}
        for kind in self.gates:
            units, kept = self.source.sizes()[KINDS[kind]], self._goal(kind)
            attainable = most_closed * (units - kept) + (kept - self._protected[kind]) / 2
            sparsity[kind] = min(1 - kept / units, attainable / units)
        return sparsity

    def expected_sparsity(self) -> dict[str, float]:
        """By kind, the fraction of units removed in expectation, over all rows."""
        return dict(zip(self.gates, self.removed().tolist(), strict=True))

    @torch.no_grad()
    def removed(self) -> Tensor:
        """The numbers of :meth:`expected_sparsity`, on the device: float32 [kinds], in the order of ``gates``."""
        values = [1 - hard_concrete.probability_open(gate).mean() for gate in self.locations().values()]
        return torch.stack(values) if values else torch.empty(0)

    def expected_sizes(self) -> dict[str, int]:
        """By kind, the expected number of open units in a row, rounded, never below the target: the size at present."""
        sizes = {}
        for kind, sparsity in self.expected_sparsity().items():
            units = self.gates[kind].shape[-1]
            sizes[kind] = max(self._goal(kind), round(units * (1 - sparsity)))
        return sizes

    def expected_parameters(self) -> float:
        """Expected number of parameters in use under the masks, gates taken as independent."""
        with torch.no_grad():
            opened = {kind: hard_concrete.probability_open(gate) for kind, gate in self.locations().items()}
            sizes, config, device = self.source.sizes(), self.model.config, self.model.device
            head_dim = head_dim_of(config)
            heads = (
                opened["head"].sum(-1) if "head" in opened else torch.tensor(float(sizes["kv_heads"]), device=device)
            )
            along: dict[Axis, Tensor | float] = {axis: float(n) for axis, n in axis_sizes(config, self.source).items()}
            if "hidden" in opened:
                along["hidden"] = opened["hidden"].sum()
            along["key_value"] = heads * head_dim
            along["query"] = heads * head_dim * (sizes["heads"] // sizes["kv_heads"])
            if "intermediate" in opened:
                along["intermediate"] = opened["intermediate"].sum(-1)
            blocks = opened.get("layer", torch.ones(sizes["layers"], device=device))
            total = torch.zeros((), dtype=torch.float64, device=device)
            for weight in weights_of(config, num_blocks=1):
                count = math.prod(along[axis] for axis in weight.axes)
                total += count if weight.block is None else (blocks * count).sum()
            return total.item()

    def constraint(self, step: int) -> Tensor:
        """The price of being away from the wanted sizes at ``step``: a scalar to add to the loss once per step."""
        wanted = self.wanted_sparsity(step)
        terms = [
            lagrangian.penalty(1 - hard_concrete.probability_open(gate).mean(-1), wanted[kind], self.multipliers[kind])
            for kind, gate in self.locations().items()
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``weights`` and ``gates`` to descend on, ``multipliers`` to ascend on (``maximize=True``)."""
        return {
            "weights": list(self.model.parameters()),
            "gates": list(self.gates.values()),
            "multipliers": list(self.multipliers.values()),
        }

    # ---- the result

    def kept(self) -> dict[str, Any]:
        """Which units the target's masks keep: the fields of :class:`drpruning.records.Kept` of these names."""
        return asdict(self.kept_units())

    def kept_units(self) -> export.KeptUnits:
        """Which units the target's masks keep."""
        return export.KeptUnits.of(self.deterministic_masks(), self.source)

    def extract(self) -> PreTrainedModel:
        """An ordinary transformers model of the target shape that computes what this one does in evaluation mode."""
        values = self.deterministic_masks() if self.mask_values == "soft" else {}
        fold = export.Fold(values, norms=self.applied.mask_norms)
        pruned = export.extract(self.model, self.kept_units(), self.target, fold)
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
    ) -> PreTrainedModel:
        """Extracts and writes a model folder that transformers loads, with the decisions beside the weights.

        ``masks.safetensors`` holds ``log_alpha.KIND`` and ``mask.KIND`` for each kind, ``pruning.json``
        both shapes and the indices of what was kept.

        Args:
            folder: A new or empty folder; it appears complete or not at all.
            tokenizer: Written along with the model.
            dtype: Type of the weights; the model's own when left out.
            max_shard_size: Largest file of weights, as transformers writes sizes.
            scores: Importance of the units by kind, written beside the masks as ``score.KIND``.

        Returns:
            The extracted model.

        Raises:
            ConfigError: ``folder`` exists and is not empty.
        """
        pruned = self.extract()
        if dtype is not None:
            nn.Module.to(pruned, dtype=dtype)
        decisions = {f"log_alpha.{kind}": gate.detach() for kind, gate in self.gates.items()}
        decisions |= {f"score.{kind}": score for kind, score in (scores or {}).items()}
        decisions |= {f"mask.{kind}": mask for kind, mask in self.deterministic_masks().items()}
        try:
            with new_folder(Path(folder)) as aside:
                pruned.save_pretrained(aside, max_shard_size=max_shard_size)
                if tokenizer is not None:
                    tokenizer.save_pretrained(aside)
                self.kept_units().write(aside, self.source, self.target)
                save_file(
                    {name: value.cpu().contiguous() for name, value in decisions.items()}, aside / "masks.safetensors"
                )
        except FileExistsError as error:
            raise ConfigError(f"cannot export: {error}", "Choose another folder, or remove it.") from error
        return pruned

    # ---- inside

    def _check_kinds(self, by_kind: Mapping[str, Any]) -> None:
        for kind in by_kind:
            if kind not in self.gates:
                raise ConfigError(f"no masks of kind {kind!r} here; this model has {', '.join(self.gates) or 'none'}")

    def _state(self) -> tuple[int, ...]:
        """Numbers that change when the sampled masks do."""
        return self._samples, *versions(dict(self.gates))

    def _sampled(self) -> dict[str, Tensor]:
        return {kind: hard_concrete.sample(gate, self._noise[kind]) for kind, gate in self.locations().items()}

    def _draw(self, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Noise for all gates; copying it to their device does not wait."""
        counts = [gate.numel() for gate in self.gates.values()]
        device = torch.device("cpu") if generator is None else generator.device
        noise = torch.rand(sum(counts), generator=generator, device=device)
        if self.gates:
            noise = send(noise, next(iter(self.gates.values())).device)
        parts = torch.split(noise, counts)
        return {kind: part.view(gate.shape) for (kind, gate), part in zip(self.gates.items(), parts, strict=True)}

    def _goal(self, kind: str) -> int:
        """Units of ``kind`` that the target keeps in a row."""
        return self.target.sizes()[KINDS[kind]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedModel:
        """Moves with the model, but keeps gates and multipliers in float32 where the model changes its type."""
        own = [*self.gates.values(), *self.multipliers.values()]
        before = [parameter.data for parameter in own]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter, value in zip(own, before, strict=True):
            if parameter.dtype != torch.float32:
                parameter.data = value.to(parameter.device)
        return self
