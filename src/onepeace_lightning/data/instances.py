"""Instances of an image: boxes, classes and masks, as shards hold them and as training changes them.

Masks are stored in COCO's compressed run-length encoding, ``{"size": [Y, X], "counts": "…"}``.

G = instances, Y and X = rows and columns of an image, S = side of the model's square.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_api
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2.functional import pil_to_tensor

from onepeace_lightning.losses.detection import Truth

Rle = dict[str, Any]
"""A mask in COCO's run-length encoding."""


def encode_mask(mask_YX: np.ndarray) -> Rle:
    """The run-length encoding of a bool or 0/1 mask, as JSON takes it."""
    encoded = mask_api.encode(np.asfortranarray(mask_YX, dtype=np.uint8))
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode()}


def decode_masks(masks: Sequence[Rle], size: tuple[int, int]) -> np.ndarray:
    """(G, Y, X) bool.

    Args:
        masks: run-length encodings.
        size: Y and X of the image that they belong to.

    Raises:
        ValueError: one is damaged or of another size.
    """
    decoded = np.zeros((len(masks), *size), bool)
    for number, mask in enumerate(masks):
        if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), str) or "size" not in mask:
            raise ValueError(
                f"instance {number}: its mask is {str(mask)[:80]!r}; give COCO's compressed run-length encoding,"
                ' {"size": [rows, columns], "counts": "…"}'
            )
        if list(mask["size"]) != list(size):
            raise ValueError(
                f"instance {number}: its mask is of {list(mask['size'])} rows and columns, the image of {list(size)}"
            )
        try:
            decoded[number] = mask_api.decode(dict(mask))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"instance {number}: its mask cannot be decoded: {error}") from error
    return decoded


