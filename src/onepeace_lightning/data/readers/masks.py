"""Reads rasters with a class for every pixel (``image-mask``, ``depth-mask``), with an augmentation of both alike.

S = side of the model's square; C = channels, Y and X = rows and columns of an image or of another raster.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, RandomPhotometricDistort
from torchvision.transforms.v2 import functional as tvf
from torchvision.tv_tensors import Image as Pixels
from torchvision.tv_tensors import Mask

from onepeace_lightning.data.batch import Example
from onepeace_lightning.data.readers.augmentation import seeded
from onepeace_lightning.data.readers.base import Reader
from onepeace_lightning.files import looks_like
from onepeace_lightning.modalities.image import RasterModality
from onepeace_lightning.models.patches import MEAN
from onepeace_lightning.models.vision.segmentation import UNLABELLED
from onepeace_lightning.models.vision.windows import scaled_size

DRAWS = 10
"""Of a square in which one class is too large."""


@dataclass(frozen=True)
class MaskAugmentation:
    """What is done to training images and their masks.

    Attributes:
        scale: least and greatest length of the shorter side, as a multiple of S; a random square of it is taken, and
            what is smaller is filled up, right and below, with the mean colour, which has no class.
        largest_class: greatest fraction of a square's labelled pixels that one class may have; another square is
            drawn where it has more, up to ``DRAWS`` times. 1 takes any.
        flip: fraction of images mirrored left to right.
        distort: chance of each change of brightness, contrast, saturation and hue (arXiv 1512.02325), of colours alone.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    distort: float = 0.5
    largest_class: float = 0.75

    def __post_init__(self) -> None:
        low, high = self.scale
        fractions = (self.flip, self.distort, self.largest_class)
        if not (0 < low <= high and all(0 <= fraction <= 1 for fraction in fractions) and self.largest_class > 0):
            raise ValueError(
                f"augmentation: scale is {self.scale}, flip {self.flip}, distort {self.distort}, largest_class"
                f" {self.largest_class}; give a scale above 0 and in order, and fractions of 0 to 1"
            )

    def __call__(
        self, raster: Tensor, classes_YX: np.ndarray, side: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """(C, S, S) and (S, S) uint8: a part of the raster, and the classes of its pixels.

        Args:
            raster: (C, Y, X) as ``RasterModality.raster`` gives it.
            classes_YX: uint8.
            side: S.
            rng: the only source of randomness.
        """
        coloured = raster.dtype == torch.uint8
        size = list(scaled_size(raster.shape[1:], side * rng.uniform(*self.scale)))
        pixels = Pixels(tvf.resize(raster, size, interpolation=InterpolationMode.BILINEAR))
        # Classes have no values in between: a mask is resized to its nearest pixels.
        classes = torch.from_numpy(classes_YX)[None]
        mask = Mask(tvf.resize(classes, size, interpolation=InterpolationMode.NEAREST_EXACT)[0])
        top, left = self._corner(mask, side, rng)
        pixels, mask = (tvf.crop(part, top, left, *(min(side, n) for n in size)) for part in (pixels, mask))
        distort = [RandomPhotometricDistort(p=self.distort)] if coloured else []
        steps = Compose([RandomHorizontalFlip(self.flip), *distort])
        with seeded(rng):
            pixels, mask = steps(pixels, mask)
        missing = [0, 0, side - mask.shape[1], side - mask.shape[0]]
        mean = [round(255 * value) for value in MEAN] if coloured else 0.0
        pixels, mask = tvf.pad(pixels, missing, fill=mean), tvf.pad(mask, missing, fill=UNLABELLED)
        return pixels.as_subclass(Tensor), mask.as_subclass(Tensor)

    def _corner(self, mask_YX: Tensor, side: int, rng: np.random.Generator) -> tuple[int, int]:
        """Where a random square begins in which no class is too large, or the last one that was drawn."""
        for _ in range(DRAWS):
            top, left = (int(rng.integers(max(0, size - side) + 1)) for size in mask_YX.shape)
            square = mask_YX[top : top + side, left : left + side]
            counts = torch.bincount(square[square != UNLABELLED].long())
            if self.largest_class == 1 or _small(counts, self.largest_class):
                break
        return top, left


def _small(counts: Tensor, largest: float) -> bool:
    """Whether several classes are there, and none has more than a fraction of the pixels."""
    return bool((counts > 0).sum() > 1) and float(counts.max()) < largest * float(counts.sum())


@dataclass(frozen=True)
class MaskReader(Reader):
    """Reads samples with one raster, such as an image, and the classes of its pixels."""

    augments: ClassVar[bool] = False
    may_augment: ClassVar[bool] = False
    augmentation_type: ClassVar[type] = MaskAugmentation
    default_augmentation: ClassVar[MaskAugmentation] = MaskAugmentation()

    def __post_init__(self) -> None:
        if len(self.items) != 1 or not isinstance(self.modalities[self.items[0]], RasterModality):
            raise ValueError(f"data type {self.data_type}: a mask is of one raster, as in image-mask or depth-mask")
        if not 0 < self.classes <= UNLABELLED:
            raise ValueError(
                f"data: the manifests list {self.classes} classes; list the names of 1 to {UNLABELLED} in"
                " about.classes, in the order of the masks' indices"
            )

    @property
    def classes(self) -> int:
        """How many there are."""
        return len((self.about or {}).get("classes") or [])

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The raster and the classes of its pixels, in targets.

        In training, the input is a (C, S, S) part of it, ``classes`` (S, S) uint8. In evaluation there is no input:
        ``pixels`` is the whole one, (C, Y, X), and ``classes`` (Y, X) uint8, both arrays.
        """
        [name] = self.items
        one = cast(RasterModality, self.modalities[name])
        raster = one.raster(self.decoded(raw, name))
        classes_YX = self.classes_of(raw, name, raster.shape[1:])
        if not self.train:
            return Example(raw["__key__"], {}, targets={"pixels": raster.numpy(), "classes": classes_YX})
        augmentation = self.augmentation or MaskAugmentation((1.0, 1.0), flip=0.0, distort=0.0, largest_class=1.0)
        pixels, classes_SS = augmentation(raster, classes_YX, one.settings.size, rng)
        return Example(raw["__key__"], {name: pixels}, targets={"classes": classes_SS})

    def classes_of(self, raw: Mapping[str, Any], name: str, size: Sequence[int]) -> np.ndarray:
        """(Y, X) uint8 class indices.

        Args:
            raw: with ``mask.png``.
            name: of the raster's modality, for messages.
            size: Y and X of the raster.

        Raises:
            ValueError: there is no mask, it is no 8-bit grey image of this size, or holds an unknown class.
        """
        if "mask.png" not in raw:
            raise ValueError("no mask.png field")
        classes_YX = decode_mask(raw["mask.png"])
        check_mask(classes_YX, name, size, self.classes)
        return classes_YX


def check_mask(classes_YX: np.ndarray, name: str, size: Sequence[int], classes: int | None) -> None:
    """Whether class indices are of a raster.

    Args:
        classes_YX: uint8.
        name: of the raster's modality, for messages.
        size: Y and X of the raster.
        classes: how many there are; None: any.

    Raises:
        ValueError: their size is another, or there is an unknown class.
    """
    if classes_YX.shape != tuple(size):
        theirs, ours = (f"{columns}×{rows}" for rows, columns in (classes_YX.shape, size))
        raise ValueError(f"its mask has {theirs} pixels, its {name} {ours}; give both the same")
    if classes is None:
        return
    unknown = np.setdiff1d(classes_YX, [*range(classes), UNLABELLED])
    if len(unknown):
        raise ValueError(
            f"its mask holds {', '.join(map(str, unknown[:10]))}; there are {classes} classes, 0 to {classes - 1}, and"
            f" {UNLABELLED} for no class"
        )


def decode_mask(data: bytes) -> np.ndarray:
    """Decode an image whose grey values are class indices, as they are: (rows, columns) uint8.

    Raises:
        ValueError: the bytes are no whole image, or it is not grey of 8 bits.
    """
    try:
        mask = Image.open(io.BytesIO(data))
        mask.load()
    except Exception as error:  # on broken bytes Pillow raises OSError, SyntaxError, struct.error and others
        raise ValueError(f"cannot decode the mask ({looks_like(data)}): {error}") from error
    if mask.mode != "L":
        raise ValueError(f"the mask's mode is {mask.mode!r}; give a grey image of 8 bits ('L') of class indices")
    return np.array(mask)
