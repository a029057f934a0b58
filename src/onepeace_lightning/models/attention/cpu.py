"""The fast form of padded attention for the CPU; ``benchmarks.packed`` measures it against the reference.

Sequences of a view are padded in groups of like length, all groups are gathered at once, and where the bias learns the
softmax has a backward pass of its own: scaled_dot_product_attention has no such kernel on the CPU, and is slow there in
bfloat16. H = heads, E = head width, B = sequences of one group, L = the longest of them; see ``packing`` for the rest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepeace_lightning.models.attention.base import Attend, RelativeBias
from onepeace_lightning.models.attention.padded import PaddedView, attend, pad_view, write_out
from onepeace_lightning.models.layers import gather_padded
from onepeace_lightning.models.packing import Packed, View, to_device

WORTHWHILE = 2**18
"""Logits of a block, in all heads, that a further group must save; with fewer, its calls cost more than the padding.

Most of the cost is at first sight of a shape: oneDNN then compiles each matrix product, for about half a millisecond.
"""


class CPUAttention:
    """An ``AttentionBackend`` that pads the sequences of every view to a few lengths.

    A relative bias that all blocks share is written out once for the whole pass, others by each block for one group
    after another, so that a single one exists at a time.
    """

    def __init__(self, packed: Packed, views: Sequence[View], heads: int, relative: Mapping[str, RelativeBias]) -> None:
        self.relative = relative
        self.groups: list[PaddedView] = []
        for view, part in zip(views, packed.parts, strict=True):
            ordered = {name: view[name] for name in part}
            first_rows = {name: rows.start for name, rows in part.items()}
            lengths_MB = np.array([tokens.lengths for tokens in ordered.values()])
            self.groups += [
                pad_view(ordered, first_rows, samples) for samples in groups_of_like_length(lengths_MB, heads)
            ]
        self.rows = _Rows(packed, self.groups, heads)
        shared = all(len(bias.tables_RH) == 1 for bias in relative.values())
        self.shared = [write_out(group, relative, 0) for group in self.groups] if shared else None

    def bias(self, group: int, block: int) -> Tensor | None:
        """(1 or B, H, L, L) a block's bias for one group, written out anew unless it is shared."""
        return self.shared[group] if self.shared else write_out(self.groups[group], self.relative, block)

    def block(self, index: int) -> Attend:
        """The attention of one block."""

        def attention(q_TD: Tensor, k_TD: Tensor, v_TD: Tensor) -> Tensor:
            q, k, v = (self.rows.pad(x_TD) for x_TD in (q_TD, k_TD, v_TD))
            mixed = [
                attend_on_cpu(q[number], k[number], v[number], self.bias(number, index), group.valid_BL)
                for number, group in enumerate(self.groups)
            ]
            return self.rows.unpad([*mixed, *v[len(mixed) :]])

        return attention


def attend_on_cpu(
    q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, bias: Tensor | None, valid_BL: Tensor | None
) -> Tensor:
    """What ``padded.attend`` gives, by whichever way is faster on the CPU; the softmax is in float32."""
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    if learned or q_BHLE.dtype == torch.bfloat16:
        return _Softmax.apply(q_BHLE, k_BHLE, v_BHLE, bias, valid_BL)
    return attend(q_BHLE, k_BHLE, v_BHLE, bias, valid_BL)


