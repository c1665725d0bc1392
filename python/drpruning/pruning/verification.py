"""Verification of an architecture's description: what masks and extraction must satisfy, on a tiny model of the class.

    for check in verify_architecture(config):
        print(check.name, check.error, check.bound)

The model has random weights, gains and biases, so that a wrong index or a missing factor shows. Each property is a
function that returns its largest error, in :data:`PROPERTIES`; :func:`check_property` computes one.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from drpruning.errors import ArchitectureError
from drpruning.pruning.architectures import (
    EXPERT_FIELDS,
    architecture_of,
    experts_per_token,
    head_dim_of,
    hidden_rule_of,
    size_field,
    weights_of,
)
from drpruning.pruning.extract import KeptUnits, select_entries, unit_indices
from drpruning.pruning.masked_model import MaskedModel
from drpruning.pruning.sparse_forward import all_units, entries_of
from drpruning.pruning.target import EXPERT_MULTIPLE, Target, axis_sizes, parameter_count, sizes_of

BLOCKS, KV_HEADS, HEAD_DIM, WIDTH, INTERMEDIATE, VOCABULARY, LENGTH = 3, 4, 8, 32, 40, 64, 10
"""Sizes of the tiny model: small, and different where they can be."""
EXPERTS, EXPERTS_PER_TOKEN, SHARED_WIDTH = 6, 2, 12
"""Sizes of a mixture of experts."""
WINDOW = 5
"""Sliding window, so that local attention differs from full attention within a row."""
TOLERANCE = 1e-5
"""Largest difference of float32 logits, for each unit of the largest logit above 1."""


@dataclass(frozen=True)
class Check:
    """The result of one property.

    Attributes:
        name: The property, and whether embeddings are tied.
        error: The largest error, or the reason why the property could not be computed.
        bound: The largest valid error.
    """

    name: str
    error: float | str
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound."""
        return not isinstance(self.error, str) and self.error <= self.bound


