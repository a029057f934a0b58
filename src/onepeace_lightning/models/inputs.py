"""What a batch hands to the model: tensors that move together, and which tokens a student does not see.

B = samples, T = tokens of all samples laid end to end, M = hidden ones, N = visible ones.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class TensorFields:
    """A dataclass of tensors, which move and are pinned together, and of plain values, which stay on the host."""

    def to(self, device: Any = None, dtype: torch.dtype | None = None, **options: Any) -> Self:
        """Move every tensor to a device; ``dtype`` is for floating-point tensors, whole numbers keep their type."""
        return self._map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None, **options))

    def pin_memory(self) -> Self:
        """Copy every tensor to page-locked memory."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, move: Any) -> Self:
        moved = {
            entry.name: move(value)
            for entry in dataclasses.fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, entry.name), Tensor)
        }
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]


def locate(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(T,) the sample of each token, and (T,) its index within that sample, for samples laid end to end."""
    counts = np.array(lengths, dtype=np.int64)
    samples_T = np.repeat(np.arange(len(counts)), counts)
    return samples_T, np.arange(len(samples_T)) - np.repeat(counts.cumsum() - counts, counts)


@dataclass(frozen=True)
class TokenMask(TensorFields):
    """Which of a modality's tokens a student does not see, as the indices that a step needs.

    They are computed where the batch is joined, by the data workers, and move with it.

    Attributes:
        is_hidden_T: bool.
        hidden_M: indices of the hidden tokens.
        visible_N: indices of the visible tokens.
        targets_M: indices of the hidden tokens among all but CLS, the candidates of the denoising contrast.
        samples_M: the sample of each hidden token. Host data.
        positions_N: the position of each visible token in its sample. Host data.
        lengths: tokens of each sample.
        visible_lengths: visible tokens of each sample.
    """

    is_hidden_T: Tensor
    hidden_M: Tensor
    visible_N: Tensor
    targets_M: Tensor
    samples_M: np.ndarray
    positions_N: np.ndarray
    lengths: list[int]
    visible_lengths: list[int]

    @classmethod
    def of(cls, masks: Sequence[np.ndarray]) -> Self:
        """Join the masks of B samples, each bool over all tokens of its sample, True where one is hidden.

        Raises:
            ValueError: where one hides CLS.
        """
        if any(mask[0] for mask in masks):
            raise ValueError("position 0 (CLS) is masked; CLS must stay visible")
        lengths = [len(mask) for mask in masks]
        samples_T, positions_T = locate(lengths)
        is_hidden_T = np.concatenate(masks)
        hidden_M, visible_N = np.flatnonzero(is_hidden_T), np.flatnonzero(~is_hidden_T)
        samples_M = samples_T[hidden_M]
        return cls(
            torch.from_numpy(is_hidden_T),
            torch.from_numpy(hidden_M),
            torch.from_numpy(visible_N),
            # Candidates move up by the CLS tokens before them, that of their own sample included.
            torch.from_numpy(hidden_M - samples_M - 1),
            samples_M,
            positions_T[visible_N],
            lengths,
            np.bincount(samples_T[visible_N], minlength=len(lengths)).tolist(),
        )
