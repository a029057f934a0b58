"""Reads texts that point at a box (``image-box``), with an augmentation that never loses the box.

W and H = width and height of an image in pixels.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps

from onepeace_lightning.data.batch import Example
from onepeace_lightning.data.readers.augmentation import blurred, squared
from onepeace_lightning.data.readers.base import Reader, read_json, size_of
from onepeace_lightning.modalities.registry import text_modality

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

# "lefthand" and "rightmost" begin with a side; "bright" and "upright" do not.
_SIDE = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class BoxAugmentation:
    """What is done to training images; the box is wholly in what remains of them.

    Attributes:
        crop_scale: smallest and largest fraction of the image's area that a random crop keeps, None for no crop; a
            larger box is kept nevertheless. What the text says beside its target, such as "left of the cup", may be cut
            off.
        flip: fraction of images mirrored left to right; "left" and "right" then change places in the text.
        blur: fraction of images that are blurred once they are resized to the model's square; published training
            blurs half of them, and does nothing else.
    """

    crop_scale: tuple[float, float] | None = (0.8, 1.0)
    flip: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale or (1, 1)
        if not (0 < low <= high <= 1 and 0 <= self.flip <= 1 and 0 <= self.blur <= 1):
            raise ValueError(
                f"augmentation: crop_scale is {self.crop_scale}, flip {self.flip}, blur {self.blur}; give fractions of"
                " 0 to 1, those of crop_scale above 0 and in order"
            )

    def __call__(
        self, image: Image.Image, box: Box, text: str, rng: np.random.Generator
    ) -> tuple[Image.Image, Box, str]:
        """A part of the image, the box in its pixels, and the text that goes with it."""
        if self.crop_scale is not None:
            image, box = self._crop(image, box, self.crop_scale, rng)
        if rng.random() < self.flip:
            x0, y0, x1, y1 = box
            image, box = ImageOps.mirror(image), (image.width - x1, y0, image.width - x0, y1)
            text = other_side(text)
        return image, box, text

    def _crop(
        self, image: Image.Image, box: Box, scale: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Image.Image, Box]:
        fraction = rng.uniform(*scale)
        stretch = math.exp(rng.uniform(-1, 1) * math.log(4 / 3) / 2)
        (left, right), (top, bottom) = (
            _span(size, math.sqrt(fraction) * factor, low, high, rng)
            for size, factor, low, high in (
                (image.width, stretch, box[0], box[2]),
                (image.height, 1 / stretch, box[1], box[3]),
            )
        )
        x0, y0, x1, y1 = box
        return image.crop((left, top, right, bottom)), (x0 - left, y0 - top, x1 - left, y1 - top)


def _span(size: int, fraction: float, low: float, high: float, rng: np.random.Generator) -> tuple[int, int]:
    """A random stretch of whole pixels out of ``size`` that holds all from ``low`` to ``high``."""
    first, last = math.floor(low), math.ceil(high)
    length = min(size, max(round(size * fraction), last - first))
    start = int(rng.integers(max(0, last - length), min(first, size - length) + 1))
    return start, start + length


def other_side(text: str) -> str:
    """A text of the mirrored image: words that begin with "left" begin with "right" and the other way round."""

    def swap(match: re.Match[str]) -> str:
        word = "right" if match[0].lower() == "left" else "left"
        return word.capitalize() if match[0][0].isupper() else word

    return _SIDE.sub(swap, text)


def read_box(raw: Mapping[str, Any], size: tuple[int, int]) -> Box:
    """The sample's box.

    Args:
        raw: with ``{"box": [x0, y0, x1, y1]}``.
        size: (W, H) of the image that it is in.

    Raises:
        ValueError: it is no box, or not within the image.
    """
    box = read_json(raw, "box", list)
    if len(box) != 4 or not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        raise ValueError(f"its box is {box!r}; give four numbers x0, y0, x1, y1 in pixels")
    x0, y0, x1, y1 = map(float, box)
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise ValueError(
            f"its box is {box} in an image of {size[0]}×{size[1]} pixels; it must lie within, with x0 < x1 and y0 < y1"
        )
    return x0, y0, x1, y1


@dataclass(frozen=True)
class BoxReader(Reader):
    """Reads samples with an image, a text and the box that it points at."""

    augments: ClassVar[bool] = False
    may_augment: ClassVar[bool] = False
    augmentation_type: ClassVar[type] = BoxAugmentation

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The image and the text; targets are the box as fractions of W and H, and ``size``, which is (W, H)."""
        [name] = self.items
        image, text = self.decoded(raw, name), self.text(raw)
        if not isinstance(image, Image.Image):
            raise ValueError(f"a box is in an image; {name} has none")
        box = read_box(raw, image.size)
        if self.train and self.augmentation is not None:
            image, box, text = self.augmentation(image, box, text, rng)
        size = size_of(image)
        if self.train and self.augmentation is not None and self.augmentation.blur:
            image = blurred(squared(image, self.modalities[name].settings.size), self.augmentation.blur, rng)
        inputs = {text_modality(): self.encoding(text), name: self.array(name, image, rng)}
        return Example(
            raw["__key__"], inputs, text, targets={"box": torch.tensor(box) / torch.cat([size, size]), "size": size}
        )