@dataclass(frozen=True)
class TinyModels:
    """Models of one configuration, each built again with the same weights.

    Attributes:
        config: A tiny configuration.
        seed: Seed of the weights and masks.
        one_kind: A target that replaces the one that prunes every kind of unit.
    """

    config: Any
    seed: int = 0
    one_kind: Target | None = None

    def stock(self) -> Any:
        """Return the model in evaluation mode, with random weights around zero and gains around one."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = AutoModelForCausalLM.from_config(copy.deepcopy(self.config), trust_remote_code=False)
            offset = architecture_of(self.config).norm.offset
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for weight in weights_of(self.config):
                    gain = weight.part.is_norm and not weight.is_bias
                    if weight.name in parameters:
                        parameters[weight.name].normal_(1 - offset if gain else 0.0, 0.2)
        return model.eval()

    def masked(self, **settings: Any) -> MaskedModel:
        """Return the model with masks that keep random units of an odd target, in evaluation mode."""
        masked = MaskedModel(self.stock(), self.target, **settings).eval()
        generator = torch.Generator().manual_seed(self.seed)
        for gate in masked.gates.values():
            gate.data = torch.randn(gate.shape, generator=generator)
        return masked

    @property
    def target(self) -> Target:
        """A target with odd sizes where the class supports them, that prunes every kind of unit."""
        if self.one_kind is not None:
            return self.one_kind
        sizes, rule = sizes_of(self.config), hidden_rule_of(self.config)
        kv_heads = sizes["kv_heads"] - 1
        heads = kv_heads * (sizes["heads"] // sizes["kv_heads"])
        hidden = sizes["hidden"] * 2 // 3
        if rule == "heads times head_dim":
            hidden = heads * head_dim_of(self.config)
        elif rule == "multiple of heads":
            hidden -= hidden % heads
        if "experts" in sizes:
            return Target(
                layers=sizes["layers"] - 1,
                hidden=hidden - hidden % EXPERT_MULTIPLE,
                kv_heads=kv_heads,
                intermediate=3 * EXPERT_MULTIPLE,
                experts=EXPERTS - 3,
            )
        return Target(
            layers=sizes["layers"] - 1,
            hidden=hidden,
            kv_heads=kv_heads,
            intermediate=INTERMEDIATE // 2 - 3,
        )

    @property
    def tokens(self) -> Tensor:
        """Two rows of tokens without the padding token, which transformers would mask when it generates."""
        return torch.randint(1, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(self.seed))


def verify_architecture(config: Any) -> list[Check]:
    """Return all properties for a tiny model of a configuration's class, untied and tied, without raising for errors.

    Args:
        config: A transformers configuration; its features stay, its sizes become tiny.

    Raises:
        ConfigError: The type has no description, or a feature that its description refuses.

    Example:
        >>> from transformers import LlamaConfig
        >>> all(check.passed for check in verify_architecture(LlamaConfig()))
        True
    """
    configs = [tiny_config(config, tied=tied) for tied in (False, True)]
    return [check_property(name, tiny) for tiny in configs for name in PROPERTIES]


def require_verified(config: Any) -> list[Check]:
    """Return :func:`verify_architecture` of a configuration if every property holds.

    Raises:
        ArchitectureError: A property does not hold; names the first.
        ConfigError: See :func:`verify_architecture`.
    """
    checks = verify_architecture(config)
    if (error := failure(config.model_type, checks)) is not None:
        raise error
    return checks


def failure(model_type: str, checks: Sequence[Check]) -> ArchitectureError | None:
    """Return the error for the first property that does not hold; None if all hold."""
    failed = next((check for check in checks if not check.passed), None)
    if failed is None:
        return None
    got = failed.error if isinstance(failed.error, str) else f"an error of {failed.error:.3g}"
    return ArchitectureError(
        f"the description of architecture {model_type!r} is wrong: {failed.name}: expected an error of at most "
        f"{failed.bound:g}, got {got}",
        "Compare the description with the model's code in transformers; see docs/architectures.md.",
    )


def check_property(name: str, config: Any) -> Check:
    """Compute one of :data:`PROPERTIES` for a tiny configuration; see :func:`tiny_config`."""
    measure, bound = PROPERTIES[name]
    labelled = f"{name}, {'tied' if config.tie_word_embeddings else 'untied'}"
    try:
        return Check(labelled, measure(TinyModels(config)), bound)
    except Exception as error:
        return Check(labelled, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", bound)


def tiny_config(config: Any, *, tied: bool) -> Any:
    """Return a configuration of the same class and features with tiny sizes.

    Args:
        config: A transformers configuration.
        tied: Whether the output layer shares the embedding's weights.
    """
    architecture, whole = architecture_of(config), sizes_of(config)
    fields = config.to_dict()
    heads = KV_HEADS * (2 if whole["heads"] > whole["kv_heads"] else 1)
    exact = hidden_rule_of(config) == "heads times head_dim"
    sizes: dict[str, Any] = {
        "num_hidden_layers": BLOCKS,
        "hidden_size": heads * HEAD_DIM if exact else WIDTH,
        "num_attention_heads": heads,
        size_field(config, "intermediate"): INTERMEDIATE,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": VOCABULARY,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if experts_per_token(config) is not None:
        fields = {name: value for name, value in fields.items() if name not in EXPERT_FIELDS}
        sizes |= {size_field(config, "experts"): EXPERTS, "num_experts_per_tok": EXPERTS_PER_TOKEN}
        if "shared_expert_intermediate_size" in fields:
            sizes["shared_expert_intermediate_size"] = SHARED_WIDTH
    if hasattr(config, "num_key_value_heads"):
        sizes["num_key_value_heads"] = KV_HEADS
    if hasattr(config, "head_dim") or not exact:
        sizes["head_dim"] = HEAD_DIM
    for name, value in fields.items():
        if name.endswith(("dropout", "pdrop")):
            sizes[name] = 0.0
        if name == "original_max_position_embeddings" and value:
            sizes[name] = VOCABULARY // 2
    if getattr(config, "sliding_window", None) is not None:
        sizes["sliding_window"] = WINDOW
    if "max_window_layers" in fields:
        sizes["max_window_layers"] = 1
    lists = {name: fields[name] for name in architecture.block_lists if fields.get(name)}
    chosen = _different_blocks(lists)
    sizes |= {name: [values[block % len(values)] for block in chosen] for name, values in lists.items()}
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict):
        sizes["rope_parameters"] = _tiny_rope(rope)
    return type(config).from_dict({**fields, **sizes, "dtype": "float32"})


def _different_blocks(lists: dict[str, list[Any]]) -> list[int]:
    """Return as many blocks as the tiny model has, with different entries first."""
    seen: dict[tuple[Any, ...], int] = {}
    for block, entry in enumerate(zip(*lists.values(), strict=True)):
        seen.setdefault(entry, block)
    first = list(seen.values())
    return sorted((first + list(range(BLOCKS)))[:BLOCKS])


def _tiny_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Return rotary parameters with as many factors as a tiny head has, also in dictionaries by type of layer."""
    tiny: dict[str, Any] = {}
    width = int(HEAD_DIM * rope.get("partial_rotary_factor", 1.0)) // 2
    for name, value in rope.items():
        tiny[name] = _tiny_rope(value) if isinstance(value, dict) else value
        if isinstance(value, list):
            tiny[name] = value[:width]
        if name in ("original_max_position_embeddings", "max_position_embeddings") and value:
            tiny[name] = VOCABULARY // (2 if name.startswith("original") else 1)
    return tiny


