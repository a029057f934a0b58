"""Scenes of the toy world: single things at any place, where their ink is and how they stand to each other.

A position is the centre of a thing's box. No two things of a scene share a row or a column, so every relation is clear.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from data_recipes.toy.images import PlacedIcon, coverage, draw_icon_side, draw_paint

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are the first column and row without ink."""

_APART = 6 / 96
"""Least distance between the centres of two things, in x and in y, as a share of the image's side."""

_LARGER = 1.4
"""How much larger than in groups things are drawn."""

_TRIES = 50  # places tried for one thing before the scene is begun again
_SCENES = 1000  # begun before it is given up


@dataclass(frozen=True)
class SceneThing:
    """One thing of a scene."""

    size: str
    colour: str
    thing: str
    icon: PlacedIcon
    box: Box

    @property
    def x(self) -> float:
        """Column of the box's centre."""
        return (self.box[0] + self.box[2]) / 2

    @property
    def y(self) -> float:
        """Row of the box's centre."""
        return (self.box[1] + self.box[3]) / 2

    def describe(self) -> dict[str, Any]:
        """What a sample's metadata say of it."""
        return {"size": self.size, "colour": self.colour, "thing": self.thing, "box": list(self.box)}


class Standing(Protocol):
    """Whatever has a place in an image."""

    @property
    def x(self) -> float:
        """Column, to the right."""

    @property
    def y(self) -> float:
        """Row, down."""


RELATIONS: dict[str, Callable[[Standing, Standing], bool]] = {
    "left of": lambda one, other: one.x < other.x,
    "right of": lambda one, other: one.x > other.x,
    "above": lambda one, other: one.y < other.y,
    "below": lambda one, other: one.y > other.y,
}
"""Words to whether the first thing stands so to the second."""

PLACES = {"on the left": "left of", "on the right": "right of", "at the top": "above", "at the bottom": "below"}
"""Words to the relation in which a thing so placed stands to all others of its kind."""


def place_things(
    things: Sequence[tuple[str, str, str]], side: int, rng: np.random.Generator, *, apart: float = _APART
) -> list[SceneThing]:
    """Put single things anywhere in an image, none on another.

    Args:
        things: size, colour and thing of each.
        side: side of the image in pixels.
        rng: draws places, shades and the jitter of sizes.
        apart: least distance between two centres, in x and in y, as a share of ``side``.

    Raises:
        ValueError: there is no room for them.
    """
    for _ in range(_SCENES):
        scene: list[SceneThing] = []
        for index, (size, colour, thing) in enumerate(things):
            paint, icon_side = draw_paint(colour, rng), round(_LARGER * draw_icon_side(size, side, rng))
            for _ in range(_TRIES):
                left, top = (int(v) for v in rng.integers(0, side - icon_side + 1, 2))
                icon = PlacedIcon(index, thing, left, top, icon_side, paint)
                placed = SceneThing(size, colour, thing, icon, ink_box(icon))
                if all(_are_apart(placed, other, apart * side) for other in scene):
                    scene.append(placed)
                    break
        if len(scene) == len(things):
            return scene
    raise ValueError(f"{len(things)} things found no room in a picture of {side} pixels")


def _are_apart(one: SceneThing, other: SceneThing, least: float) -> bool:
    a, b = one.icon, other.icon
    overlap = abs(2 * (a.left - b.left) + a.side - b.side) < a.side + b.side and (
        abs(2 * (a.top - b.top) + a.side - b.side) < a.side + b.side
    )
    return not overlap and abs(one.x - other.x) >= least and abs(one.y - other.y) >= least


@cache
def icon_mask(thing: str, side: int) -> np.ndarray:
    """Which pixels of an icon are ink, that is at least half covered by a paint: (side, side) bool."""
    return coverage(thing, side).sum(-1) >= 0.5


def ink_box(icon: PlacedIcon) -> Box:
    """The tight box around an icon's ink, in pixels of the image."""
    mask = icon_mask(icon.thing, icon.side)
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return (
        icon.left + int(columns[0]),
        icon.top + int(rows[0]),
        icon.left + int(columns[-1]) + 1,
        icon.top + int(rows[-1]) + 1,
    )


def draw_mask(icons: Sequence[PlacedIcon], classes: Sequence[str], side: int) -> np.ndarray:
    """Which class each pixel shows: (side, side) uint8 indices into ``classes``, 0 where there is no ink."""
    mask = np.zeros((side, side), np.uint8)
    for icon in icons:
        part = mask[icon.top : icon.top + icon.side, icon.left : icon.left + icon.side]
        part[icon_mask(icon.thing, icon.side)] = classes.index(icon.thing)
    return mask


def thing_mask(icon: PlacedIcon, side: int) -> np.ndarray:
    """Which pixels of an image show an icon's ink: (side, side) bool."""
    mask = np.zeros((side, side), bool)
    mask[icon.top : icon.top + icon.side, icon.left : icon.left + icon.side] = icon_mask(icon.thing, icon.side)
    return mask
