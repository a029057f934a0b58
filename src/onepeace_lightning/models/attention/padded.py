"""Attention with padding: sequences of like length side by side, the relative bias written out and added to the logits.

H = heads, E = head width, B = sequences of one group, L = the longest of them; see ``tokens`` for the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.models.attention.base import Mix, RelativeBias
from onepeace_lightning.models.layers import spread
from onepeace_lightning.models.packing import Packed, View

WORTHWHILE = 2**18
"""Logits of a block, in all heads, that a further group must save; with fewer, its calls cost more than the padding.

Most of the cost is at first sight of a shape: oneDNN then compiles each matrix product, for about half a millisecond.
"""


@dataclass(frozen=True)
class Sequences:
    """Some sequences of one view, padded to (B, L), the modalities side by side.

    Attributes:
        tokens_BL: the row of the packed tokens that each place holds, on the CPU; -1 where there is none.
        valid_BL: True at tokens, or None where nothing is padded.
        blocks: for every modality its first column and its positions (1 or B, columns).
    """

    tokens_BL: Tensor
    valid_BL: Tensor | None
    blocks: dict[str, tuple[int, Tensor]]

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        return self.tokens_BL.shape[0], self.tokens_BL.shape[1]


def lay_out(view: View, first_rows: Mapping[str, int], samples: Sequence[int] | None = None) -> Sequences:
    """Pad a view's sequences.

    Args:
        view: its modalities in the order in which they are joined.
        first_rows: the row of each modality's first token.
        samples: which sequences; None: all.
    """
    device = next(iter(view.values())).values_TD.device
    rows, valid, blocks = [], [], {}
    start = 0
    for name, tokens in view.items():
        lengths = torch.tensor(tokens.lengths)
        starts = lengths.cumsum(0) - lengths
        if samples is not None:
            lengths, starts = lengths[list(samples)], starts[list(samples)]
        columns = torch.arange(int(lengths.max()))
        here_BL = columns < lengths[:, None]
        local_BL = torch.where(here_BL, starts[:, None] + columns, 0)
        if tokens.full:
            positions = columns.to(device)[None]
        else:
            positions = tokens.positions_T.index_select(0, local_BL.flatten().to(device)).view(local_BL.shape)
        blocks[name] = (start, positions)
        rows.append(torch.where(here_BL, first_rows[name] + local_BL, -1))
        valid.append(here_BL)
        start += len(columns)
    valid_BL = torch.cat(valid, 1)
    return Sequences(torch.cat(rows, 1), None if valid_BL.all() else valid_BL.to(device), blocks)


def bias_rows(sequences: Sequences, relative: Mapping[str, RelativeBias]) -> dict[str, Tensor]:
    """(1 or B, columns, columns) int32 table rows for every modality that has a bias.

    The first dimension is 1 where every sequence has the same positions.
    """
    return {
        name: relative[name].buckets_PP[positions[:, :, None], positions[:, None, :]].int()
        for name, (_, positions) in sequences.blocks.items()
        if name in relative
    }


def dense_bias(sequences: Sequences, rows: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> Tensor | None:
    """(1 or B, H, L, L) what is added to the logits; None where no modality has a bias.

    Args:
        sequences: padded sequences.
        rows: what ``bias_rows`` gives for them.
        tables: modality to its table (rows, H).
    """
    # F.embedding: its backward is much faster on CPU than that of indexing.
    parts = {name: F.embedding(part, tables[name]).permute(0, 3, 1, 2) for name, part in rows.items()}
    if not parts or len(sequences.blocks) == 1:
        return next(iter(parts.values()), None)
    first = next(iter(parts.values()))
    length = sequences.shape[1]
    out = first.new_zeros(max(len(part) for part in parts.values()), first.shape[1], length, length)
    for name, part in parts.items():
        start = sequences.blocks[name][0]
        stop = start + part.shape[-1]
        out[:, :, start:stop, start:stop] = part
    return out


def attend(q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, bias: Tensor | None, valid_BL: Tensor | None) -> Tensor:
    """softmax(q kᵀ / sqrt(E) + bias) v over valid keys, (B, H, L, E); the softmax is in float32."""
    if _plain_is_faster(q_BHLE, bias):
        return _PlainAttention.apply(q_BHLE, k_BHLE, v_BHLE, bias, valid_BL)
    mask = bias if bias is None else bias.to(q_BHLE.dtype)
    if valid_BL is not None:
        keys = valid_BL[:, None, None, :]
        mask = keys if mask is None else mask.masked_fill(~keys, -torch.inf)
    return F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, attn_mask=mask)


def _plain_is_faster(q_BHLE: Tensor, bias: Tensor | None) -> bool:
    """On CPU, scaled_dot_product_attention is slow in bfloat16 and has no kernel with a gradient for the bias.

    On CUDA its memory-efficient kernel has one.
    """
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    return q_BHLE.device.type == "cpu" and (learned or q_BHLE.dtype == torch.bfloat16)


class _PlainAttention(torch.autograd.Function):
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


class Dense:
    """A ``Mixer`` that pads the sequences of every view to a few lengths.

    Args:
        packed: all tokens.
        views: what was packed.
        heads: H.
        relative: modality to its bias. Tables that all blocks share are written out once for the whole pass, others
            by each block for one group after another, so that a single bias exists at a time.
    """

    def __init__(self, packed: Packed, views: Sequence[View], heads: int, relative: Mapping[str, RelativeBias]) -> None:
        self.relative = relative
        self.groups: list[Sequences] = []
        for view, part in zip(views, packed.parts, strict=True):
            ordered = {name: view[name] for name in packed.sizes if name in view}
            first_rows = {name: part[name].start for name in ordered}
            lengths = torch.tensor([tokens.lengths for tokens in ordered.values()])
            self.groups += [lay_out(ordered, first_rows, samples) for samples in groups_of_like_length(lengths, heads)]
        self.rows = _Rows(packed, self.groups, heads)
        self.bias_rows = [bias_rows(sequences, relative) for sequences in self.groups]
        self.shared: list[Tensor | None] | None = None
        if all(len(bias.tables_RH) == 1 for bias in relative.values()):
            self.shared = [self.bias(group, 0) for group in range(len(self.groups))]

    def bias(self, group: int, block: int) -> Tensor | None:
        """(1 or B, H, L, L) a block's bias for one group, written out anew unless it is shared."""
        if self.shared is not None:
            return self.shared[group]
        tables = {name: bias.table(block) for name, bias in self.relative.items()}
        return dense_bias(self.groups[group], self.bias_rows[group], tables)

    def block(self, index: int) -> Mix:
        """The attention of one block."""

        def mix(q_TD: Tensor, k_TD: Tensor, v_TD: Tensor) -> Tensor:
            q, k, v = (self.rows.pad(x_TD) for x_TD in (q_TD, k_TD, v_TD))
            mixed = [
                attend(q[group], k[group], v[group], self.bias(group, index), sequences.valid_BL)
                for group, sequences in enumerate(self.groups)
            ]
            return self.rows.unpad([*mixed, *v[len(mixed) :]])

        return mix


