"""Tokens without padding, and how the tokens of many views are laid out for one pass of the encoder.

A *view* is a batch of sequences, each the tokens of one or several modalities of one sample; ``dict[str, Tokens]``.
T = tokens of all samples laid end to end, B = samples, L = longest sequence, P = positions, D = width.

Where tokens lie is known from lengths, which stay on the host, and from masks, whose indices came with the batch
(``inputs.TokenMask``). Nothing is ever read back from the device, so that no step waits for a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from onepeace_lightning.models.inputs import TokenMask, locate
from onepeace_lightning.models.layers import gather_rows, scatter_rows


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of host data; a GPU copies it from page-locked memory, without anyone waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Tokens:
    """One modality's tokens of B samples, laid end to end.

    Attributes:
        values_TD: features or embeddings.
        positions_T: each token's position in its own sample before any was hidden; 0 is CLS. Host data.
        lengths: tokens of each sample.
        full: nothing is hidden, so that positions count up from 0 in every sample.
    """

    values_TD: Tensor
    positions_T: np.ndarray
    lengths: list[int]
    full: bool = True

    @classmethod
    def of_padded(cls, x_BLD: Tensor, lengths: list[int]) -> "Tokens":
        """Drop the padding of a batch; row b has ``lengths[b]`` tokens."""
        width = x_BLD.shape[1]
        samples_T, index_T = locate(lengths)
        values_TD = x_BLD.flatten(0, 1)
        if len(index_T) < len(values_TD):
            values_TD = gather_rows(values_TD, to_device(samples_T * width + index_T, x_BLD.device))
        return cls(values_TD, index_T, lengths)

    @cached_property
    def samples_T(self) -> np.ndarray:  # noqa: N802
        """(T,) the sample of each token. Host data."""
        return locate(self.lengths)[0]

    @property
    def span(self) -> int:
        """Positions up to the last that any sample has: P."""
        return max(self.lengths) if self.full else int(self.positions_T.max()) + 1

    @property
    def cls(self) -> Tensor:
        """(B, D) the first token of every sample."""
        return gather_rows(self.values_TD, to_device(np.cumsum([0, *self.lengths[:-1]]), self.values_TD.device))

    def padded(self) -> tuple[Tensor, Tensor]:
        """(B, L, D) values filled up with zeros, and (B, L) bool, True where there is a token."""
        batch, width = len(self.lengths), max(self.lengths)
        samples_T, index_T = locate(self.lengths)
        device = self.values_TD.device
        x_BLD = scatter_rows(self.values_TD, to_device(samples_T * width + index_T, device), batch * width)
        valid_BL = np.arange(width) < np.array(self.lengths)[:, None]
        return x_BLD.unflatten(0, (batch, width)), to_device(valid_BL, device)

    def with_values(self, values_TD: Tensor) -> "Tokens":
        """Other values at the same positions."""
        return replace(self, values_TD=values_TD)

    def hide(self, mask: TokenMask) -> "Tokens":
        """Only the tokens that a mask leaves visible, at their original positions.

        Raises:
            ValueError: where it is a mask of other numbers of tokens.
        """
        if mask.lengths != self.lengths:
            raise ValueError(f"a mask over {mask.lengths} tokens for samples of {self.lengths}; one each is needed")
        values_ND = gather_rows(self.values_TD, mask.visible_N)
        return Tokens(values_ND, mask.positions_N, mask.visible_lengths, full=False)

    def without_cls(self) -> Tensor:
        """(T - B, D) the values of all tokens but the first of every sample, where nothing is hidden."""
        return gather_rows(self.values_TD, to_device(np.flatnonzero(self.positions_T), self.values_TD.device))


View = Mapping[str, Tokens]


@dataclass(frozen=True)
class Packed:
    """The tokens of all views laid flat, grouped by modality.

    Attributes:
        values_TD: the tokens.
        sizes: modality to its number of rows of ``values_TD``, in the order in which they lie there.
        parts: for every view and modality its rows of ``values_TD``; rows of no view, at the end of a modality's, are
            padding.
        sequences_T: each token's sequence, counted over all views; the last one holds the padding, if any. Host data.
        sequence_T: the same on the device.
        num_sequences: sequences of all views, that of the padding included.
    """

    values_TD: Tensor
    sizes: dict[str, int]
    parts: list[dict[str, slice]]
    sequences_T: np.ndarray
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

    values, sequences = [], []
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
            sequences.append(first + tokens.samples_T)
            part[modality] = slice(total, total + len(tokens.values_TD))
            total = part[modality].stop
        if missing := -(total - start) % multiple:
            values.append(values[-1].new_zeros(missing, values[-1].shape[1]))
            sequences.append(np.full(missing, count))
            total, padding = total + missing, padding + missing
        if total > start:
            sizes[modality] = total - start
    values_TD, sequences_T = torch.cat(values), np.concatenate(sequences)
    sequence_T = to_device(sequences_T, values_TD.device)
    return Packed(values_TD, sizes, parts, sequences_T, sequence_T, count + bool(padding))


def _samples(view: View, modalities: Sequence[str]) -> int:
    """Samples of a view, after a check that all its modalities have as many."""
    unknown = [name for name in view if name not in modalities]
    sizes = {name: len(tokens.lengths) for name, tokens in view.items()}
    if unknown or len(set(sizes.values())) != 1:
        raise ValueError(
            f"a view needs the same number of samples in each of its modalities, out of {list(modalities)}; got {sizes}"
        )
    return next(iter(sizes.values()))
