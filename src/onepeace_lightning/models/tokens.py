"""Tokens without padding, and how the tokens of many views are laid out for one pass of the encoder.

A *view* is a batch of sequences, each the tokens of one or several modalities of one sample; ``dict[str, Tokens]``.
T = tokens of all samples laid end to end, B = samples, L = longest sequence, P = positions, D = width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from onepeace_lightning.models.layers import place, spread, take


@dataclass(frozen=True)
class Tokens:
    """One modality's tokens of B samples, laid end to end.

    Attributes:
        values_TD: features or embeddings.
        positions_T: each token's place in its own sample before any was hidden; 0 is CLS.
        lengths: tokens of each sample.
        full: nothing is hidden, so that positions count up from 0 in every sample.
    """

    values_TD: Tensor
    positions_T: Tensor
    lengths: list[int]
    full: bool = True

    @classmethod
    def of_padded(cls, x_BLD: Tensor, lengths: list[int]) -> "Tokens":
        """Drop the padding of a batch; row b has ``lengths[b]`` tokens."""
        batch, width = x_BLD.shape[:2]
        if all(length == width for length in lengths):
            return cls(x_BLD.flatten(0, 1), torch.arange(width, device=x_BLD.device).repeat(batch), lengths)
        sample, within = _places(lengths, x_BLD.device)
        return cls(take(x_BLD.flatten(0, 1), sample * width + within), within, lengths)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """(T,) sample of each token and (T,) its place among the tokens of that sample that are here."""
        return _places(self.lengths, self.values_TD.device)

    @property
    def cls(self) -> Tensor:
        """(B, D) the first token of every sample."""
        starts = torch.tensor([0, *self.lengths[:-1]], device=self.values_TD.device).cumsum(0)
        return take(self.values_TD, starts)

    def padded(self) -> tuple[Tensor, Tensor]:
        """(B, L, D) values filled up with zeros, and (B, L) bool, True where there is a token."""
        batch, width = len(self.lengths), max(self.lengths)
        sample, within = self.places
        x_BLD = place(self.values_TD, sample * width + within, batch * width).unflatten(0, (batch, width))
        lengths = torch.tensor(self.lengths, device=x_BLD.device)
        return x_BLD, torch.arange(width, device=x_BLD.device) < lengths[:, None]

    def with_values(self, values_TD: Tensor) -> "Tokens":
        """Other values at the same places."""
        return replace(self, values_TD=values_TD)

    def hidden(self, mask_BP: Tensor) -> Tensor:
        """(T,) bool: the tokens that a mask over positions (B, P) hides."""
        if mask_BP[:, 0].any():
            raise ValueError("position 0 (CLS) is masked; CLS must stay visible")
        return mask_BP[self.places[0], self.positions_T]

    def hide(self, mask_BP: Tensor) -> "Tokens":
        """Only the tokens that a mask over positions (B, P) leaves visible, at their original positions."""
        visible = ~self.hidden(mask_BP)
        index = visible.nonzero().squeeze(1)
        lengths = torch.bincount(self.places[0][index], minlength=len(self.lengths)).tolist()
        return Tokens(take(self.values_TD, index), self.positions_T[index], lengths, full=False)


View = Mapping[str, Tokens]


@dataclass(frozen=True)
class Sequences:
    """One view's sequences as attention sees them: padded to (B, L), the modalities side by side.

    Attributes:
        rows: where the view's B·L padded rows lie among those of all views.
        shape: (B, L).
        valid_BL: True at tokens, or None where nothing is padded.
        blocks: for every modality its first column and its positions (1 or B, columns).
    """

    rows: slice
    shape: tuple[int, int]
    valid_BL: Tensor | None
    blocks: dict[str, tuple[int, Tensor]]


@dataclass(frozen=True)
class Packed:
    """The tokens of all views laid flat, grouped by modality.

    Attributes:
        values_TD: the tokens.
        groups: modality to its rows of ``values_TD``.
        rows_T: each token's row among the padded rows of all views.
        tokens_R: the token of each padded row; 0 where there is none.
        sequence_T: each token's sequence, counted over all views.
        num_sequences: sequences of all views.
        sequences: one entry per view.
        parts: for every view and modality its rows of ``values_TD``.
    """

    values_TD: Tensor
    groups: dict[str, slice]
    rows_T: Tensor
    tokens_R: Tensor
    sequence_T: Tensor
    num_sequences: int
    sequences: list[Sequences]
    parts: list[dict[str, slice]]

    def by_modality(self, x_TD: Tensor) -> dict[str, Tensor]:
        """Each modality's rows of (T, D) tokens."""
        sizes = [rows.stop - rows.start for rows in self.groups.values()]
        return dict(zip(self.groups, x_TD.split(sizes), strict=True))

    def to_padded(self, x_TD: Tensor) -> Tensor:
        """(T, D) tokens to the padded rows of all views; rows of padding hold anything."""
        return spread(x_TD, self.tokens_R, self.rows_T)

    def to_flat(self, x_RD: Tensor) -> Tensor:
        """The padded rows of all views back to (T, D) tokens."""
        return take(x_RD, self.rows_T)


