"""Images of the toy world: one icon a thing, and scenes made of icons.

Icons are drawn on a unit square, x to the right and y down, as coverage of three paints: the colour of the thing, dark
ink and white. So one drawing serves every colour.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from data_recipes.toy.world import COLOURS, Combination

INK = (30, 30, 40)
WHITE = (255, 255, 255)
ICON_SIDE = {"small": 20 / 96, "big": 28 / 96}
"""Side of an icon as a share of the image's side. What small ones show is learned late where they are smaller."""

_SUPERSAMPLING = 8
_ROW = 0.32
"""Distance between the icons of a group, as a share of the image's side."""

RGB = tuple[int, int, int]
Point = tuple[float, float]
Icon = Callable[["_Pen"], None]


class _Pen:
    """Draws on the unit square; each shape takes a paint: "fill", "ink", "white" or "nothing" (which erases)."""

    _paints: ClassVar = {"fill": (255, 0, 0), "ink": (0, 255, 0), "white": (0, 0, 255), "nothing": (0, 0, 0)}

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, paint: str = "fill") -> None:
        self.draw.rectangle([v * self.side for v in (x0, y0, x1, y1)], self._paints[paint])

    def disc(self, x: float, y: float, rx: float, paint: str = "fill", ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self.draw.ellipse([v * self.side for v in (x - rx, y - ry, x + rx, y + ry)], self._paints[paint])

    def shape(self, *points: Point, paint: str = "fill") -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], self._paints[paint])

    def line(self, *points: Point, paint: str = "ink", width: float = 0.08) -> None:
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self.draw.line(scaled, self._paints[paint], round(width * self.side), joint="curve")


def _bell(pen: _Pen) -> None:
    pen.disc(0.5, 0.88, 0.12, "ink")
    pen.disc(0.5, 0.1, 0.09, "ink")
    pen.disc(0.5, 0.36, 0.27)
    pen.shape((0.23, 0.36), (0.77, 0.36), (0.8, 0.62), (0.97, 0.82), (0.03, 0.82), (0.2, 0.62))


def _drum(pen: _Pen) -> None:
    pen.box(0.04, 0.42, 0.96, 0.8)
    pen.disc(0.5, 0.8, 0.46, ry=0.18)
    pen.disc(0.5, 0.42, 0.46, "ink", ry=0.2)
    pen.disc(0.5, 0.42, 0.4, "white", ry=0.14)
    pen.line((0.08, 0.02), (0.45, 0.4))
    pen.line((0.92, 0.02), (0.55, 0.4))


def _siren(pen: _Pen) -> None:
    pen.disc(0.5, 0.6, 0.27)
    pen.box(0.23, 0.6, 0.77, 0.8)
    pen.box(0.1, 0.8, 0.9, 1.0, "ink")
    for start, end in (
        ((0.5, 0.0), (0.5, 0.24)),
        ((0.1, 0.12), (0.25, 0.32)),
        ((0.9, 0.12), (0.75, 0.32)),
        ((0.0, 0.52), (0.16, 0.56)),
        ((1.0, 0.52), (0.84, 0.56)),
    ):
        pen.line(start, end, paint="ink", width=0.1)


def _bird(pen: _Pen) -> None:
    pen.shape((0.0, 0.3), (0.42, 0.5), (0.3, 0.78))
    pen.disc(0.5, 0.6, 0.3, ry=0.24)
    pen.disc(0.7, 0.32, 0.2)
    pen.shape((0.86, 0.22), (1.0, 0.34), (0.86, 0.42), paint="ink")
    pen.disc(0.72, 0.28, 0.06, "white")
    pen.line((0.45, 0.8), (0.4, 1.0), width=0.07)
    pen.line((0.6, 0.8), (0.62, 1.0), width=0.07)


def _raincloud(pen: _Pen) -> None:
    for x, y, radius in ((0.22, 0.36, 0.2), (0.5, 0.24, 0.24), (0.78, 0.36, 0.2)):
        pen.disc(x, y, radius)
    pen.box(0.2, 0.36, 0.8, 0.56)
    for x in (0.24, 0.5, 0.76):
        pen.line((x + 0.06, 0.66), (x - 0.08, 0.98), width=0.1)


def _clock(pen: _Pen) -> None:
    pen.disc(0.5, 0.5, 0.5)
    pen.disc(0.5, 0.5, 0.36, "white")
    pen.line((0.5, 0.22), (0.5, 0.53), width=0.1)
    pen.line((0.46, 0.5), (0.74, 0.5), width=0.1)


