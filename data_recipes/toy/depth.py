"""Depth maps of the toy world's scenes: big icons stand nearer than small ones, before a sloping ground."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_recipes.toy.images import PlacedIcon, coverage

GROUND = (3.5, 4.5)
"""Metres to the middle of the ground, drawn for each scene."""
SLOPE = 0.5
"""The most metres by which the ground rises or falls from one edge to the other."""
NEAREST = 0.6
"""Metres to an icon as wide as the whole image; others stand farther in proportion."""
RELIEF = 0.2
"""Metres by which the ink of an icon stands out and its white lies back."""
UNMEASURED = 0.01
"""Fraction of the pixels without a measurement, which are 0."""


def draw_depth(icons: Sequence[PlacedIcon], side: int, rng: np.random.Generator) -> Image.Image:
    """Millimetres to what is seen in a scene, as an image of ``side`` × ``side`` pixels of 16 bits."""
    rise, fall = rng.uniform(-SLOPE, SLOPE, 2)
    across = np.linspace(-0.5, 0.5, side)
    metres = rng.uniform(*GROUND) + rise * across[:, None] + fall * across
    for icon in icons:
        paints = coverage(icon.thing, icon.side)
        distance = NEAREST * side / icon.side + RELIEF * (paints[..., 2] - paints[..., 1])
        part = np.s_[icon.top : icon.top + icon.side, icon.left : icon.left + icon.side]
        metres[part] = np.where(paints.sum(-1) > 0.5, distance, metres[part])
    metres += rng.normal(0, 0.005, metres.shape)
    metres[rng.random(metres.shape) < UNMEASURED] = 0
    return Image.fromarray((metres * 1000).round().astype(np.uint16))
