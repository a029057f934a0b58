"""Cross-modal aligning contrast (paper section 3.3): symmetric InfoNCE over the batches of all ranks."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

Keys = Literal["differentiable", "detached"]


def gather(x_BD: Tensor, keys: Keys) -> Tensor:
    """(ranks · B, D) rows of all ranks in rank order; every rank must bring the same number.

    ``differentiable``: gradients flow back to the rank that a row came from. ``detached``: no gradient, not even to
    the rows of this rank (the published training).
    """
    if keys == "detached":
        x_BD = x_BD.detach()
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x_BD
    if keys == "differentiable":
        return torch.cat(all_gather(x_BD.contiguous()))
    rows = [torch.empty_like(x_BD) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x_BD.contiguous())
    return torch.cat(rows)


def aligning_contrast(first_BD: Tensor, second_BD: Tensor, scale: Tensor, keys: Keys = "differentiable") -> Tensor:
    """Mean cross-entropy of finding a sample's partner among all ranks' samples, both ways.

    Args:
        first_BD: unit-length embeddings of this rank's samples in one modality.
        second_BD: those of the same samples in the other modality.
        scale: inverse temperature.
        keys: how the gradient treats the samples that are compared with (``gather``). With ``differentiable`` the mean
            over ranks of the gradients is that of one process with the whole batch.
    """
    if keys not in ("differentiable", "detached"):
        raise ValueError(f"keys is {keys!r}; choose 'differentiable' or 'detached'")
    rank = dist.get_rank() if dist.is_initialized() else 0
    target = torch.arange(len(first_BD), device=first_BD.device) + rank * len(first_BD)
    with torch.autocast(first_BD.device.type, enabled=False):  # bfloat16 would blur logits of up to 100
        forth = scale * first_BD @ gather(second_BD, keys).T
        back = scale * second_BD @ gather(first_BD, keys).T
        return (F.cross_entropy(forth, target) + F.cross_entropy(back, target)) / 2
