"""What the adapters take in: one typed batch of raw input per modality.

B = samples, L = token ids, N = waveform samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

BOS, PAD, EOS, UNK = 0, 1, 2, 3
"""Special token ids, the same in every vocabulary."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of each colour, from 0 to 1, over CLIP's training pictures."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of each colour over CLIP's training pictures."""


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
    """Square RGB pictures (B, 3, S, S): uint8, as they are decoded, or floating-point and normalised already."""

    pixels: Tensor

    def normalised(self) -> Tensor:
        """(B, 3, S, S) in units of CLIP's ``STD`` from its ``MEAN``; 8-bit pixels become float32."""
        if self.pixels.dtype != torch.uint8:
            return self.pixels
        shares = self.pixels.float() / 255
        # Numbers and not tensors, which would have to be copied to the device each time.
        return torch.stack([(shares[:, colour] - MEAN[colour]) / STD[colour] for colour in range(3)], 1)

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
        missing = (lengths.max() - lengths).tolist()
        # default_collate and not pad_sequence: in a data worker it joins them in memory that is shared already.
        rows = [F.pad(clip, (0, more)) if more else clip for clip, more in zip(clips, missing, strict=True)]
        return cls(default_collate(rows), lengths)

    def to(self, *args: Any, **kwargs: Any) -> "Audio":
        """Move to a device."""
        return Audio(self.waveforms_BN.to(*args, **kwargs), self.lengths.to(*args, **kwargs))

    def pin_memory(self) -> "Audio":
        """Copy to page-locked memory."""
        return Audio(self.waveforms_BN.pin_memory(), self.lengths.pin_memory())
