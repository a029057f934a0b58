"""Clipping the norm of gradients that may be sharded."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their norm, over all shards together, is at most ``max_norm``.

    ``nn.utils.clip_grad_norm_`` on each process's own shards, as ``adamw.ShardAdamW`` and for its reason.

    Returns:
        () the norm before.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    shards = [gradient.to_local() for gradient in sharded]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    square = nn.utils.get_total_norm(shards) ** 2
    if sharded:
        mesh = sharded[0].device_mesh
        for dimension, placement in enumerate(sharded[0].placements):
            if isinstance(placement, Shard):
                torch.distributed.all_reduce(square, group=mesh.get_group(dimension))
    norm = (square + nn.utils.get_total_norm(whole) ** 2).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if gradients:
        torch._foreach_mul_([*shards, *whole], factor)
    return norm
