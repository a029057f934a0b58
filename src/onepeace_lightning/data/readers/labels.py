"""Reads samples with class names (``image-label``, ``image-audio-label``) or with numbers (``audio-target``)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL.Image import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import Compose, RandomErasing, RandomHorizontalFlip, RandomResizedCrop

from onepeace_lightning.data.batch import Example
from onepeace_lightning.data.readers.augmentation import seeded
from onepeace_lightning.data.readers.base import Reader, read_json, read_labels
from onepeace_lightning.models.patches import MEAN


@dataclass(frozen=True)
class LabelAugmentation:
    """What is done to the image of a training sample; other modalities have their own augmentation.

    Attributes:
        crop_scale: smallest and largest fraction of the image's area that a random crop keeps.
        flip: fraction of images mirrored left to right.
        rand_augment: timm's configuration of RandAugment (arXiv 1909.13719), such as "rand-m9-mstd0.5-inc1"; None: off.
        erase: fraction of images of which a rectangle is erased (arXiv 1708.04896).
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: str | None = None
    erase: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not (0 < low <= high <= 1 and 0 <= self.flip <= 1 and 0 <= self.erase <= 1):
            raise ValueError(
                f"augmentation: crop_scale is {self.crop_scale}, flip {self.flip}, erase {self.erase}; give fractions"
                " of 0 to 1, those of crop_scale above 0 and in order"
            )

    def __call__(self, image: Image, side: int, rng: np.random.Generator) -> Image:
        """A square PIL image of ``side`` pixels."""
        crop = RandomResizedCrop(side, scale=self.crop_scale, interpolation=InterpolationMode.BICUBIC)
        steps: list[Any] = [crop, RandomHorizontalFlip(self.flip)]
        grey = tuple(round(255 * value) for value in MEAN)
        if self.rand_augment is not None:
            steps.append(rand_augment_transform(self.rand_augment, {"img_mean": grey, "translate_const": side // 3}))
        # In the colour that becomes zero.
        steps.append(RandomErasing(self.erase, value=list(grey)))
        with seeded(rng):
            return Compose(steps)(image)


@dataclass(frozen=True)
class LabelReader(Reader):
    """Reads samples with labels; without an augmentation, training sees what evaluation sees."""

    augments: ClassVar[bool] = False
    augmentation_type: ClassVar[type] = LabelAugmentation

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The sample's items and what is to be learned of them."""
        arrays = {}
        for name in self.items:
            item, modality = self.decoded(raw, name), self.modalities[name]
            if not self.train or self.augmentation is None:
                arrays[name] = self.array(name, item, rng)
            elif isinstance(item, Image):
                arrays[name] = modality.transform(self.augmentation(item, modality.settings.size, rng))
            else:
                arrays[name] = modality.augment(item, rng)
        return Example(raw["__key__"], arrays, targets=self.answer(raw))

    def answer(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Its class names."""
        return {"labels": read_labels(raw)}


@dataclass(frozen=True)
class TargetReader(LabelReader):
    """Reads samples with numbers to be learned; their items as ``LabelReader`` does."""

    def answer(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Its numbers by name."""
        numbers = read_json(raw, "targets", dict)
        if not numbers or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers.values()):
            raise ValueError(f"its targets are {numbers!r}; give at least one finite number by its name")
        return {"targets": {name: float(number) for name, number in numbers.items()}}
