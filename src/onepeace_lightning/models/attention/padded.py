"""The reference form of attention: each view is padded, the relative bias written out and added to the logits.

B = sequences of a view, L = the longest of them, H = heads, E = head width; see ``packing`` for the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.models.attention.base import Attend, RelativeBias
from onepeace_lightning.models.layers import gather_rows, scatter_rows
from onepeace_lightning.models.packing import Packed, View, to_device


@dataclass(frozen=True)
class PaddedView:
    """Sequences of one view side by side, its modalities one after the other.

    Attributes:
        rows_BL: the row of the packed tokens in each cell; -1 where there is none. Host data.
        valid_BL: True where there is a token; None where nothing is padded.
        columns: the columns of each modality.
        positions: of each modality, (B, columns), or (1, columns) where all sequences have the same.
    """

    rows_BL: np.ndarray
    valid_BL: Tensor | None
    columns: dict[str, slice]
    positions: dict[str, Tensor]


def pad_view(view: View, first_rows: Mapping[str, int], samples: Sequence[int] | None = None) -> PaddedView:
    """Pad the sequences of a view.

    Args:
        view: its modalities in the order in which they are joined.
        first_rows: the packed row of each modality's first token.
        samples: which sequences; None: all.
    """
    device = next(iter(view.values())).values_TD.device
    rows, columns, positions = [], {}, {}
    start = 0
    for name, tokens in view.items():
        lengths = np.array(tokens.lengths)
        starts = lengths.cumsum() - lengths
        if samples is not None:
            lengths, starts = lengths[samples], starts[samples]
        index = np.arange(lengths.max())
        valid_BL = index < lengths[:, None]
        local_BL = np.where(valid_BL, starts[:, None] + index, 0)
        rows.append(np.where(valid_BL, first_rows[name] + local_BL, -1))
        columns[name] = slice(start, start := start + len(index))
        positions[name] = to_device(index[None] if tokens.full else tokens.positions_T[local_BL], device)
    rows_BL = np.concatenate(rows, 1)
    valid_BL = rows_BL >= 0
    return PaddedView(rows_BL, None if valid_BL.all() else to_device(valid_BL, device), columns, positions)


def write_out(view: PaddedView, relative: Mapping[str, RelativeBias], block: int) -> Tensor | None:
    """(1 or B, H, L, L) a block's relative bias, zero between modalities; None where no modality has one."""
    parts = {}
    for name, index in view.positions.items():
        if name in relative:
            buckets = relative[name].buckets_PP[index[:, :, None], index[:, None, :]]
            # F.embedding: on the CPU its backward is much faster than that of indexing
            parts[name] = F.embedding(buckets, relative[name].table(block)).permute(0, 3, 1, 2)
    if not parts or len(view.columns) == 1:
        return next(iter(parts.values()), None)
    first, length = next(iter(parts.values())), view.rows_BL.shape[1]
    bias = first.new_zeros(max(map(len, parts.values())), first.shape[1], length, length)
    for name, part in parts.items():
        bias[:, :, view.columns[name], view.columns[name]] = part
    return bias


def attend(q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, bias: Tensor | None, valid_BL: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √E + bias) v over valid keys, (B, H, L, E)."""
    mask = bias if bias is None else bias.to(q_BHLE.dtype)
    if valid_BL is not None:
        keys = valid_BL[:, None, None, :]
        mask = keys if mask is None else mask.masked_fill(~keys, -torch.inf)
    return F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, attn_mask=mask)


class PaddedAttention:
    """An ``AttentionBackend`` for any device: every view is padded to its longest sequence."""

    def __init__(self, packed: Packed, views: Sequence[View], heads: int, relative: Mapping[str, RelativeBias]) -> None:
        self.heads, self.relative = heads, relative
        self.views = [
            pad_view({name: view[name] for name in part}, {name: rows.start for name, rows in part.items()})
            for view, part in zip(views, packed.parts, strict=True)
        ]
        cells = [np.flatnonzero(view.rows_BL >= 0) for view in self.views]
        rows = [view.rows_BL.flat[index] for view, index in zip(self.views, cells, strict=True)]
        self.cells, self.rows = ([to_device(i, packed.values_TD.device) for i in part] for part in (cells, rows))
        # Tables that all blocks share are written out once.
        shared = all(len(bias.tables_RH) == 1 for bias in relative.values())
        self.shared = [write_out(view, relative, 0) for view in self.views] if shared else None

    def block(self, index: int) -> Attend:
        """The attention of one block."""

        def attention(q_TD: Tensor, k_TD: Tensor, v_TD: Tensor) -> Tensor:
            mixed = []
            for number, view in enumerate(self.views):
                rows_R, cells_R, shape = self.rows[number], self.cells[number], view.rows_BL.shape
                q, k, v = (
                    scatter_rows(gather_rows(x_TD, rows_R), cells_R, view.rows_BL.size)
                    .view(*shape, self.heads, -1)
                    .transpose(1, 2)
                    for x_TD in (q_TD, k_TD, v_TD)
                )
                bias = self.shared[number] if self.shared else write_out(view, self.relative, index)
                mixed_BLD = attend(q, k, v, bias, view.valid_BL).transpose(1, 2).flatten(2)
                mixed.append(gather_rows(mixed_BLD.flatten(0, 1), cells_R))
            return scatter_rows(torch.cat(mixed), torch.cat(self.rows), len(q_TD))

        return attention