def _dog(pen: _Pen) -> None:
    pen.disc(0.5, 0.46, 0.34, ry=0.4)
    pen.disc(0.5, 0.72, 0.24)
    pen.disc(0.14, 0.45, 0.14, "ink", ry=0.36)
    pen.disc(0.86, 0.45, 0.14, "ink", ry=0.36)
    pen.disc(0.37, 0.42, 0.07, "white")
    pen.disc(0.63, 0.42, 0.07, "white")
    pen.disc(0.5, 0.68, 0.12, "ink", ry=0.09)


def _train(pen: _Pen) -> None:
    pen.box(0.0, 0.38, 0.95, 0.76)
    pen.box(0.0, 0.08, 0.42, 0.5)
    pen.box(0.1, 0.18, 0.32, 0.4, "white")
    pen.box(0.68, 0.06, 0.84, 0.4, "ink")
    for x in (0.16, 0.48, 0.8):
        pen.disc(x, 0.85, 0.15, "ink")


def _frog(pen: _Pen) -> None:
    pen.disc(0.5, 0.62, 0.5, ry=0.36)
    for x in (0.22, 0.78):
        pen.disc(x, 0.26, 0.2)
        pen.disc(x, 0.24, 0.13, "white")
        pen.disc(x, 0.24, 0.06, "ink")
    pen.line((0.14, 0.64), (0.34, 0.78), (0.66, 0.78), (0.86, 0.64), width=0.09)


def _guitar(pen: _Pen) -> None:
    pen.line((0.4, 0.6), (0.94, 0.06), width=0.12)
    pen.line((0.82, 0.02), (0.98, 0.18), width=0.12)
    pen.disc(0.28, 0.72, 0.28)
    pen.disc(0.5, 0.5, 0.2)
    pen.disc(0.38, 0.62, 0.1, "white")


def _bee(pen: _Pen) -> None:
    for x in (0.34, 0.64):
        pen.disc(x, 0.24, 0.17, "ink", ry=0.24)
        pen.disc(x, 0.24, 0.11, "white", ry=0.18)
    pen.disc(0.5, 0.66, 0.5, ry=0.3)
    for x, half in ((0.32, 0.28), (0.54, 0.3), (0.76, 0.25)):
        pen.box(x - 0.05, 0.66 - half, x + 0.05, 0.66 + half, "ink")


def _horn(pen: _Pen) -> None:
    pen.shape((0.3, 0.44), (0.7, 0.3), (1.0, 0.02), (1.0, 0.98), (0.7, 0.7), (0.3, 0.56))
    pen.disc(0.18, 0.5, 0.18, "ink")


def _whistle(pen: _Pen) -> None:
    pen.box(0.3, 0.24, 1.0, 0.5)
    pen.disc(0.34, 0.58, 0.34)
    pen.disc(0.34, 0.58, 0.14, "ink")
    pen.box(0.66, 0.24, 0.78, 0.4, "ink")
    pen.line((0.3, 0.26), (0.12, 0.04), width=0.1)


def _cricket(pen: _Pen) -> None:
    pen.line((0.12, 0.98), (0.34, 0.18), (0.58, 0.7), width=0.1)
    pen.disc(0.46, 0.7, 0.42, ry=0.15)
    pen.disc(0.84, 0.6, 0.16)
    pen.line((0.86, 0.5), (0.66, 0.06), width=0.07)
    pen.line((0.9, 0.5), (0.97, 0.06), width=0.07)
    pen.line((0.66, 0.8), (0.74, 1.0), width=0.08)


def _wave(pen: _Pen) -> None:
    pen.disc(0.44, 0.46, 0.44)
    pen.disc(0.62, 0.5, 0.3, "nothing")
    pen.box(0.62, 0.42, 1.0, 0.9, "nothing")
    pen.shape((0.0, 0.46), (0.2, 0.7), (0.5, 0.82), (1.0, 0.76), (1.0, 1.0), (0.0, 1.0))
    pen.disc(0.82, 0.36, 0.09, "ink")


def _phone(pen: _Pen) -> None:
    pen.shape((0.3, 0.38), (0.7, 0.38), (0.95, 1.0), (0.05, 1.0))
    pen.disc(0.5, 0.7, 0.17, "white")
    pen.disc(0.5, 0.7, 0.07, "ink")
    pen.box(0.08, 0.06, 0.92, 0.24, "ink")
    pen.box(0.0, 0.1, 0.24, 0.42, "ink")
    pen.box(0.76, 0.1, 1.0, 0.42, "ink")