# ---- properties: each returns its largest error


def _difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, for each unit of the largest expected number above 1; NaN is infinite."""
    if got.shape != expected.shape:
        return math.inf
    found = float((got - expected).abs().max() / max(1.0, float(expected.abs().max())))
    return found if math.isfinite(found) else math.inf


@torch.no_grad()
def _counts_parameters(models: TinyModels) -> float:
    pruned = models.masked().extract()
    number = sum(parameter.numel() for parameter in pruned.parameters())
    return float(abs(number - parameter_count(models.config, models.target)))


@torch.no_grad()
def _ones_are_stock(models: TinyModels) -> float:
    expected = models.stock()(models.tokens, use_cache=False).logits
    masked = models.masked()
    ones = {kind: torch.ones_like(gate) for kind, gate in masked.gates.items()}
    errors = []
    for masks in ({}, ones):
        with masked.fixed_masks(masks):
            errors.append(float((masked(models.tokens).logits - expected).abs().max()))
    return max(errors)


@torch.no_grad()
def _extracted_is_masked(models: TinyModels) -> float:
    masked = models.masked()
    pruned = masked.extract()
    if Target.of(pruned.config) != masked.target:
        return math.inf
    got, errors = pruned(models.tokens, use_cache=False).logits, []
    for skip in (True, False):  # a wrong index can be the same in extraction and in a forward pass that skips units
        masked.skip_pruned_units = skip
        errors.append(_difference(got, masked(models.tokens).logits))
    return max(errors)


@torch.no_grad()
def _extracted_is_masked_for_each_kind(models: TinyModels) -> float:
    errors = []
    target, exact = models.target, hidden_rule_of(models.config) == "heads times head_dim"
    kinds: list[tuple[str, ...]] = [("layers",), ("intermediate",)]
    kinds += [("experts",)] if target.experts is not None else []
    kinds += [("hidden", "kv_heads")] if exact else [("hidden",), ("kv_heads",)]
    for kind in kinds:
        sizes = {name: getattr(target, name) for name in kind}
        if "hidden" in sizes and hidden_rule_of(models.config) == "multiple of heads":
            sizes["hidden"] -= sizes["hidden"] % models.config.num_attention_heads
        if kind == ("kv_heads",) and hidden_rule_of(models.config) == "multiple of heads":
            sizes["kv_heads"] = 2
        errors.append(_extracted_is_masked(replace(models, one_kind=Target(**sizes))))
    return max(errors)


@torch.no_grad()
def _padded(models: TinyModels) -> float:
    masked = models.masked()
    pruned = masked.extract()
    attended = torch.ones_like(models.tokens)
    attended[0, :3] = 0
    got, expected = (model(models.tokens, attention_mask=attended).logits for model in (pruned, masked))
    return _difference(got[attended.bool()], expected[attended.bool()])


@torch.no_grad()
def _generated(models: TinyModels) -> float:
    masked = models.masked()
    pruned: Any = masked.extract()
    settings: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    cached = masked.generate(models.tokens, **settings)
    got = pruned.generate(models.tokens, **settings)
    uncached = pruned(cached.sequences[:, :-1], use_cache=False).logits[:, LENGTH - 1 :]
    if not torch.equal(got.sequences, cached.sequences):
        return math.inf
    expected = torch.stack(cached.logits, dim=1)
    return max(_difference(torch.stack(got.logits, dim=1), expected), _difference(uncached, expected))


@torch.no_grad()
def _reloaded(models: TinyModels) -> float:
    with tempfile.TemporaryDirectory() as folder:
        pruned = models.masked().export(Path(folder) / "model")
        loaded = AutoModelForCausalLM.from_pretrained(Path(folder) / "model", trust_remote_code=False)
    expected = pruned(models.tokens, use_cache=False).logits
    return float((loaded(models.tokens, use_cache=False).logits - expected).abs().max())


@torch.no_grad()
def _soft_values(models: TinyModels) -> float:
    errors = []
    if models.target.experts is not None:  # their soft values are refused
        models = replace(models, one_kind=replace(models.target, experts=None))
    for mask_norms in (False, True):
        masked = models.masked(mask_values="soft", mask_norms=mask_norms)
        pruned = masked.extract()
        errors.append(_difference(pruned(models.tokens, use_cache=False).logits, masked(models.tokens).logits))
    return max(errors)


def _step(models: TinyModels, *, skip: bool, every_unit: bool = False) -> tuple[MaskedModel, Tensor]:
    """Return a masked model after a training step's backward pass, and its logits; about half of the units active.

    With ``every_unit`` the active units are a superset, as the lookahead predicts one: all units.
    """
    masked = models.masked(skip_pruned_units=skip).train()
    for gate in masked.gates.values():
        gate.data -= 1.0
    masked.sample_masks(torch.Generator().manual_seed(models.seed + 1))
    if every_unit:
        masked.assume_active(all_units(masked.masks(), **masked.applied.widths))
    output: Any = masked(models.tokens, labels=models.tokens)
    output.loss.backward()
    return masked, output.logits.detach()


def _skipped_is_masked(models: TinyModels) -> float:
    masking, expected = _step(models, skip=False)
    errors = []
    for every_unit in (False, True):
        skipping, got = _step(models, skip=True, every_unit=every_unit)
        active = skipping.applied.active
        assert active.hidden is not None, "no unit is skipped"
        assert every_unit == (len(active.hidden) == sizes_of(models.config)["hidden"]), "hidden units are not skipped"
        errors.append(_difference(got, expected))
        ours = dict(skipping.named_parameters())
        for name, parameter in masking.named_parameters():
            if parameter.grad is not None:
                found = ours[name].grad
                errors.append(math.inf if found is None else _difference(found, parameter.grad))
    return max(errors)


def _pruned_units_have_no_gradient(models: TinyModels) -> float:
    largest = 0.0
    for skip in (True, False):
        masked, _ = _step(models, skip=skip)
        masks = {kind: mask.detach() for kind, mask in masked.masks().items()}
        pruned = {kind: (mask == 0).to(mask.dtype) for kind, mask in masks.items()}
        layers = masks["layer"].tolist()
        inside = pruned.pop("intermediate") if masks["intermediate"].ndim > 2 else None
        every = KeptUnits.of({**pruned, "layer": torch.ones_like(masks["layer"])}, masked.source)
        found = _pruned_gradients(masked, every, layers)
        if inside is not None:
            found = chain(found, _gradients_in_experts(masked, inside))
        for name, gradient in found:
            assert gradient is not None, f"{name} has no gradient"
            if gradient.numel():
                largest = max(largest, float(gradient.abs().max()))
    return largest


def _pruned_gradients(
    masked: MaskedModel, units: KeptUnits, layers: list[float]
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the gradients of the entries of pruned ``units``, and all of those of pruned blocks."""
    config, parameters = masked.model.config, dict(masked.model.named_parameters())
    along = axis_sizes(config, Target())
    for weight in weights_of(config):
        gradient = parameters[weight.name].grad
        if gradient is None or (weight.block is not None and layers[weight.block] == 0):
            yield weight.name, gradient
            continue
        index = unit_indices(config, units, weight.block)
        if units.experts:
            index.pop(
                "intermediate", None
            )  # numbers of units that differ between experts: :func:`_gradients_in_experts`
        for dimension, axis in enumerate(weight.axes):
            chosen = entries_of(axis, index, along)
            if chosen is not None:
                yield weight.name, select_entries(gradient, dimension, chosen)


