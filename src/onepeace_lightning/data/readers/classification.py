"""Data of image and audio classification: ``image-label`` and ``audio-label`` shards."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import Compose, RandomErasing, RandomHorizontalFlip, RandomResizedCrop

from onepeace_lightning.data.datamodule import StreamConfig
from onepeace_lightning.data.prepare import Example
from onepeace_lightning.data.readers.base import FinetuneDataModule, Reader, read_labels
from onepeace_lightning.models.inputs import MEAN


@dataclass(frozen=True)
class Augmentation:
    """What is done to training pictures of one class.

    Attributes:
        crop_scale: smallest and largest share of the picture's area that a random crop keeps.
        flip: share of pictures mirrored left to right.
        rand_augment: timm's configuration of RandAugment (arXiv 1909.13719), such as "rand-m9-mstd0.5-inc1"; None: off.
        erase: share of pictures of which a rectangle is erased (arXiv 1708.04896).
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: str | None = None
    erase: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not (0 < low <= high <= 1 and 0 <= self.flip <= 1 and 0 <= self.erase <= 1):
            raise ValueError(
                f"augmentation: crop_scale is {self.crop_scale}, flip {self.flip}, erase {self.erase}; give shares of"
                " 0 to 1, those of crop_scale above 0 and in order"
            )

    def __call__(self, picture: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
        """A square picture of ``side`` pixels."""
        crop = RandomResizedCrop(side, scale=self.crop_scale, interpolation=InterpolationMode.BICUBIC)
        steps: list[Any] = [crop, RandomHorizontalFlip(self.flip)]
        grey = tuple(round(255 * value) for value in MEAN)
        if self.rand_augment is not None:
            steps.append(rand_augment_transform(self.rand_augment, {"img_mean": grey, "translate_const": side // 3}))
        # In the colour that becomes zero.
        steps.append(RandomErasing(self.erase, value=list(grey)))
        with seeded(rng):
            return Compose(steps)(picture)


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators that torchvision and timm draw from, and put them back afterwards."""
    seed, python, numpy = int(rng.integers(2**32)), random.getstate(), np.random.get_state()  # noqa: NPY002 (timm's)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@dataclass(frozen=True)
class ImageLabelReader(Reader):
    """Reads ``image-label`` samples.

    Attributes:
        augmentation: of training pictures; None: as in evaluation.
    """

    augmentation: Augmentation | None = None

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The picture and its class names."""
        picture = self.picture(raw)
        if self.train and self.augmentation is not None:
            picture = self.augmentation(picture, self.preprocessing.image_size, rng)
        return Example(
            raw["__key__"], {"image": self.preprocessing.image(picture)}, targets={"labels": read_labels(raw)}
        )


@dataclass(frozen=True)
class AudioLabelReader(Reader):
    """Reads ``audio-label`` samples."""

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The sound and its class names."""
        return Example(raw["__key__"], {"audio": self.waveform(raw)}, targets={"labels": read_labels(raw)})


class ImageClassificationDataModule(FinetuneDataModule):
    """``image-label`` shards.

    Args:
        train: see ``FinetuneDataModule``, as all others.
        augmentation: of training pictures.
        **options: see ``FinetuneDataModule``.
    """

    train_types = ("image-label",)

    def __init__(
        self,
        train: StreamConfig | None = None,
        val: dict[str, StreamConfig] | None = None,
        test: dict[str, StreamConfig] | None = None,
        *,
        augmentation: Augmentation | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, val, test, **options)
        self.augmentation = augmentation

    def prepare(self, data_type: str, *, train: bool) -> ImageLabelReader:
        """What reads a sample."""
        return ImageLabelReader(self.preprocessing, None, train, self.augmentation)


class AudioClassificationDataModule(FinetuneDataModule):
    """``audio-label`` shards; see ``FinetuneDataModule``."""

    train_types = ("audio-label",)

    def prepare(self, data_type: str, *, train: bool) -> AudioLabelReader:
        """What reads a sample."""
        return AudioLabelReader(self.preprocessing, None, train)
