"""Tokens without padding, and how the tokens of many views are laid out for one pass of the encoder.

A *view* is a batch of sequences, each the tokens of one or several modalities of one sample; ``dict[str, Tokens]``.
T = tokens of all samples laid end to end, B = samples, L = longest sequence, P = positions, D = width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from onepeace_lightning.models.layers import place, take


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
class Packed:
    """The tokens of all views laid flat, grouped by modality.

    Attributes:
        values_TD: the tokens.
        sizes: modality to its number of rows of ``values_TD``, in the order in which they lie there.
        parts: for every view and modality its rows of ``values_TD``; rows of no view, at the end of a modality's, are
            padding.
        sequence_T: each token's sequence, counted over all views; the last one holds the padding, if any.
        num_sequences: sequences of all views, that of the padding included.
    """

    values_TD: Tensor
    sizes: dict[str, int]
    parts: list[dict[str, slice]]
    sequence_T: Tensor
    num_sequences: int

    def by_modality(self, x_TD: Tensor) -> dict[str, Tensor]:
        """Each modality's rows of (T, D) tokens."""
        return dict(zip(self.sizes, x_TD.split(list(self.sizes.values())), strict=True))


def pack(views: Sequence[View], modalities: Sequence[str], multiple: int = 1) -> Packed:
    """Lay the tokens of all views flat, grouped by modality in the given order, views in order within a group.

    Args:
        views: any number, B may differ between them.
        modalities: all that there may be.
        multiple: of which each modality's number of rows is made one, with zeros.

    Raises:
        ValueError: where there is no view, a view is empty or its modalities differ in their number of samples.
    """
    if not views:
        raise ValueError("there is no view to encode")
    first_sequence: list[int] = []
    count = 0
    for view in views:
        first_sequence.append(count)
        count += _samples(view, modalities)

    values, sequence = [], []
    sizes: dict[str, int] = {}
    parts: list[dict[str, slice]] = [{} for _ in views]
    total = padding = 0
    for modality in modalities:
        start = total
        for view, part, first in zip(views, parts, first_sequence, strict=True):
            if modality not in view:
                continue
            tokens = view[modality]
            values.append(tokens.values_TD)
            sequence.append(first + tokens.places[0])
            part[modality] = slice(total, total + len(tokens.values_TD))
            total = part[modality].stop
        if missing := -(total - start) % multiple:
            values.append(values[-1].new_zeros(missing, values[-1].shape[1]))
            sequence.append(sequence[-1].new_full((missing,), count))
            total, padding = total + missing, padding + missing
        if total > start:
            sizes[modality] = total - start
    return Packed(torch.cat(values), sizes, parts, torch.cat(sequence), count + bool(padding))


def _samples(view: View, modalities: Sequence[str]) -> int:
    """Samples of a view, after a check that all its modalities have as many."""
    unknown = [name for name in view if name not in modalities]
    sizes = {name: len(tokens.lengths) for name, tokens in view.items()}
    if unknown or len(set(sizes.values())) != 1:
        raise ValueError(
            f"a view needs the same number of samples in each of its modalities, out of {list(modalities)}; got {sizes}"
        )
    return next(iter(sizes.values()))


def _places(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(lengths, device=device)
    total = sum(lengths)
    sample = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=total)
    starts = counts.cumsum(0) - counts
    return sample, torch.arange(total, device=device) - starts[sample]
