"""Cross-modal aligning contrast over the batches of all ranks: symmetric InfoNCE (paper section 3.3), or pair by pair.

No more than ``chunks.LOGITS`` logits are kept; beyond that they are computed in chunks of rows, and once again in the
backward pass.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from onepeace_lightning.losses.chunks import of_each_row

Keys = Literal["differentiable", "detached"]
ContrastChoice = Literal["softmax", "sigmoid"]


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
    """The mean of ``aligning_losses``."""
    return aligning_losses(first_BD, second_BD, scale, keys).mean()


def aligning_losses(first_BD: Tensor, second_BD: Tensor, scale: Tensor, keys: Keys = "differentiable") -> Tensor:
    """(B,) cross-entropy of finding each sample's partner among all ranks' samples, the mean of both ways.

    Args:
        first_BD: unit-length embeddings of this rank's samples in one modality.
        second_BD: those of the same samples in the other modality.
        scale: inverse temperature.
        keys: how the gradient treats the samples that are compared with (``gather``). With ``differentiable`` the mean
            over ranks of the gradients is that of one process with the whole batch.
    """
    if keys not in ("differentiable", "detached"):
        raise ValueError(f"keys is {keys!r}; choose 'differentiable' or 'detached'")
    target_B = _own_rows(first_BD)
    with torch.autocast(first_BD.device.type, enabled=False):  # bfloat16 would blur logits of up to 100
        both = []
        for queries_BD, others_BD in ((first_BD, second_BD), (second_BD, first_BD)):
            keys_ND = gather(others_BD, keys)

            def losses(queries_CD: Tensor, target_C: Tensor, keys_ND: Tensor = keys_ND) -> Tensor:
                return F.cross_entropy(scale * queries_CD @ keys_ND.T, target_C, reduction="none")

            both.append(of_each_row(losses, len(keys_ND), queries_BD, target_B))
        return (both[0] + both[1]) / 2


def sigmoid_contrast(first_BD: Tensor, second_BD: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The mean of ``sigmoid_losses``."""
    return sigmoid_losses(first_BD, second_BD, scale, bias).mean()


def sigmoid_losses(first_BD: Tensor, second_BD: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """(B,) binary cross-entropy of each sample's pairs with all ranks' samples (SigLIP, arXiv 2303.15343).

    For logits z = scale · cosine + bias the loss is softplus(-z) of partners and softplus(z) of all others, summed over
    the pairs of a sample. The mean over ranks of the gradients of the mean is that of one process with the whole batch.

    Args:
        first_BD: unit-length embeddings of this rank's samples in one modality.
        second_BD: those of the same samples in the other modality.
        scale: inverse temperature.
        bias: added to every logit; about -log of the batch's size where training begins, so that the many pairs that
            are not partners do not rule.
    """
    with torch.autocast(first_BD.device.type, enabled=False):
        keys_ND = gather(second_BD, "differentiable")

        def losses(first_CD: Tensor, target_C: Tensor) -> Tensor:
            logits_CN = scale * first_CD @ keys_ND.T + bias
            # softplus(-z) = softplus(z) - z
            return F.softplus(logits_CN).sum(1) - logits_CN.gather(1, target_C[:, None])[:, 0]

        return of_each_row(losses, len(keys_ND), first_BD, _own_rows(first_BD))


def _own_rows(x_BD: Tensor) -> Tensor:
    """(B,) rows of this rank's samples among those of all ranks."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return torch.arange(len(x_BD), device=x_BD.device) + rank * len(x_BD)
