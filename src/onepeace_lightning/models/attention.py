"""Self-attention over packed views: projections once over all tokens, attention itself per view.

H = heads, E = head width; see ``tokens`` for the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.layers import Linear
from onepeace_lightning.models.tokens import Packed, Sequences


@dataclass(frozen=True)
class RelativeBias:
    """A modality's bias table (rows, H) and the table row of every pair of positions (P, P)."""

    table_RH: Tensor
    buckets_PP: Tensor


def dense_bias(sequences: Sequences, biases: Mapping[str, RelativeBias]) -> Tensor | None:
    """(1 or B, H, L, L) what is added to the logits of one view; None where no modality has a bias.

    Tokens of different modalities have no bias between them. The first dimension is 1 where every sample has the same
    positions.
    """
    present = {name: block for name, block in sequences.blocks.items() if name in biases}
    if not present:
        return None
    parts: dict[str, Tensor] = {}
    for name, (_, positions_BL) in present.items():
        bias = biases[name]
        rows = bias.buckets_PP[positions_BL[:, :, None], positions_BL[:, None, :]]
        # F.embedding: its backward is much faster on CPU than that of indexing.
        parts[name] = F.embedding(rows, bias.table_RH).permute(0, 3, 1, 2)
    length = sequences.shape[1]
    if len(sequences.blocks) == 1:
        return next(iter(parts.values()))
    batch = max(part.shape[0] for part in parts.values())
    first = next(iter(parts.values()))
    out = first.new_zeros(batch, first.shape[1], length, length)
    for name, part in parts.items():
        start = sequences.blocks[name][0]
        stop = start + part.shape[-1]
        out[:, :, start:stop, start:stop] = part
    return out


def attend(q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, bias: Tensor | None, valid_BL: Tensor | None) -> Tensor:
    """softmax(q kᵀ / sqrt(E) + bias) v over valid keys, (B, H, L, E); the softmax is in float32."""
    if _plain_is_faster(q_BHLE, bias):
        # The product is a fresh tensor that no gradient needs, so it is added to in place.
        logits = (q_BHLE * q_BHLE.shape[-1] ** -0.5 @ k_BHLE.mT).float()
        if bias is not None:
            logits += bias
        if valid_BL is not None:
            logits += torch.zeros_like(valid_BL, dtype=torch.float).masked_fill_(~valid_BL, -torch.inf)[:, None, None]
        return logits.softmax(-1).to(v_BHLE.dtype) @ v_BHLE
    mask = bias if bias is None else bias.to(q_BHLE.dtype)
    if valid_BL is not None:
        keys = valid_BL[:, None, None, :]
        mask = keys if mask is None else mask.masked_fill(~keys, -torch.inf)
    return F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, attn_mask=mask)


def _plain_is_faster(q_BHLE: Tensor, bias: Tensor | None) -> bool:
    """On CPU, scaled_dot_product_attention is slow in bfloat16 and has no kernel with a gradient for the bias."""
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    return q_BHLE.device.type == "cpu" and (learned or q_BHLE.dtype == torch.bfloat16)


class Attention(nn.Module):
    """Multi-head self-attention, key projection without bias, LayerNorm before the output projection ("Sub-LN")."""

    def __init__(self, width: int, heads: int, init_std: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, init_std)
        self.key = Linear(width, width, init_std, bias=False)
        self.value = Linear(width, width, init_std)
        self.norm = nn.LayerNorm(width)
        self.out = Linear(width, width, init_std)

    def forward(self, x_TD: Tensor, packed: Packed, biases: Sequence[Tensor | None]) -> Tensor:
        """(T, D) -> (T, D); one bias per view, as ``dense_bias`` makes it."""
        # split: the backward of a slice would allocate and add the whole
        sizes = [batch * length for batch, length in (sequences.shape for sequences in packed.sequences)]
        q, k, v = (packed.to_padded(project(x_TD)).split(sizes) for project in (self.query, self.key, self.value))
        views = []
        for sequences, bias, q_RD, k_RD, v_RD in zip(packed.sequences, biases, q, k, v, strict=True):
            q_BHLE, k_BHLE, v_BHLE = (self._heads(rows_RD, sequences.shape) for rows_RD in (q_RD, k_RD, v_RD))
            attended = attend(q_BHLE, k_BHLE, v_BHLE, bias, sequences.valid_BL)
            views.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return self.out(self.norm(packed.to_flat(torch.cat(views))))

    def _heads(self, rows_RD: Tensor, shape: tuple[int, int]) -> Tensor:
        return rows_RD.view(*shape, self.heads, -1).transpose(1, 2)