@dataclass(frozen=True)
class Annotations:
    """An image's instances.

    Attributes:
        boxes: (G, 4) float32 x0, y0, x1, y1 in pixels.
        classes: (G,) int64 indices.
        masks: (G, Y, X) bool.
        crowd: (G,) bool: a region of many instances, which nothing is learned from and nothing is missed in.
        areas: (G,) float32 pixels, which tell small from large instances in the metric.
    """

    boxes: Tensor
    classes: Tensor
    masks: Tensor
    crowd: Tensor
    areas: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Y and X."""
        return self.masks.shape[1], self.masks.shape[2]

    def truth(self, device: torch.device | None = None) -> Truth:
        """What is to be learned, without crowds."""
        alone = ~self.crowd
        return Truth(*(part[alone].to(device, non_blocking=True) for part in (self.boxes, self.classes, self.masks)))


@dataclass(frozen=True)
class AnnotatedImage:
    """An image as the model takes it, with its instances.

    Attributes:
        pixels: (3, Y', X') uint8, of at most S rows and columns.
        annotations: in training in these pixels, in evaluation in those of the stored image.
    """

    pixels: Tensor
    annotations: Annotations


def read_annotations(instances: Any, classes: Mapping[str, int], size: tuple[int, int]) -> Annotations:
    """Instances as a shard's ``json`` lists them.

    Each has a ``label``, a ``box`` [x0, y0, x1, y1] in pixels and a ``mask``; ``crowd`` (false) and ``area`` (that of
    the mask) may be left out.

    Args:
        instances: the list.
        classes: class name to its index.
        size: Y and X of the image.

    Raises:
        ValueError: an instance is not as it should be; the first one is named.
    """
    if not isinstance(instances, list) or not all(isinstance(one, dict) for one in instances):
        raise ValueError(f"its instances are {str(instances)[:80]!r}; give a list of objects")
    for number, one in enumerate(instances):
        if not isinstance(one.get("label"), str) or one["label"] not in classes:
            known = ", ".join(list(classes)[:10])
            raise ValueError(
                f"instance {number}: label {one.get('label')!r} is none of the {len(classes)} classes ({known} …)"
            )
        _check_box(number, one.get("box"), size)
        area = one.get("area", 0)
        if not isinstance(area, int | float) or not (math.isfinite(area) and area >= 0):
            raise ValueError(f"instance {number}: its area is {area!r}; give a number of pixels, or leave it out")
    masks = decode_masks([one.get("mask") for one in instances], size)
    pixels = masks.sum((1, 2))
    areas = [float(one.get("area", area)) for one, area in zip(instances, pixels, strict=True)]
    return Annotations(
        torch.tensor([one["box"] for one in instances], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([classes[one["label"]] for one in instances], dtype=torch.int64),
        torch.from_numpy(masks),
        torch.tensor([bool(one.get("crowd", False)) for one in instances], dtype=torch.bool),
        torch.tensor(areas, dtype=torch.float32),
    )


def _check_box(number: int, box: Any, size: tuple[int, int]) -> None:
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        raise ValueError(f"instance {number}: its box is {box!r}; give four numbers x0, y0, x1, y1 in pixels")
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
        raise ValueError(
            f"instance {number}: its box is {box} in an image of {size[1]}×{size[0]} pixels; it must lie within, with"
            " x0 < x1 and y0 < y1"
        )


def fitted_size(size: tuple[int, int], longest: float) -> tuple[int, int]:
    """Rows and columns of an image in its proportions whose longest side has about so many pixels, at least 1."""
    factor = longest / max(size)
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def fitted(image: Image.Image, side: int) -> Tensor:
    """(3, Y', X') uint8 pixels of an image whose longest side becomes S, bilinear as in published evaluation."""
    rows, columns = fitted_size((image.height, image.width), side)
    return pil_to_tensor(image.resize((columns, rows), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class ScaleJitter:
    """What is done to training images: another size, a random square of it, mirroring (arXiv 2012.07177).

    Attributes:
        scale: least and greatest length of the longest side, as a multiple of S; of what is larger than S a random part
            is taken.
        flip: fraction of the images that are mirrored left to right.
    """

    scale: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.scale
        if not (0 < low <= high and 0 <= self.flip <= 1):
            raise ValueError(
                f"augmentation: scale is {self.scale}, flip {self.flip}; give a scale above 0 and in order, and a"
                " fraction from 0 to 1"
            )

    def __call__(
        self, image: Image.Image, annotations: Annotations, side: int, rng: np.random.Generator
    ) -> AnnotatedImage:
        """A part of the image with what is left of its instances; boxes become those of the masks.

        Args:
            image: RGB.
            annotations: in its pixels; crowds are left out.
            side: S.
            rng: of everything that is drawn.
        """
        size = (image.height, image.width)
        resized = fitted_size(size, side * rng.uniform(*self.scale))
        shown = [min(length, side) for length in resized]
        starts = [int(rng.integers(length - part + 1)) for length, part in zip(resized, shown, strict=True)]
        mirrored = rng.random() < self.flip
        # Only what is shown is resized: the part of the stored image that becomes these rows and columns.
        edges = [
            (start * old / new, (start + part) * old / new)
            for start, part, old, new in zip(starts, shown, size, resized, strict=True)
        ]
        (top, bottom), (left, right) = edges
        part = image.resize((shown[1], shown[0]), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        rows, columns = (
            ((start + torch.arange(length) + 0.5) * (old / new)).long().clamp(max=old - 1)
            for start, length, old, new in zip(starts, shown, size, resized, strict=True)
        )
        pixels, masks = pil_to_tensor(part), annotations.masks[~annotations.crowd][:, rows][:, :, columns]
        if mirrored:
            pixels, masks = pixels.flip(-1), masks.flip(-1)
        kept = masks.any((1, 2)) if len(masks) else torch.zeros(0, dtype=torch.bool)
        masks = masks[kept]
        boxes = masks_to_boxes(masks) if len(masks) else torch.zeros(0, 4)
        boxes[:, 2:] += 1  # the last pixel is in the box
        return AnnotatedImage(
            pixels.contiguous(),
            Annotations(
                boxes,
                annotations.classes[~annotations.crowd][kept],
                masks,
                torch.zeros(len(masks), dtype=torch.bool),
                masks.sum((1, 2)).float(),
            ),
        )
