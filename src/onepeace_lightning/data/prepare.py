"""Raw sample → example → batch: what the data workers do to each sample.

L = token ids, S = side of the picture, N = waveform samples, P = positions of a modality (CLS and its tokens).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from onepeace_lightning.data.bad_samples import BadSample, EmptyCaption
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.decoding import EXTENSIONS, decode_image, decode_text, load_waveform
from onepeace_lightning.data.masking import MaskRatios, draw_masks
from onepeace_lightning.data.transforms import Preprocessing
from onepeace_lightning.modalities.audio import num_frames
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.modalities.tokenizers.base import clean_caption
from onepeace_lightning.models.config import PATCH
from onepeace_lightning.models.inputs import Audio, Image, Text

INPUTS: dict[str, tuple[str, ...]] = {
    "image": ("image",),
    "audio": ("audio",),
    "text": ("text",),
    "image-text": ("text", "image"),
    "audio-text": ("text", "audio"),
    "audio-image": ("image", "audio"),
}
"""Data type to the modalities that a model takes in, in the order in which it joins them."""


@dataclass
class Example:
    """One sample, ready to be put in a batch.

    Attributes:
        key: the sample's key in its shard.
        inputs: modality to token ids (a list of L), pixels (3, S, S) uint8 or a waveform (N,).
        caption: the raw text, "" where there is none.
        masks: modality to (P,) bool, for the student that sees this modality alone.
        fused_masks: the same for the student that sees both.
        second: the sample's second picture, as the first.
        targets: what a downstream task learns, a tensor (of the same shape in every sample) or anything else.
    """

    key: str
    inputs: dict[str, Any]
    caption: str = ""
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    fused_masks: dict[str, np.ndarray] = field(default_factory=dict)
    second: Tensor | None = None
    targets: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepare:
    """Turn a raw sample of one data type into an ``Example``. It pickles, so spawned workers can have it.

    Attributes:
        data_type: a key of ``INPUTS``.
        tokenizer: encodes captions; needed where text is an input.
        preprocessing: sizes and lengths.
        train: whether to augment pictures and draw masks.
        ratios: how much to mask in training; None draws no masks (training by contrast alone).
    """

    data_type: str
    tokenizer: Tokenizer | None
    preprocessing: Preprocessing
    train: bool
    ratios: MaskRatios | None

    def __post_init__(self) -> None:
        if self.data_type not in INPUTS:
            raise ValueError(f"data type {self.data_type!r} is unknown; accepted: {', '.join(INPUTS)}")
        if "text" in INPUTS[self.data_type] and self.tokenizer is None:
            raise ValueError(f"data type {self.data_type!r} needs a tokenizer; give the folder of one")

    def __call__(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """Decode, transform and mask.

        Args:
            raw: ``__key__`` and encoded bytes by file name ending.
            rng: the only source of randomness.

        Raises:
            BadSample: a field is missing or cannot be decoded, or the caption that is needed has no words.
        """
        inputs: dict[str, Any] = {}
        masking: dict[str, Any] = {}
        try:
            # A pair for measuring needs its caption too: it says which other items match.
            caption = self._caption(raw, required="text" in self.data_type or self.data_type == "audio-image")
            for modality in INPUTS[self.data_type]:
                inputs[modality] = self._input(modality, raw, caption, rng, masking)
        except BadSample:
            raise
        except ValueError as error:
            raise BadSample(str(error)) from error
        example = Example(raw["__key__"], inputs, caption)
        if self.train and self.ratios is not None:
            example.masks, example.fused_masks = draw_masks(self.data_type, **masking, rng=rng, ratios=self.ratios)
        return example

    def _caption(self, raw: Mapping[str, Any], required: bool) -> str:
        if not required and not _endings(raw, "text"):
            return ""
        caption = decode_text(encoded(raw, "text"))
        if required:
            try:
                clean_caption(caption)
            except ValueError as error:
                raise EmptyCaption(str(error)) from error
        return caption

    def _input(
        self, modality: str, raw: Mapping[str, Any], caption: str, rng: np.random.Generator, masking: dict[str, Any]
    ) -> Any:
        if modality == "text":
            encoding = self.tokenizer.encode(caption)  # type: ignore[union-attr]
            masking["word_starts"] = encoding.word_starts
            return encoding.ids
        if modality == "image":
            picture = decode_image(encoded(raw, "image"))
            pixels = (
                self.preprocessing.augmented_image(picture, rng) if self.train else self.preprocessing.image(picture)
            )
            masking["num_patches"] = (pixels.shape[-1] // PATCH) ** 2
            return pixels
        waveform = self.preprocessing.waveform(load_waveform(encoded(raw, "audio")))
        masking["num_frames"] = num_frames(len(waveform))
        return waveform


def _endings(raw: Mapping[str, Any], modality: str) -> list[str]:
    return [ending for ending in EXTENSIONS[modality] if ending in raw]


def encoded(raw: Mapping[str, Any], modality: str) -> bytes:
    """A raw sample's only file of a modality, still encoded.

    Raises:
        BadSample: there is none, or several.
    """
    endings = _endings(raw, modality)
    if len(endings) != 1:
        found = sorted(name for name in raw if not name.startswith("__"))
        accepted = ", ".join(EXTENSIONS[modality])
        raise BadSample(f"expected one {modality} field ({accepted}), found {len(endings)} among {found}")
    return raw[endings[0]]


def _stack_pixels(pixels: Sequence[Tensor]) -> Image:
    """Join pictures; in a data worker, default_collate does it in memory that is shared already."""
    # Pillow's pictures have their colours last. Stacking them so is one copy of plain bytes for each.
    return Image(default_collate([picture.movedim(0, -1) for picture in pixels]).movedim(-1, 1))


_JOIN: dict[str, Callable[[Sequence[Any]], Any]] = {
    "text": Text.pad,
    "image": _stack_pixels,
    "audio": Audio.pad,
}


def collate(examples: Sequence[Example]) -> Batch:
    """Join examples of one data type, padding text and sound to the longest."""
    modalities = list(examples[0].inputs)
    return Batch(
        keys=[example.key for example in examples],
        inputs={name: _JOIN[name]([example.inputs[name] for example in examples]) for name in modalities},
        masks={name: _pad_masks([example.masks[name] for example in examples]) for name in examples[0].masks},
        fused_masks={
            name: _pad_masks([example.fused_masks[name] for example in examples]) for name in examples[0].fused_masks
        },
        captions=[example.caption for example in examples],
        second=None if examples[0].second is None else _JOIN["image"]([example.second for example in examples]),
        targets={name: _join_targets([example.targets[name] for example in examples]) for name in examples[0].targets},
    )


def _join_targets(targets: list[Any]) -> Any:
    """Stack tensors; anything else stays a list."""
    return torch.stack(targets) if isinstance(targets[0], Tensor) else targets


def _pad_masks(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Join masks (P,) of any lengths to (B, longest P); what is filled up is not masked."""
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
