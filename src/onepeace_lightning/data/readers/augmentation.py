"""What augmentations of several kinds of samples share: seeding, blur, and the published one of image pairs."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data.auto_augment import AugmentOp
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import ColorJitter, RandomHorizontalFlip
from torchvision.transforms.v2 import functional as tvf

BLUR_RADIUS = (0.1, 2.0)
"""Least and greatest standard deviation in pixels."""
OPERATIONS = (None, "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
"""What two of are drawn for an image of a pair; None leaves it as it is."""
LEVEL = 7
"""Strength of an operation, of at most 10."""
_SETTINGS = {"translate_const": 10, "img_mean": (128, 128, 128), "interpolation": Image.Resampling.BILINEAR}


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


def squared(image: Image.Image, side: int) -> Image.Image:
    """The image resized to a square, whatever its proportions."""
    return tvf.resize(image, [side, side], interpolation=InterpolationMode.BICUBIC)


def blurred(image: Image.Image, chance: float, rng: np.random.Generator) -> Image.Image:
    """The image, with this chance blurred by a Gaussian of random width."""
    if rng.random() >= chance:
        return image
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_RADIUS)))


@dataclass(frozen=True)
class PairAugmentation:
    """What is done to each training image of a pair, drawn for each anew; as published for NLVR2.

    An image is resized to the model's square; then its colours are changed, it is blurred and mirrored; then come
    operations that are drawn with replacement from ``OPERATIONS``, each applied to half of the images.

    Attributes:
        colour: fraction of images whose brightness, contrast and saturation are multiplied by 0.6 to 1.4.
        blur: fraction of images that are blurred.
        flip: fraction of images mirrored left to right.
        operations: how many are drawn.
    """

    colour: float = 0.5
    blur: float = 0.5
    flip: float = 0.5
    operations: int = 2

    def __post_init__(self) -> None:
        fractions = (self.colour, self.blur, self.flip)
        if not all(0 <= fraction <= 1 for fraction in fractions) or self.operations < 0:
            raise ValueError(
                f"augmentation: colour is {self.colour}, blur {self.blur}, flip {self.flip}, operations"
                f" {self.operations}; give fractions of 0 to 1, and 0 operations or more"
            )

    def __call__(self, image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
        """A square PIL image of ``side`` pixels."""
        image = squared(image, side)
        with seeded(rng):
            if rng.random() < self.colour:
                image = ColorJitter(0.4, 0.4, 0.4)(image)
            image = RandomHorizontalFlip(self.flip)(blurred(image, self.blur, rng))
            for number in rng.integers(len(OPERATIONS), size=self.operations):
                if (name := OPERATIONS[number]) is not None:
                    image = AugmentOp(name, prob=0.5, magnitude=LEVEL, hparams=_SETTINGS)(image)
        return image
