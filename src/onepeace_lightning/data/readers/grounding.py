"""Data of visual grounding: ``image-box`` shards, and augmentation that never loses the box.

W and H = width and height of a picture in pixels.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from onepeace_lightning.data.datamodule import StreamConfig
from onepeace_lightning.data.prepare import Example
from onepeace_lightning.data.readers.base import FinetuneDataModule, Reader, read_json

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

# "lefthand" and "rightmost" begin with a side; "bright" and "upright" do not.
_SIDE = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class BoxAugmentation:
    """What is done to training pictures; the box is wholly in what remains of them.

    Attributes:
        crop_scale: smallest and largest share of the picture's area that a random crop keeps; a larger box is kept
            nevertheless. What the text says beside its target, such as "left of the cup", may be cut off.
        flip: share of pictures mirrored left to right; "left" and "right" then change places in the text.
    """

    crop_scale: tuple[float, float] = (0.8, 1.0)
    flip: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not (0 < low <= high <= 1 and 0 <= self.flip <= 1):
            raise ValueError(
                f"augmentation: crop_scale is {self.crop_scale}, flip {self.flip}; give shares of 0 to 1, those of"
                " crop_scale above 0 and in order"
            )

    def __call__(
        self, picture: Image.Image, box: Box, text: str, rng: np.random.Generator
    ) -> tuple[Image.Image, Box, str]:
        """A part of the picture, the box in its pixels, and the text that goes with it."""
        picture, box = self._crop(picture, box, rng)
        if rng.random() < self.flip:
            x0, y0, x1, y1 = box
            picture, box = ImageOps.mirror(picture), (picture.width - x1, y0, picture.width - x0, y1)
            text = other_side(text)
        return picture, box, text

    def _crop(self, picture: Image.Image, box: Box, rng: np.random.Generator) -> tuple[Image.Image, Box]:
        share = rng.uniform(*self.crop_scale)
        stretch = math.exp(rng.uniform(-1, 1) * math.log(4 / 3) / 2)
        (left, right), (top, bottom) = (
            _span(size, math.sqrt(share) * factor, low, high, rng)
            for size, factor, low, high in (
                (picture.width, stretch, box[0], box[2]),
                (picture.height, 1 / stretch, box[1], box[3]),
            )
        )
        x0, y0, x1, y1 = box
        return picture.crop((left, top, right, bottom)), (x0 - left, y0 - top, x1 - left, y1 - top)


def _span(size: int, share: float, low: float, high: float, rng: np.random.Generator) -> tuple[int, int]:
    """A random stretch of whole pixels out of ``size`` that holds all from ``low`` to ``high``."""
    first, last = math.floor(low), math.ceil(high)
    length = min(size, max(round(size * share), last - first))
    start = int(rng.integers(max(0, last - length), min(first, size - length) + 1))
    return start, start + length


def other_side(text: str) -> str:
    """A text of the mirrored picture: words that begin with "left" begin with "right" and the other way round."""

    def swap(match: re.Match[str]) -> str:
        word = "right" if match[0].lower() == "left" else "left"
        return word.capitalize() if match[0][0].isupper() else word

    return _SIDE.sub(swap, text)


def read_box(raw: Mapping[str, Any], size: tuple[int, int]) -> Box:
    """The sample's box.

    Args:
        raw: with ``{"box": [x0, y0, x1, y1]}``.
        size: (W, H) of the picture that it is in.

    Raises:
        ValueError: it is no box, or not within the picture.
    """
    box = read_json(raw, "box", list)
    if len(box) != 4 or not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        raise ValueError(f"its box is {box!r}; give four numbers x0, y0, x1, y1 in pixels")
    x0, y0, x1, y1 = map(float, box)
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise ValueError(
            f"its box is {box} in a picture of {size[0]}×{size[1]} pixels; it must lie within, with x0 < x1 and y0 < y1"
        )
    return x0, y0, x1, y1


@dataclass(frozen=True)
class BoxReader(Reader):
    """Reads ``image-box`` samples.

    Attributes:
        augmentation: of training pictures; None: as in evaluation.
    """

    augmentation: BoxAugmentation | None = None

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The picture and the text; targets are the box as shares of W and H, and ``size``, which is (W, H)."""
        picture, text = self.picture(raw), self.text(raw)
        box = read_box(raw, picture.size)
        if self.train and self.augmentation is not None:
            picture, box, text = self.augmentation(picture, box, text, rng)
        size = torch.tensor(picture.size, dtype=torch.float32)
        inputs = {"text": self.ids(text), "image": self.preprocessing.image(picture)}
        return Example(
            raw["__key__"], inputs, text, targets={"box": torch.tensor(box) / torch.cat([size, size]), "size": size}
        )


class VisualGroundingDataModule(FinetuneDataModule):
    """``image-box`` shards.

    Args:
        train: see ``FinetuneDataModule``, as all others.
        augmentation: of training pictures.
        **options: see ``FinetuneDataModule``.
    """

    train_types = ("image-box",)

    def __init__(
        self,
        train: StreamConfig | None = None,
        val: dict[str, StreamConfig] | None = None,
        test: dict[str, StreamConfig] | None = None,
        *,
        augmentation: BoxAugmentation | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, val, test, **options)
        self.augmentation = augmentation

    def prepare(self, data_type: str, *, train: bool) -> BoxReader:
        """What reads a sample."""
        return BoxReader(self.preprocessing, self.tokenizer, train, self.augmentation)