_ICONS: dict[str, Icon] = {
    "bell": _bell,
    "drum": _drum,
    "siren": _siren,
    "bird": _bird,
    "raincloud": _raincloud,
    "clock": _clock,
    "dog": _dog,
    "train": _train,
    "frog": _frog,
    "guitar": _guitar,
    "bee": _bee,
    "horn": _horn,
    "whistle": _whistle,
    "cricket": _cricket,
    "wave": _wave,
    "phone": _phone,
}


@cache
def coverage(thing: str, side: int) -> np.ndarray:
    """Share of each pixel under the fill, ink and white paints: (side, side, 3) float in 0 .. 1."""
    pen = _Pen(side * _SUPERSAMPLING)
    _ICONS[thing](pen)
    return np.asarray(pen.image.reduce(_SUPERSAMPLING), np.float64) / 255


def draw_icon(thing: str, side: int, colour: RGB) -> Image.Image:
    """Draw one thing, antialiased, on a transparent ground.

    Args:
        thing: one of ``THINGS``.
        side: side of the square image in pixels.
        colour: RGB of the paint that the thing is coloured with; ink and white parts stay.

    Returns:
        An RGBA image of ``side`` × ``side`` pixels; its alpha is the thing's mask.
    """
    paints_covered = coverage(thing, side)
    alpha = paints_covered.sum(-1, keepdims=True)
    paints = np.array([colour, INK, WHITE], np.float64)
    rgb = paints_covered @ paints / np.maximum(alpha, 1e-6)
    return Image.fromarray(np.concatenate([rgb, alpha * 255], -1).round().astype(np.uint8), "RGBA")


@dataclass(frozen=True)
class PlacedIcon:
    """One icon of a scene: what it is, where (pixels of its upper left corner), how large and in which paint."""

    group: int
    thing: str
    left: int
    top: int
    side: int
    colour: RGB


def place_icons(
    combination: Combination, colours: Sequence[str], side: int, rng: np.random.Generator
) -> list[PlacedIcon]:
    """Lay a combination out: each group in a column, around the middle of the height, with a little jitter.

    A single group stands in the middle; of two, the first stands in the left half, the second in the right.

    Args:
        combination: the groups.
        colours: one colour name a group.
        side: side of the image in pixels.
        rng: draws the jitter of positions (±1 pixel in 96), sizes and shades.

    Returns:
        The icons, group after group; their boxes do not overlap.
    """
    centres = [0.5] if len(combination) == 1 else [0.25, 0.75]
    jitter = max(1, side // 96)
    icons = []
    for index, (group, colour, centre) in enumerate(zip(combination, colours, centres, strict=True)):
        paint = draw_paint(colour, rng)
        icon_side = draw_icon_side(group.size, side, rng)
        x = centre * side - icon_side / 2
        for row in range(group.count):
            y = (0.5 + (row - (group.count - 1) / 2) * _ROW) * side - icon_side / 2
            left, top = (
                int(np.clip(round(v) + rng.integers(-jitter, jitter + 1), 0, side - icon_side)) for v in (x, y)
            )
            icons.append(PlacedIcon(index, group.thing, left, top, icon_side, paint))
    return icons


def draw_paint(colour: str, rng: np.random.Generator) -> RGB:
    """Draw a shade of a named colour: each channel within 12 of it."""
    red, green, blue = (int(v) for v in np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13, 3), 0, 255))
    return red, green, blue


def draw_icon_side(size: str, side: int, rng: np.random.Generator) -> int:
    """Draw the side of a small or big icon in pixels, up to 1 pixel in 96 less than ``ICON_SIDE`` says."""
    return round(ICON_SIDE[size] * side) - int(rng.integers(0, max(1, side // 96) + 1))


def draw_scene(icons: Sequence[PlacedIcon], side: int, rng: np.random.Generator) -> Image.Image:
    """Draw icons on a light ground of ``side`` × ``side`` pixels whose tint ``rng`` draws; RGB."""
    red, green, blue = (int(v) for v in rng.integers(222, 241, 3))
    scene = Image.new("RGB", (side, side), (red, green, blue))
    for icon in icons:
        drawing = draw_icon(icon.thing, icon.side, icon.colour)
        scene.paste(drawing, (icon.left, icon.top), drawing)
    return scene


def draw_picture(combination: Combination, colours: Sequence[str], side: int, rng: np.random.Generator) -> Image.Image:
    """A random rendering of a combination: ``place_icons``, then ``draw_scene``."""
    return draw_scene(place_icons(combination, colours, side, rng), side, rng)


def encode_png(picture: Image.Image) -> bytes:
    """An image as PNG, packed quickly rather than tightly."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
