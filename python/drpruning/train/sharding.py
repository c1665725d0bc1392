"""A model over the ranks of a run: its weights in parts, its masks whole and the same on each.

Weights, gradients and optimizer states are sharded by FSDP2 (``fully_shard``), block by block. ``training.shards``
ranks share one copy; several such groups hold a copy each and average their gradients (hybrid sharding). Gates and
multipliers are a few numbers that every rank needs: each holds all of them, and their gradients are averaged here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from drpruning.config import RunConfig
from drpruning.errors import ConfigError
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


def place(model: Any, device: torch.device, ranks: Ranks, shards: int | Literal["all", "machine"] = "all") -> Any:
    """Puts a model where it is used: on the device or, with several ranks, in parts on theirs.

    Args:
        model: A model of transformers, or a :class:`MaskedModel`; on every rank the same.
        device: Of this rank.
        ranks: The processes of the run.
        shards: As in the recipe: how many ranks share one copy.

    Returns:
        The model, changed in place.
    """
    if ranks.alone:
        return model.to(device)
    # A closed block returns what it was given, as a view; nothing here writes to it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = sharding_mesh(device.type, ranks.world_size, num_shards(shards, ranks))
    ranks.set_limit(mesh.get_all_groups())
    shard(model, mesh)
    return model.to(device)


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Shards a model, or the one under masks, in place: block by block, and then what is left."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - takes a second to load

    inner = model.model if isinstance(model, MaskedModel) else model
    for block in decoder_blocks(inner):
        fully_shard(block, mesh=mesh)
    fully_shard(inner, mesh=mesh)


def sharding_mesh(device: str, ranks: int, shards: int) -> DeviceMesh:
    """One dimension of shards or, where there are several copies, copies by shards.

    Args:
        device: Type of the ranks' devices.
        ranks: How many there are.
        shards: How many of them share a copy.
    """
    if shards == ranks:
        return init_device_mesh(device, (shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (ranks // shards, shards), mesh_dim_names=("copy", "shard"))


def whole(model: Any, ranks: Ranks, wrap: Callable[[Any], Any] = lambda plain: plain) -> Any:
    """The model in one piece: itself, or with several ranks a copy in rank 0's memory; None on the others.

    Args:
        model: As :func:`place` returned it.
        ranks: The processes of the run.
        wrap: Makes a model of this kind of a model of transformers, as was done for ``model``.
    """
    if ranks.alone:
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if not ranks.first:
        return None
    inner = model.model if isinstance(model, MaskedModel) else model
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
        plain = AutoModelForCausalLM.from_config(inner.config, dtype=inner.dtype)
    plain.generation_config = inner.generation_config
    copy = wrap(plain)
    copy.load_state_dict(state)
    return copy.train(model.training)


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
    total = torch.hypot(norm, norm_of(along).to(norm.dtype)) if along else norm
    for each in (parameters, along):
        torch.nn.utils.clip_grads_with_norm_(each, largest, total)
    return norm


def norm_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of the gradients, over all ranks where they are sharded."""
    norm = torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    whole_norm: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return whole_norm
