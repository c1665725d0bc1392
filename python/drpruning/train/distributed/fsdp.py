"""A model over the ranks of a run: weights sharded by FSDP2, gates and multipliers replicated.

Weights, gradients and optimizer states are sharded by FSDP2 (``fully_shard``), block by block. ``training.fsdp_shard``
ranks share one copy; several such groups hold a replica each and average their gradients (hybrid sharding, HSDP).
Gates and multipliers are a few numbers that every rank needs: they are replicated, and their gradients averaged here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from drpruning.config import TrainingConfig
from drpruning.hf.models import build_on_meta, can_be_filled, fill_buffers, load, load_on_meta, saved_tensors
from drpruning.hf.tensor_stream import ReadTensor
from drpruning.pruning import MaskedModel
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.model_structure import decoder_blocks


def num_shards(shards: int | Literal["all", "node"], ranks: Ranks) -> int:
    """Return the number of ranks that share one copy of the weights."""
    if shards == "all":
        return ranks.world_size
    return ranks.local_size if shards == "node" else shards


def place_model(model: Any, device: torch.device, ranks: Ranks, training: TrainingConfig) -> Any:
    """Move a model to the device or, with several ranks, shard it over theirs.

    Args:
        model: A model of transformers, or a :class:`MaskedModel`; on every rank the same.
        device: Device of this rank.
        ranks: The processes of the run.
        training: The recipe's section, with the number of ranks that share one copy, and the dtype of the passes.

    Returns:
        The model, changed in place.
    """
    if not ranks.alone:
        _shard_over(model, device, ranks, training)
    return model.to(device)


def load_model(
    source: str | Path,
    device: torch.device,
    ranks: Ranks,
    training: TrainingConfig,
    *,
    dtype: torch.dtype = torch.float32,
    wrap: Callable[[Any], Any] = lambda plain: plain,
) -> Any:
    """Load a model: whole on the device or, with several ranks, each rank its own part of the files.

    A model that only transformers can read (see :func:`drpruning.hf.models.load_on_meta`) is whole in the memory of
    every rank before it is sharded.

    Args:
        source: A Hugging Face folder or name.
        device: Device of this rank.
        ranks: The processes of the run.
        training: As of :func:`place_model`.
        dtype: Dtype of the weights.
        wrap: Applied to the model, with several ranks before its weights are loaded; may change it in place.

    Returns:
        The wrapped model, in evaluation mode.

    Raises:
        ConfigError: As :func:`drpruning.hf.models.load` raises it.
    """
    found = None if ranks.alone else load_on_meta(source, dtype)
    if found is None:
        return place_model(wrap(load(source, dtype, device if ranks.alone else "cpu")), device, ranks, training)
    inner, weights = found
    model = wrap(inner)
    _shard_over(model, device, ranks, training)
    weights.fill(inner, device)
    return model.to(device)


def _shard_over(model: Any, device: torch.device, ranks: Ranks, training: TrainingConfig) -> None:
    # A pruned block returns its input as a view; no code here writes to it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = device_mesh(device.type, ranks.world_size, num_shards(training.fsdp_shard, ranks))
    ranks.set_timeout(mesh.get_all_groups())
    shard_model(model, mesh, training.dtype)


def shard_model(model: Any, mesh: DeviceMesh, dtype: Literal["float32", "bfloat16"]) -> None:
    """Shard a model, or the one under masks, in place: block by block, and then the rest as one group.

    With ``bfloat16`` FSDP casts each rank's part before it gathers a block: half the bytes are sent, and autocast has
    nothing to cast, which would cache a copy of every block until the end of the forward pass. Gradients are summed
    over ranks in float32, whatever the dtype of the weights. Gates are outside of FSDP.

    A frozen model gathers its last group again in each forward pass; a trained one keeps it for the backward pass.

    Args:
        model: A model of transformers, or a :class:`MaskedModel`.
        mesh: From :func:`device_mesh`.
        dtype: Dtype of gathered weights: ``training.dtype``.
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
"""Meshes by the process group of all ranks: one set of groups for all models."""