def groups_of_like_length(lengths_MB: Tensor, heads: int) -> list[list[int]]:
    """Split a view's sequences where that saves attention enough padding.

    Args:
        lengths_MB: tokens of each modality in each sequence.
        heads: H.

    Returns:
        The sequences of each group; one group where all are equally long.
    """
    order = lengths_MB.sum(0).argsort(stable=True)
    sorted_MB = lengths_MB[:, order]

    def split(start: int, stop: int) -> list[list[int]]:
        part = sorted_MB[:, start:stop]
        counts = torch.arange(1, stop - start)
        before = part.cummax(1).values.sum(0)[:-1] ** 2 * counts
        after = part.flip(1).cummax(1).values.flip(1).sum(0)[1:] ** 2 * (stop - start - counts)
        if len(counts):
            cost, at = (before + after).min(0)
            if heads * (_cost(part) - cost) > WORTHWHILE:
                middle = start + int(at) + 1
                return split(start, middle) + split(middle, stop)
        return [sorted(order[start:stop].tolist())]

    return split(0, lengths_MB.shape[1])


def _cost(lengths_MB: Tensor) -> int:
    return int(lengths_MB.shape[1] * lengths_MB.amax(1).sum() ** 2)


class _Rows:
    """Between (T, D) tokens and the padded (B, H, L, E) heads of all groups, each way in one gather.

    Padding tokens of the packed layout form a last group (1, 1, tokens · H, E) of their own.
    """

    def __init__(self, packed: Packed, groups: Sequence[Sequences], heads: int) -> None:
        device = packed.values_TD.device
        self.heads = heads
        self.shapes = [(batch, heads, length) for batch, length in (sequences.shape for sequences in groups)]
        # Head h of a place is row base + h · stride. Counted on the CPU, where the lengths are known.
        base, stride, tokens = [], [], []
        first = 0
        for sequences, (batch, _, length) in zip(groups, self.shapes, strict=True):
            base.append((first + torch.arange(batch)[:, None] * heads * length + torch.arange(length)).flatten())
            stride.append(torch.full((batch * length,), length))
            tokens.append(sequences.tokens_BL.flatten())
            first += batch * heads * length
        spare = torch.ones(len(packed.values_TD), dtype=torch.bool)
        for part in tokens:
            spare[part[part >= 0]] = False
        if padding := int(spare.sum()):
            self.shapes.append((1, 1, padding * heads))
            base.append(first + torch.arange(padding) * heads)
            stride.append(torch.ones(padding, dtype=torch.long))
            tokens.append(spare.nonzero().flatten())
        base_R, stride_R, tokens_R = torch.cat(base), torch.cat(stride), torch.cat(tokens)
        here_R = tokens_R >= 0
        place_T = torch.empty(len(spare), dtype=torch.long)
        place_T[tokens_R[here_R]] = here_R.nonzero().flatten()

        head = torch.arange(heads, device=device)

        def of_all_heads(base: Tensor, stride: Tensor) -> Tensor:
            return (base.to(device)[:, None] + stride.to(device)[:, None] * head).flatten()

        self.index = of_all_heads(base_R[place_T], stride_R[place_T])
        self.empty = of_all_heads(base_R[~here_R], stride_R[~here_R])
        self.source = head.new_empty(len(tokens_R) * heads)
        rows = of_all_heads(tokens_R.clamp(min=0) * heads, torch.ones_like(tokens_R))
        self.source[of_all_heads(base_R, stride_R)] = rows

    def pad(self, x_TD: Tensor) -> list[Tensor]:
        """(T, D) to (B, H, L, E) for every group; places without a token hold anything."""
        x_NE = spread(x_TD.unflatten(1, (self.heads, -1)).flatten(0, 1), self.source, self.index)
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
