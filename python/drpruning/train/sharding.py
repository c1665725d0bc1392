"""A model over the ranks of a run: its weights in parts, its masks whole and the same on each.

Weights, gradients and optimizer states are sharded by FSDP2 (``fully_shard``), block by block. ``training.shards``
ranks share one copy; several such groups hold a copy each and average their gradients (hybrid sharding). Gates and
multipliers are a few numbers that every rank needs: each holds all of them, and their gradients are averaged here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from drpruning.config import RunConfig, TrainingConfig
from drpruning.errors import ConfigError
from drpruning.hf.models import build_on_meta, can_be_filled, fill_buffers, load, load_on_meta
from drpruning.pruning import MaskedModel
from drpruning.train.any_model import decoder_blocks
from drpruning.train.ranks import Ranks


def check_ranks(config: RunConfig, ranks: Ranks) -> None:
    """Makes sure that every stage's batch and the shards divide evenly.

    Raises:
        ConfigError: Names the setting that does not.
    """
    size = ranks.world_size
    for name in config.stages:
        if config.stage(name).batch_size % size:
            raise ConfigError(
                f"{name}.batch_size {config.stage(name).batch_size} is not a multiple of the {size} processes",
                "Start another number of processes, or change the batch.",
            )
    shards = num_shards(config.training.shards, ranks)
    if size % shards:
        raise ConfigError(
            f"training.shards {shards} does not divide the {size} processes", "Each copy is held by as many of them."
        )


def num_shards(shards: int | Literal["all", "machine"], ranks: Ranks) -> int:
    """How many ranks share one copy of the weights."""
    if shards == "all":
        return ranks.world_size
    return ranks.local_size if shards == "machine" else shards


def place(model: Any, device: torch.device, ranks: Ranks, training: TrainingConfig) -> Any:
    """Move a model to the device or, with several ranks, shard it over theirs.

    Args:
        model: A model of transformers, or a :class:`MaskedModel`; on every rank the same.
        device: Of this rank.
        ranks: The processes of the run.
        training: Says how many ranks share one copy, and the dtype of forward and backward passes.

    Returns:
        The model, changed in place.
    """
    if not ranks.alone:
        _shard_over(model, device, ranks, training)
    return model.to(device)


def read(
    source: str | Path,
    device: torch.device,
    ranks: Ranks,
    training: TrainingConfig,
    *,
    dtype: torch.dtype = torch.float32,
    wrap: Callable[[Any], Any] = lambda plain: plain,
) -> Any:
    """Read a model to where it is used: whole on the device or, with several ranks, each its own part of the files.

    A model that only transformers can read (:func:`drpruning.hf.models.load_on_meta`) is whole in every rank's memory
    before it is sharded.

    Args:
        source: A Hugging Face folder or name.
        device: Of this rank.
        ranks: The processes of the run.
        training: As of :func:`place`.
        dtype: Of the weights.
        wrap: Applied to the model, with several ranks before its weights are there; may change it in place.

    Returns:
        The wrapped model, in evaluation mode.

    Raises:
        ConfigError: As :func:`drpruning.hf.models.load` raises it.
    """
    found = None if ranks.alone else load_on_meta(source, dtype)
    if found is None:
        return place(wrap(load(source, dtype, device if ranks.alone else "cpu")), device, ranks, training)
    inner, weights = found
    model = wrap(inner)
    _shard_over(model, device, ranks, training)
    weights.fill(inner, device)
    return model.to(device)


def _shard_over(model: Any, device: torch.device, ranks: Ranks, training: TrainingConfig) -> None:
    # A closed block returns its input as a view; nothing here writes to it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = sharding_mesh(device.type, ranks.world_size, num_shards(training.shards, ranks))
    ranks.set_limit(mesh.get_all_groups())
    shard(model, mesh, training.dtype)


def shard(model: Any, mesh: DeviceMesh, dtype: Literal["float32", "bfloat16"]) -> None:
    """Shard a model, or the one under masks, in place: block by block, and then the rest as one group.

    With ``bfloat16`` FSDP casts each rank's part before it gathers a block, so that half the bytes are sent and
    autocast has nothing to cast: autocast would cache a copy of every block until the end of the forward pass.
    Gradients are summed over ranks in float32, whatever the dtype of the weights. Gates are outside of FSDP.

    A frozen model gathers its last group again in each forward pass; a trained one keeps it for the backward pass.

    Args:
        model: A model of transformers, or a :class:`MaskedModel`.
        mesh: As :func:`sharding_mesh` returns it.
        dtype: Of gathered weights: ``training.dtype``.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: PLC0415 - takes a second to load

    inner = model.model if isinstance(model, MaskedModel) else model
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if dtype == "bfloat16" else None, reduce_dtype=torch.float32
    )
    frozen = not any(parameter.requires_grad for parameter in inner.parameters())
    rest: dict[str, Any] = {"reshard_after_forward": True} if frozen else {}
    for block in decoder_blocks(inner):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(inner, mesh=mesh, mp_policy=policy, **rest)