def device_mesh(device: str, ranks: int, shards: int) -> DeviceMesh:
    """Return a mesh with the dimension ``shard`` or, for several replicas, ``copy`` by ``shard``; cached.

    Args:
        device: Type of the ranks' devices.
        ranks: Number of ranks.
        shards: Number of ranks that share a copy.
    """
    made = _MESHES.setdefault(distributed.group.WORLD, {})
    key = device, ranks, shards
    if key not in made and shards == ranks:
        made[key] = init_device_mesh(device, (shards,), mesh_dim_names=("shard",))
    elif key not in made:
        made[key] = init_device_mesh(device, (ranks // shards, shards), mesh_dim_names=("copy", "shard"))
    return made[key]


def gather_model(model: Any, read: ReadTensor, wrap: Callable[[Any], Any] = lambda plain: plain) -> Any:
    """Return a copy of a sharded model, whole in the memory of the CPU; call it on one rank.

    Args:
        model: From :func:`place_model` or :func:`load_model`.
        read: From :func:`drpruning.train.distributed.whole_tensors.read_on_first`.
        wrap: Wraps a model of transformers as ``model`` is wrapped.
    """
    inner = model.model if isinstance(model, MaskedModel) else model
    plain, host = build_on_meta(inner.config, inner.dtype), torch.device("cpu")
    if can_be_filled(plain):
        plain.to_empty(device=host)
        plain.tie_weights()
        fill_buffers(plain, host)
    else:
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            plain = AutoModelForCausalLM.from_config(inner.config, dtype=inner.dtype, trust_remote_code=False)
    for name, tensor in saved_tensors(plain).items():
        tensor.copy_(read(name))
    plain.generation_config = inner.generation_config
    copy = wrap(plain)
    if isinstance(model, MaskedModel):  # gates, multipliers and the like
        state = model.state_dict()
        copy.load_state_dict({name: state[name] for name in state if not name.startswith("model.")}, strict=False)
    return copy.train(model.training)


def set_replica_sync(model: nn.Module, last: bool) -> None:
    """Set whether the next backward pass averages the gradients of the replicas (hybrid sharding).

    Micro-batches before the last one add to the rank's part, a float32 sum over the ranks that share a copy. Without
    that sum (``set_requires_gradient_sync``) every rank would hold whole gradients.

    Args:
        model: From :func:`place_model`; a model that is not sharded has no replicas.
        last: Whether the micro-batch is the last of its step.
    """
    inner: Any = model.model if isinstance(model, MaskedModel) else model
    if hasattr(inner, "set_requires_all_reduce"):
        inner.set_requires_all_reduce(last)


def average_replicated_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Average the gradients of replicated parameters over the ranks, in one all-reduce."""
    if ranks.alone:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    flat = ranks.sum(torch.cat([gradient.flatten() for gradient in gradients])) / ranks.world_size
    for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def clip_grad_norm(parameters: list[nn.Parameter], max_norm: float, *, along: Sequence[nn.Parameter] = ()) -> Tensor:
    """Scale the gradients to a norm of at most ``max_norm``.

    Args:
        parameters: Sharded or not.
        max_norm: The bound.
        along: Replicated parameters whose gradients count in the norm and are scaled too.

    Returns:
        The norm of the gradients of ``parameters`` before, over all ranks.
    """
    norm = grad_norm(parameters)
    total = torch.hypot(norm, grad_norm(along)) if along else norm
    for each in (parameters, along):
        torch.nn.utils.clip_grads_with_norm_(each, max_norm, total)
    return norm


def grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of the gradients over all ranks, a float32 scalar, whatever the dtype of the gradients.

    Either all parameters are sharded, on one mesh, or none is. Sharded gradients take one all-reduce over the ranks of
    a copy.
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
