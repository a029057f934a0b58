"""What the adapters take in: one typed batch of raw input per modality.

B = samples, L = token ids, N = waveform samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BOS, PAD, EOS, UNK = 0, 1, 2, 3
"""Special token ids, the same in every vocabulary."""


@dataclass
class Text:
    """Token ids: each row ends with ``EOS`` and is filled up with ``PAD``."""

    ids_BL: Tensor

    @classmethod
    def pad(cls, rows: Sequence[Sequence[int]]) -> "Text":
        """Join rows of token ids of any lengths."""
        width = max(len(row) for row in rows)
        return cls(torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], dtype=torch.int64))

    @property
    def lengths(self) -> Tensor:
        """(B,) ids in each row, the final ``EOS`` included."""
        return (self.ids_BL != PAD).sum(1)

    def to(self, *args: Any, **kwargs: Any) -> "Text":
        """Move to a device; ids keep their integer type."""
        return Text(self.ids_BL.to(*args, **kwargs))

    def pin_memory(self) -> "Text":
        """Copy to page-locked memory."""
        return Text(self.ids_BL.pin_memory())


@dataclass
class Image:
    """Square pictures (B, 3, S, S), normalised."""

    pixels: Tensor

    def to(self, *args: Any, **kwargs: Any) -> "Image":
        """Move to a device."""
        return Image(self.pixels.to(*args, **kwargs))

    def pin_memory(self) -> "Image":
        """Copy to page-locked memory."""
        return Image(self.pixels.pin_memory())


@dataclass
class Audio:
    """16 kHz mono clips (B, N), each normalised over its own samples, filled up with zeros; lengths (B,) in samples."""

    waveforms_BN: Tensor
    lengths: Tensor

    @classmethod
    def pad(cls, clips: Sequence[Tensor]) -> "Audio":
        """Join 1-D clips of any lengths."""
        lengths = torch.tensor([len(clip) for clip in clips])
        return cls(torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True), lengths)

    def to(self, *args: Any, **kwargs: Any) -> "Audio":
        """Move to a device."""
        return Audio(self.waveforms_BN.to(*args, **kwargs), self.lengths.to(*args, **kwargs))

    def pin_memory(self) -> "Audio":
        """Copy to page-locked memory."""
        return Audio(self.waveforms_BN.pin_memory(), self.lengths.pin_memory())