def _gradients_in_experts(masked: MaskedModel, pruned: Tensor) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the gradients of stacked weights, times one for each pruned unit inside experts and zero for the others.

    Args:
        masked: The model after a backward pass.
        pruned: One for each pruned unit, else zero, [L, E, F].
    """
    parameters = dict(masked.model.named_parameters())
    for weight in weights_of(masked.model.config):
        if not weight.part.is_stacked or weight.block is None:
            continue
        gradient = parameters[weight.name].grad
        for dimension, axis in enumerate(weight.axes):
            units = pruned[weight.block]
            if isinstance(axis, tuple):
                units = units.repeat(1, axis.count("intermediate"))
            elif axis == "gate_up":
                units = units.repeat_interleave(2, dim=1)
            if ("intermediate" in axis or axis == "gate_up") and gradient is not None:
                by_unit = gradient.movedim(dimension, 1)
                yield weight.name, by_unit.reshape(*units.shape, -1) * units[..., None]


PROPERTIES: dict[str, tuple[Callable[[TinyModels], float], float]] = {
    "parameters counted = extracted": (_counts_parameters, 0.0),
    "masks at one = stock": (_ones_are_stock, 0.0),
    "masked = extracted": (_extracted_is_masked, TOLERANCE),
    "masked = extracted, one kind": (_extracted_is_masked_for_each_kind, TOLERANCE),
    "left padding": (_padded, TOLERANCE),
    "cached generation": (_generated, TOLERANCE),
    "reloaded = extracted": (_reloaded, 0.0),
    "soft values folded": (_soft_values, TOLERANCE),
    "skipped = masked, with gradients": (_skipped_is_masked, 10 * TOLERANCE),
    "gradient of pruned units": (_pruned_units_have_no_gradient, 0.0),
}
"""By name: a function that returns the largest error, and the largest valid one."""