class _Softmax(torch.autograd.Function):
    """Attention as written, that keeps for its backward pass one (B, H, L, L) tensor: the weights, in the type of q."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, valid_BL: Tensor | None) -> Tensor:
        ctx.scale = q.shape[-1] ** -0.5
        q = q * ctx.scale
        logits = (q @ k.mT).float()
        if bias is not None:
            logits += bias
        if valid_BL is not None:
            logits += torch.zeros_like(valid_BL, dtype=torch.float).masked_fill_(~valid_BL, -torch.inf)[:, None, None]
        weights = logits.softmax(-1).to(v.dtype)
        ctx.save_for_backward(q, k, v, weights)
        ctx.bias_batch, ctx.bias_type = (0, None) if bias is None else (len(bias), bias.dtype)
        return weights @ v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        grad_v = weights.mT @ grad
        grad_logits = torch._softmax_backward_data(grad @ v.mT, weights, -1, weights.dtype)
        grad_bias = None
        if ctx.needs_input_grad[3]:
            one = ctx.bias_batch == 1
            grad_bias = grad_logits.sum(0, True, dtype=ctx.bias_type) if one else grad_logits.to(ctx.bias_type)
        return (grad_logits @ k).mul_(ctx.scale), grad_logits.mT @ q, grad_v, grad_bias, None


def groups_of_like_length(lengths_MB: np.ndarray, heads: int) -> list[list[int]]:
    """Split a view's sequences where that saves attention enough padding.

    Args:
        lengths_MB: tokens of each modality in each sequence.
        heads: H.

    Returns:
        The sequences of each group; one group where all are equally long.
    """
    order = lengths_MB.sum(0).argsort(kind="stable")
    sorted_MB = lengths_MB[:, order]

    def split(start: int, stop: int) -> list[list[int]]:
        part = sorted_MB[:, start:stop]
        if stop - start > 1:
            counts = np.arange(1, stop - start)
            before = np.maximum.accumulate(part, 1).sum(0)[:-1] ** 2 * counts
            after = np.maximum.accumulate(part[:, ::-1], 1)[:, ::-1].sum(0)[1:] ** 2 * (stop - start - counts)
            whole = (stop - start) * part.max(1).sum() ** 2
            if heads * (whole - (before + after).min()) > WORTHWHILE:
                middle = start + int((before + after).argmin()) + 1
                return split(start, middle) + split(middle, stop)
        return [sorted(order[start:stop].tolist())]

    return split(0, lengths_MB.shape[1])


class _Rows:
    """Between (T, D) tokens and the padded (B, H, L, E) heads of all groups, each way in one gather.

    Padding tokens of the packed layout form a last group (1, 1, tokens · H, E) of their own.
    """

    def __init__(self, packed: Packed, groups: Sequence[PaddedView], heads: int) -> None:
        device = packed.values_TD.device
        self.heads = heads
        self.shapes = [(batch, heads, length) for batch, length in (group.rows_BL.shape for group in groups)]
        # Head h of a cell is row base + h · stride.
        base, stride, tokens = [], [], []
        first = 0
        for group, (batch, _, length) in zip(groups, self.shapes, strict=True):
            base.append((first + np.arange(batch)[:, None] * heads * length + np.arange(length)).ravel())
            stride.append(np.full(batch * length, length))
            tokens.append(group.rows_BL.ravel())
            first += batch * heads * length
        total = len(packed.sequences_T)
        is_padding_T = np.ones(total, dtype=bool)
        for part in tokens:
            is_padding_T[part[part >= 0]] = False
        padding = np.flatnonzero(is_padding_T)
        if len(padding):
            self.shapes.append((1, 1, len(padding) * heads))
            base.append(first + np.arange(len(padding)) * heads)
            stride.append(np.ones(len(padding), dtype=np.int64))
            tokens.append(padding)
        base_R, stride_R, tokens_R = np.concatenate(base), np.concatenate(stride), np.concatenate(tokens)
        filled_R = tokens_R >= 0
        cell_T = np.empty(total, dtype=np.int64)
        cell_T[tokens_R[filled_R]] = np.flatnonzero(filled_R)

        def of_all_heads(base: np.ndarray, stride: np.ndarray) -> np.ndarray:
            return (base[:, None] + stride[:, None] * np.arange(heads)).ravel()

        source = np.empty(len(tokens_R) * heads, dtype=np.int64)
        source[of_all_heads(base_R, stride_R)] = of_all_heads(tokens_R.clip(0) * heads, np.ones_like(tokens_R))
        self.source = to_device(source, device)
        self.index = to_device(of_all_heads(base_R[cell_T], stride_R[cell_T]), device)
        self.empty = to_device(of_all_heads(base_R[~filled_R], stride_R[~filled_R]), device)

    def pad(self, x_TD: Tensor) -> list[Tensor]:
        """(T, D) to (B, H, L, E) for every group; cells without a token hold anything."""
        x_NE = gather_padded(x_TD.unflatten(1, (self.heads, -1)).flatten(0, 1), self.source, self.index)
        # split: the backward of a slice would allocate and add the whole
        parts = x_NE.split([batch * heads * length for batch, heads, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def unpad(self, groups: Sequence[Tensor]) -> Tensor:
        """(B, H, L, E) of every group to (T, D)."""
        x_NE = torch.cat([group.flatten(0, 2) for group in groups])
        return _Unpad.apply(x_NE, self.source, self.index, self.empty).unflatten(0, (-1, self.heads)).flatten(1)


class _Unpad(torch.autograd.Function):
    """The way back; rows that hold no token get a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, index: Tensor, empty: Tensor) -> Tensor:
        ctx.save_for_backward(source, empty)
        return x.index_select(0, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        source, empty = ctx.saved_tensors
        return grad.index_select(0, source).index_fill_(0, empty, 0), None, None, None