def pack(views: Sequence[View], modalities: Sequence[str]) -> Packed:
    """Lay the tokens of all views flat, grouped by modality in the given order, views in order within a group.

    Raises:
        ValueError: where there is no view, a view is empty or its modalities differ in their number of samples.
    """
    if not views:
        raise ValueError("there is no view to encode")
    sequences: list[Sequences] = []
    first_sequence: list[int] = []
    rows = count = 0
    for view in views:
        layout = _sequences(view, modalities, rows)
        sequences.append(layout)
        first_sequence.append(count)
        rows, count = layout.rows.stop, count + layout.shape[0]

    values, row_index, sequence_index = [], [], []
    groups: dict[str, slice] = {}
    parts: list[dict[str, slice]] = [{} for _ in views]
    total = 0
    for modality in modalities:
        group_start = total
        for view, layout, part, first in zip(views, sequences, parts, first_sequence, strict=True):
            if modality not in view:
                continue
            tokens = view[modality]
            sample, within = tokens.places
            values.append(tokens.values_TD)
            row_index.append(layout.rows.start + sample * layout.shape[1] + layout.blocks[modality][0] + within)
            sequence_index.append(first + sample)
            part[modality] = slice(total, total + len(sample))
            total += len(sample)
        if total > group_start:
            groups[modality] = slice(group_start, total)
    rows_T = torch.cat(row_index)
    tokens_R = rows_T.new_zeros(rows)
    tokens_R[rows_T] = torch.arange(total, device=rows_T.device)
    return Packed(torch.cat(values), groups, rows_T, tokens_R, torch.cat(sequence_index), count, sequences, parts)


def _sequences(view: View, modalities: Sequence[str], first_row: int) -> Sequences:
    unknown = [name for name in view if name not in modalities]
    sizes = {name: len(tokens.lengths) for name, tokens in view.items()}
    if unknown or len(set(sizes.values())) != 1:
        raise ValueError(
            f"a view needs the same number of samples in each of its modalities, out of {list(modalities)}; got {sizes}"
        )
    present = [name for name in modalities if name in view]
    batch = sizes[present[0]]
    valid, blocks = [], {}
    column = 0
    for name in present:
        tokens, width = view[name], max(view[name].lengths)
        device = tokens.values_TD.device
        columns = torch.arange(width, device=device)
        if tokens.full:
            positions = columns[None]
        else:
            sample, within = tokens.places
            positions = place(tokens.positions_T, sample * width + within, batch * width).view(batch, width)
        blocks[name] = (column, positions)
        valid.append(columns < torch.tensor(tokens.lengths, device=device)[:, None])
        column += width
    padded = any(len(set(view[name].lengths)) > 1 for name in present)
    rows = slice(first_row, first_row + batch * column)
    return Sequences(rows, (batch, column), torch.cat(valid, 1) if padded else None, blocks)


def _places(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(lengths, device=device)
    total = sum(lengths)
    sample = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=total)
    starts = counts.cumsum(0) - counts
    return sample, torch.arange(total, device=device) - starts[sample]
