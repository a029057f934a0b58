"""The norm of gradients that may be sharded, and clipping it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """() L2 norm of all gradients, over all shards together.

    ``nn.utils.get_total_norm`` on each process's own shards: DTensor's would keep a plan for each new number
    (``optimizer.ShardAdamW``).
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    square = nn.utils.get_total_norm([gradient.to_local() for gradient in sharded]) ** 2
    if sharded:
        mesh = sharded[0].device_mesh
        for dimension, placement in enumerate(sharded[0].placements):
            if isinstance(placement, Shard):
                torch.distributed.all_reduce(square, group=mesh.get_group(dimension))
    whole = nn.utils.get_total_norm([gradient for gradient in gradients if not isinstance(gradient, DTensor)])
    return (square + whole**2).sqrt()


def scale_gradients(parameters: Sequence[nn.Parameter], factor: Tensor) -> None:
    """Multiply all gradients by one number, ()."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_([g.to_local() if isinstance(g, DTensor) else g for g in gradients], factor)
