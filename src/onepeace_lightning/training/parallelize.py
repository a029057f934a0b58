"""The parallel plan: one function that prepares a module for one device or many, in the only order that works.

Meta device, compilation per block, activation checkpointing per block, sharding per block and then of the root, then
values: drawn here, or loaded by the caller.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from onepeace_lightning.checkpoints.sharded import shard_like
from onepeace_lightning.models.block import Block
from onepeace_lightning.models.encoder import compile_blocks
from onepeace_lightning.models.vision.detection_trunk import WindowBlock


@dataclass(frozen=True)
class ParallelConfig:
    """How a model is laid out on its devices.

    Attributes:
        checkpoint_activations: keep only each block's input for the backward pass and compute the block again there;
            a third more arithmetic for a fraction of the memory.
        compile: compile blocks with ``torch.compile``.
        reshard_after_forward: free a block's gathered weights after each pass, so that the backward pass gathers them
            once more; False keeps them until then. Without sharding it means nothing.
    """

    checkpoint_activations: bool = False
    compile: bool = False
    reshard_after_forward: bool = True


def parallelize(
    module: nn.Module,
    settings: ParallelConfig = ParallelConfig(),
    *,
    device: torch.device,
    mesh: DeviceMesh | None = None,
    gather_dtype: torch.dtype | None = None,
    entries: Sequence[str] = (),
) -> None:
    """Compile, checkpoint and shard a module in place, then draw its values.

    Whatever is on the meta device afterwards holds the values that one process would have drawn from the same seed when
    building the module directly, on any number of ranks. Loading a checkpoint comes after.

    Args:
        module: the root, built on the meta device with ``requires_grad`` already set; its blocks are the units of
            everything.
        settings: what is done.
        device: where the values go.
        mesh: over which to shard; 1-D, or 2-D to replicate over the first dimension and shard over the second. None
            leaves the module whole.
        gather_dtype: type that blocks' weights are gathered in, under autocast of the same type; masters, their
            gradients' reduction and the optimizer stay float32, and so does all that is outside of blocks, the
            temperature among it. None gathers as stored.
        entries: methods of the root that are called instead of ``forward``. Sharded parameters exist whole only inside.

    Raises:
        TypeError: an owner of parameters or buffers has no ``reset_parameters``.
    """
    blocks = [part for part in module.modules() if isinstance(part, (Block, WindowBlock))]
    if settings.compile:
        compile_blocks(module)
    if settings.checkpoint_activations:
        for block in blocks:
            # The hooks that gather weights are outside of forward: computing it again does not gather again.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if mesh is not None:
        # Inputs keep their type: the residual stream is float32, as under autocast alone.
        policy = MixedPrecisionPolicy(param_dtype=gather_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=settings.reshard_after_forward)
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        # FSDP guesses from the order of all forward passes what the backward pass needs next. After a second pass for
        # the teachers, that gathers the last block once too often.
        for before, after in pairwise([module, *blocks]):
            cast(FSDPModule, after).set_modules_to_backward_prefetch([cast(FSDPModule, before)])
        for name in entries:
            register_fsdp_forward_method(module, name)
    materialise(module, device)


def class_name(module: nn.Module) -> str:
    """The name of a module's class; ``fully_shard`` puts a class of its own before it."""
    return next(kind.__name__ for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


@torch.no_grad()
def materialise(module: nn.Module, device: torch.device) -> None:
    """Give everything on the meta device its initial value, owner by owner, in the order of construction.

    A sharded owner is drawn whole, once on every rank, and each rank keeps its shard: the values do not depend on the
    number of ranks, and no more than one owner is ever whole.

    Args:
        module: parts of it may have values already; they keep them.
        device: where the values go.

    Raises:
        TypeError: an owner of parameters or buffers has no ``reset_parameters``; all such types are named.
    """
    owners = [owner for owner in _children_first(module) if any(tensor.is_meta for tensor in _own(owner))]
    if lacking := sorted({type(owner).__name__ for owner in owners if not hasattr(owner, "reset_parameters")}):
        raise TypeError(f"{', '.join(lacking)}: every owner of parameters or buffers needs a method reset_parameters")
    # Not to_empty, which would also empty what has values, such as the states of metrics.
    module._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
    for owner in owners:
        sharded: dict[str, Any] = {name: t for name, t in owner._parameters.items() if isinstance(t, DTensor)}
        whole = {name: nn.Parameter(tensor.to_local().new_empty(tensor.shape)) for name, tensor in sharded.items()}
        owner._parameters.update(whole)
        cast(nn.Linear, owner).reset_parameters()
        owner._parameters.update(sharded)
        for name, tensor in sharded.items():
            tensor.copy_(shard_like(whole[name], tensor))


def _own(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    """All modules in the order in which their constructors end: children in order of registration, then the parent."""
    for child in module.children():
        yield from _children_first(child)
    yield module
