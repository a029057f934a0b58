"""Data of semantic segmentation: ``image-mask`` shards, and augmentation of pictures and masks alike.

S = side of the model's square, Y and X = rows and columns of a picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import Compose, RandomCrop, RandomHorizontalFlip, RandomPhotometricDistort
from torchvision.transforms.v2 import functional as tvf
from torchvision.tv_tensors import Image as Pixels
from torchvision.tv_tensors import Mask

from onepeace_lightning.data.datamodule import StreamConfig
from onepeace_lightning.data.decoding import decode_mask
from onepeace_lightning.data.prepare import Example
from onepeace_lightning.data.readers.base import FinetuneDataModule, Reader
from onepeace_lightning.data.readers.classification import seeded
from onepeace_lightning.models.inputs import MEAN
from onepeace_lightning.models.vision.segmentation import UNLABELLED
from onepeace_lightning.models.vision.windows import scaled_size


@dataclass(frozen=True)
class MaskAugmentation:
    """What is done to training pictures and their masks.

    Attributes:
        scale: least and greatest length of the picture's shorter side, as a multiple of S; a random square of it is
            taken, and what is smaller is filled up with grey that has no class.
        flip: share of pictures mirrored left to right.
        distort: chance of each change of brightness, contrast, saturation and hue (arXiv 1512.02325).
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    distort: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.scale
        if not (0 < low <= high and 0 <= self.flip <= 1 and 0 <= self.distort <= 1):
            raise ValueError(
                f"augmentation: scale is {self.scale}, flip {self.flip}, distort {self.distort}; give a scale above 0"
                " and in order, and shares of 0 to 1"
            )

    def __call__(
        self, picture: Image.Image, classes_YX: np.ndarray, side: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, S, S) and (S, S) uint8: a part of the picture, and the classes of its pixels."""
        size = list(scaled_size((picture.height, picture.width), side * rng.uniform(*self.scale)))
        pixels = Pixels(tvf.pil_to_tensor(tvf.resize(picture, size, interpolation=InterpolationMode.BICUBIC)))
        # Classes have no values in between: a mask is resized to its nearest pixels.
        classes = torch.from_numpy(classes_YX)[None]
        mask = Mask(tvf.resize(classes, size, interpolation=InterpolationMode.NEAREST_EXACT)[0])
        fill = {Pixels: [round(255 * value) for value in MEAN], Mask: UNLABELLED}
        steps = Compose([
            RandomCrop(side, pad_if_needed=True, fill=fill),
            RandomHorizontalFlip(self.flip),
            RandomPhotometricDistort(p=self.distort),
        ])  # fmt: skip
        with seeded(rng):
            pixels, mask = steps(pixels, mask)
        return pixels.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)


@dataclass(frozen=True)
class ImageMaskReader(Reader):
    """Reads ``image-mask`` samples.

    Attributes:
        classes: how many there are.
        augmentation: of training pictures.
    """

    classes: int
    augmentation: MaskAugmentation

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The picture and the classes of its pixels, in targets.

        In training, the input is a (3, S, S) part of it, ``classes`` (S, S) uint8. In evaluation there is no input:
        ``pixels`` is the whole picture, (Y, X, 3), and ``classes`` (Y, X), both uint8 arrays.
        """
        picture = self.picture(raw)
        classes_YX = self.classes_of(raw, picture.size)
        if not self.train:
            return Example(raw["__key__"], {}, targets={"pixels": np.array(picture), "classes": classes_YX})
        pixels, classes_SS = self.augmentation(picture, classes_YX, self.preprocessing.image_size, rng)
        return Example(raw["__key__"], {"image": pixels}, targets={"classes": classes_SS})

    def classes_of(self, raw: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
        """(Y, X) uint8 class indices.

        Args:
            raw: with ``mask.png``.
            size: X and Y of the picture.

        Raises:
            ValueError: there is no mask, it is no 8-bit grey picture of this size, or holds an unknown class.
        """
        if "mask.png" not in raw:
            raise ValueError("no mask.png field")
        classes_YX = decode_mask(raw["mask.png"])
        if classes_YX.shape != size[::-1]:
            rows, columns = classes_YX.shape
            raise ValueError(
                f"its mask has {columns}×{rows} pixels, its picture {size[0]}×{size[1]}; give both the same"
            )
        unknown = np.setdiff1d(classes_YX, [*range(self.classes), UNLABELLED])
        if len(unknown):
            raise ValueError(
                f"its mask holds {', '.join(map(str, unknown[:10]))}; there are {self.classes} classes, 0 to"
                f" {self.classes - 1}, and {UNLABELLED} for no class"
            )
        return classes_YX


class SemanticSegmentationDataModule(FinetuneDataModule):
    """``image-mask`` shards; a picture to train on is a square, one to evaluate on stays as it is.

    Args:
        train: see ``FinetuneDataModule``, as all others.
        augmentation: of training pictures.
        **options: see ``FinetuneDataModule``.
    """

    train_types = ("image-mask",)

    def __init__(
        self,
        train: StreamConfig | None = None,
        val: dict[str, StreamConfig] | None = None,
        test: dict[str, StreamConfig] | None = None,
        *,
        augmentation: MaskAugmentation = MaskAugmentation(),
        **options: Any,
    ) -> None:
        super().__init__(train, val, test, **options)
        self.augmentation = augmentation

    def prepare(self, data_type: str, *, train: bool) -> ImageMaskReader:
        """What reads a sample.

        Raises:
            ValueError: no folder lists its classes, or there are too many for a mask of 8 bits.
        """
        classes = self.vocabulary("classes")
        if not classes or len(classes) > UNLABELLED:
            raise ValueError(
                f"data: the manifests list {len(classes or [])} classes; list the names of 1 to {UNLABELLED} in"
                " about.classes, in the order of the masks' indices"
            )
        return ImageMaskReader(self.preprocessing, None, train, len(classes), self.augmentation)
