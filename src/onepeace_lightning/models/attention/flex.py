"""FlexAttention: the relative bias is read from the tables inside the kernel; nothing of size L × L is ever stored.

All sequences of a pass lie end to end in one, and a block mask says which parts of it see each other.
S = sequences, H = heads, E = head width; see ``packing`` for the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onepeace_lightning.models.attention.base import Attend, RelativeBias
from onepeace_lightning.models.compiling import compiled
from onepeace_lightning.models.layers import gather_padded
from onepeace_lightning.models.packing import Packed, View, to_device

if TYPE_CHECKING:  # it imports sympy from torch 2.14 on; what never runs it should not wait for that
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries and keys that one entry of the block mask speaks of."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexAttention:
    """An ``AttentionBackend`` on ``torch.nn.attention.flex_attention``; on CUDA heads have at least 16 features."""

    def __init__(self, packed: Packed, views: Sequence[View], heads: int, relative: Mapping[str, RelativeBias]) -> None:
        self.heads = heads
        device = packed.values_TD.device
        order_T = _sequence_order(packed, views)
        # both None where the tokens lie in this order already
        self.order = None if order_T is None else to_device(order_T, device)
        self.inverse = None if order_T is None else to_device(order_T.argsort(), device)
        self.rows = _TableRows(packed, views, relative, order_T)
        sequence_T = packed.sequence_T if self.order is None else packed.sequence_T[self.order]
        self.mask = sequence_block_mask(sequence_T, packed.num_sequences)
        self.shared: ScoreMod | None = None
        if all(len(bias.tables_RH) == 1 for bias in relative.values()):
            self.shared = self.rows.score_mod(0)

    def block(self, index: int) -> Attend:
        """The attention of one block."""
        score_mod = self.shared or self.rows.score_mod(index)

        def attention(q_TD: Tensor, k_TD: Tensor, v_TD: Tensor) -> Tensor:
            q, k, v = (self._heads(x_TD) for x_TD in (q_TD, k_TD, v_TD))
            function = _kernel(on_cuda=q.is_cuda)
            mixed_TD = function(q, k, v, score_mod=score_mod, block_mask=self.mask)[0].transpose(0, 1).flatten(1)
            if self.order is not None and self.inverse is not None:
                mixed_TD = gather_padded(mixed_TD, self.inverse, self.order)
            return mixed_TD

        return attention

    def _heads(self, x_TD: Tensor) -> Tensor:
        if self.order is not None and self.inverse is not None:
            x_TD = gather_padded(x_TD, self.order, self.inverse)
        return x_TD.unflatten(1, (self.heads, -1)).transpose(0, 1)[None]


@lru_cache
def _kernel(*, on_cuda: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention) if on_cuda else flex_attention


def _sequence_order(packed: Packed, views: Sequence[View]) -> np.ndarray | None:
    """(T,) the tokens in an order that leaves each sequence in one piece; None where they are so."""
    padded = packed.num_sequences > sum(len(next(iter(view.values())).lengths) for view in views)
    if all(len(part) == 1 for part in packed.parts) and (len(packed.sizes) == 1 or not padded):
        return None
    return packed.sequences_T.argsort(kind="stable")


class _TableRows:
    """Where the bias of any two tokens lies: one table of all modalities' rows, one of all their pairs of positions.

    The first pair stands for tokens without a bias between them; it points at a row of zeros, the last one.
    """

    def __init__(
        self, packed: Packed, views: Sequence[View], relative: Mapping[str, RelativeBias], order_T: np.ndarray | None
    ) -> None:
        self.relative = {name: relative[name] for name in packed.sizes if name in relative}
        device = packed.values_TD.device
        rows = sum(len(bias.table(0)) for bias in self.relative.values())
        pairs = [to_device(np.array([rows], dtype=np.int32), device)]
        kind, first, position = [], [], []
        pair = 1
        row = 0
        for number, (name, size) in enumerate(packed.sizes.items()):
            known = np.concatenate([view[name].positions_T for view in views if name in view])
            position_T = np.pad(known, (0, size - len(known)))
            span = 0
            if name in self.relative:
                bias = self.relative[name]
                span = len(bias.buckets_PP)
                pairs.append((bias.buckets_PP + row).int().flatten())
                row += len(bias.table(0))
            kind.append(np.full(size, number if span else -1))
            first.append(pair + position_T * span)
            position.append(position_T)
            pair += span**2
        self.pairs = torch.cat(pairs)
        columns = [np.concatenate(part).astype(np.int32) for part in (kind, first, position)]
        self.kind_T, self.first_T, self.position_T = (
            to_device(part if order_T is None else part[order_T], device) for part in columns
        )

    def score_mod(self, block: int) -> ScoreMod | None:
        """What adds a block's bias to a logit; None where there is no bias."""
        if not self.relative:
            return None
        tables = [bias.table(block).float() for bias in self.relative.values()]
        table_RH = torch.cat([*tables, tables[0].new_zeros(1, tables[0].shape[1])])
        kind_T, first_T, position_T, pairs = self.kind_T, self.first_T, self.position_T, self.pairs

        def add_bias(score: Tensor, _batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = (kind_T[query] == kind_T[key]) & (kind_T[query] >= 0)
            pair = torch.where(same, first_T[query] + position_T[key], 0)
            return score + table_RH[pairs[pair], head]

        return add_bias


def sequence_block_mask(sequence_T: Tensor, num_sequences: int) -> "BlockMask":
    """Which tokens see each other: those of the same sequence.

    It is made from where sequences begin and end, without a T × T matrix.

    Args:
        sequence_T: each token's sequence; the tokens of one lie in one piece.
        num_sequences: S.
    """
    from torch.nn.attention.flex_attention import BlockMask

    total = len(sequence_T)
    token_T = torch.arange(total, device=sequence_T.device)
    index = sequence_T.long()
    first_S = token_T.new_full((num_sequences,), total).scatter_reduce(0, index, token_T, "amin")
    last_S = token_T.new_zeros(num_sequences).scatter_reduce(0, index, token_T, "amax")

    block = torch.arange(-(-total // BLOCK), device=token_T.device)
    start = block * BLOCK
    first, last = sequence_T[start], sequence_T[(start + BLOCK - 1).clamp(max=total - 1)]
    low, high = first_S[first] // BLOCK, last_S[last] // BLOCK
    touches = (block >= low[:, None]) & (block <= high[:, None])
    # Inside of a single sequence there is nothing to mask. The last block may run over the end of the tokens.
    whole = (first == last) & (start + BLOCK <= total)
    full = whole[:, None] & whole & (first[:, None] == first)

    def same_sequence(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sequence_T[query] == sequence_T[key]

    return BlockMask.from_kv_blocks(
        *_listed(touches & ~full), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=same_sequence, seq_lengths=(total, total)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1, rows) how many entries of each row of a matrix are True, and (1, 1, rows, columns) these first."""
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]
