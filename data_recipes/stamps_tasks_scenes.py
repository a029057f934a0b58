"""Scenes of stamps: real pictures on a light ground, with their boxes, masks and names."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_recipes.stamps_media import OPAQUE, UnusableError, cut_out
from data_recipes.stamps_package import Stamp

CATEGORIES = {
    "animals": ("animal", "animals"),
    "clothes": ("piece of clothing", "pieces of clothing"),
    "food": ("piece of food", "pieces of food"),
    "plants": ("plant", "plants"),
    "symbols": ("symbol", "symbols"),
    "vehicles": ("vehicle", "vehicles"),
}
"""Top-level folders of stamps that scenes are made of, and the word for one and for several."""

_STAMP_SIDE = (0.22, 0.34)
"""Bounds of a stamp's longer side as a share of the scene's side."""

_APART = 0.06
"""Least distance between the centres of two stamps, in x and in y, as a share of the scene's side."""

_LEAST_INK = 30  # pixels of a stamp at its smallest
_TRIES = 50

_NOUN = re.compile(r"(?:An?|The|Some) ((?:[\w-]+ ){0,2}[\w-]+)[.!]?")


@dataclass(frozen=True)
class Cutout:
    """A stamp's picture on its transparent ground (RGBA), its category and, where its caption is short, its noun."""

    stamp: str
    category: str
    noun: str | None
    picture: Image.Image


def short_noun(caption: str) -> str | None:
    """What an English caption of an article and up to three words names: "A fire truck." is "fire truck"."""
    match = _NOUN.fullmatch(caption)
    return match[1].lower() if match else None


def make_cutouts(stamps: Sequence[Stamp], side: int) -> tuple[list[Cutout], Counter[str]]:
    """Cut out the pictures of stamps of ``CATEGORIES`` for scenes of ``side`` pixels.

    Returns:
        The cutouts, and how many others cannot be used, by reason.
    """
    cutouts, unusable = [], Counter[str]()
    for stamp in stamps:
        category = stamp.name.split("/")[0]
        if stamp.picture is None or category not in CATEGORIES:
            continue
        try:
            picture = cut_out(stamp.picture, side)
            if _ink(_shrink(picture, _STAMP_SIDE[0] * side)).sum() < _LEAST_INK:
                raise UnusableError("picture too thin for scenes")
        except UnusableError as error:
            unusable[str(error)] += 1
            continue
        cutouts.append(Cutout(stamp.name, category, short_noun(stamp.captions["en"]), picture))
    return cutouts, unusable


@dataclass(frozen=True)
class PlacedStamp:
    """A stamp in a scene: its picture at its size there, its upper left corner, and the box of what is seen of it."""

    cutout: Cutout
    picture: Image.Image
    left: int
    top: int
    box: tuple[int, int, int, int]

    @property
    def x(self) -> float:
        """Column of the box's centre."""
        return (self.box[0] + self.box[2]) / 2

    @property
    def y(self) -> float:
        """Row of the box's centre."""
        return (self.box[1] + self.box[3]) / 2

    def mask(self) -> np.ndarray:
        """Which pixels of its picture are the stamp's: (height, width) bool."""
        return _ink(self.picture)

    def describe(self) -> dict[str, Any]:
        """What a sample's metadata say of it."""
        cutout = self.cutout
        return {"thing": cutout.category, "noun": cutout.noun, "stamp": cutout.stamp, "box": list(self.box)}


def place_stamps(cutouts: Sequence[Cutout], side: int, rng: np.random.Generator) -> list[PlacedStamp]:
    """Put stamps anywhere in a square picture of ``side`` pixels, at any of the sizes, none on another."""
    while True:
        scene: list[PlacedStamp] = []
        for cutout in cutouts:
            picture = _shrink(cutout.picture, rng.uniform(*_STAMP_SIDE) * side)
            for _ in range(_TRIES):
                left, top = int(rng.integers(side - picture.width + 1)), int(rng.integers(side - picture.height + 1))
                placed = PlacedStamp(cutout, picture, left, top, _seen(picture, left, top))
                if all(_are_apart(placed, other, _APART * side) for other in scene):
                    scene.append(placed)
                    break
        if len(scene) == len(cutouts):
            return scene


def _shrink(picture: Image.Image, longest: float) -> Image.Image:
    factor = longest / max(picture.size)
    width, height = (max(1, round(value * factor)) for value in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _ink(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)[..., 3] >= OPAQUE


def _seen(picture: Image.Image, left: int, top: int) -> tuple[int, int, int, int]:
    mask = _ink(picture)
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _are_apart(one: PlacedStamp, other: PlacedStamp, least: float) -> bool:
    a, b = (
        (placed.left, placed.top, placed.left + placed.picture.width, placed.top + placed.picture.height)
        for placed in (one, other)
    )
    overlap = a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    return not overlap and abs(one.x - other.x) >= least and abs(one.y - other.y) >= least


def draw_scene(scene: Sequence[PlacedStamp], side: int, rng: np.random.Generator) -> bytes:
    """The picture of a scene on a light ground, as PNG."""
    picture = Image.new("RGB", (side, side), tuple(int(value) for value in rng.integers(225, 256, 3)))
    for placed in scene:
        picture.paste(placed.picture, (placed.left, placed.top), placed.picture)
    return _png(picture)


def class_mask(scene: Sequence[PlacedStamp], classes: Sequence[str], side: int) -> np.ndarray:
    """Which class each pixel shows: (side, side) uint8 indices into ``classes``, 0 where there is no stamp."""
    mask = np.zeros((side, side), np.uint8)
    for placed in scene:
        part = placed.mask()
        height, width = part.shape
        mask[placed.top : placed.top + height, placed.left : placed.left + width][part] = classes.index(
            placed.cutout.category
        )
    return mask


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask as 8-bit grey PNG."""
    return _png(Image.fromarray(mask))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