_MESHES: WeakKeyDictionary[Any, dict[tuple[str, int, int], DeviceMesh]] = WeakKeyDictionary()
"""Meshes by the process group of all ranks: groups of copies and shards are made once, and not for each model."""


def sharding_mesh(device: str, ranks: int, shards: int) -> DeviceMesh:
    """Return a mesh of one dimension of shards or, where there are several copies, copies by shards.

    Args:
        device: Type of the ranks' devices.
        ranks: How many there are.
        shards: How many of them share a copy.
    """
    made = _MESHES.setdefault(distributed.group.WORLD, {})
    key = device, ranks, shards
    if key not in made and shards == ranks:
        made[key] = init_device_mesh(device, (shards,), mesh_dim_names=("shard",))
    elif key not in made:
        made[key] = init_device_mesh(device, (ranks // shards, shards), mesh_dim_names=("copy", "shard"))
    return made[key]


def whole(model: Any, ranks: Ranks, wrap: Callable[[Any], Any] = lambda plain: plain) -> Any:
    """Return the model in one piece: itself, or with several ranks a copy in rank 0's memory; None on the others.

    Args:
        model: As :func:`place` or :func:`read` returned it.
        ranks: The processes of the run.
        wrap: Makes a model of this kind of a model of transformers, as was done for ``model``.
    """
    if ranks.alone:
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if not ranks.first:
        return None
    inner, prefix = (model.model, "model.") if isinstance(model, MaskedModel) else (model, "")
    plain = build_on_meta(inner.config, inner.dtype)
    if not can_be_filled(plain):
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            plain = AutoModelForCausalLM.from_config(inner.config, dtype=inner.dtype)
    of_plain = [name for name in state if name.startswith(prefix)]
    plain.load_state_dict({name.removeprefix(prefix): state.pop(name) for name in of_plain}, assign=True)
    plain.tie_weights()
    fill_buffers(plain, torch.device("cpu"))
    plain.generation_config = inner.generation_config
    copy = wrap(plain)
    copy.load_state_dict(state, strict=False)  # gates, multipliers and the like
    return copy.train(model.training)


def average_between_copies(model: nn.Module, now: bool) -> None:
    """Choose whether the next backward pass averages the gradients of several copies (hybrid sharding).

    All micro-batches but the last only add to the rank's own part, a float32 sum over the ranks that share a copy. To
    leave out that sum as well (``set_requires_gradient_sync``) would keep whole gradients on every rank.

    Args:
        model: As :func:`place` returned it; one that is not sharded has no copies.
        now: Whether the micro-batch is the last of its step.
    """
    inner: Any = model.model if isinstance(model, MaskedModel) else model
    if hasattr(inner, "set_requires_all_reduce"):
        inner.set_requires_all_reduce(now)


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Averages the gradients of parameters that every rank holds whole over the ranks, in one go."""
    if ranks.alone:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    flat = ranks.sum(torch.cat([gradient.flatten() for gradient in gradients])) / ranks.world_size
    for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def clip(parameters: list[nn.Parameter], largest: float, *, along: Sequence[nn.Parameter] = ()) -> Tensor:
    """Scales the gradients to a norm of at most ``largest``.

    Args:
        parameters: Sharded or not.
        largest: The bound.
        along: Parameters that every rank holds whole, whose gradients count in the norm and are scaled too.

    Returns:
        The norm that the gradients of ``parameters`` had, over all ranks.
    """
    norm = norm_of(parameters)
    total = torch.hypot(norm, norm_of(along)) if along else norm
    for each in (parameters, along):
        torch.nn.utils.clip_grads_with_norm_(each, largest, total)
    return norm


def norm_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of the gradients over all ranks, a float32 scalar, whatever the dtype of the gradients.

    Parameters are sharded all alike, or not at all. Sharded gradients take one sum over the ranks that share a copy.
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    if not gradients:
        return torch.zeros(())
    local = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
    norms = torch._foreach_norm(local, 2, dtype=torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    if isinstance(gradients[0], DTensor):
        square = norm.square()
        distributed.all_reduce(square, group=gradients[0].device_mesh.get_group("shard"))
        norm = square.sqrt()
    return norm
