"""What a task draws of its answers, for people to look at.

W and H = width and height in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image as Pillow
from PIL import ImageDraw
from torch import Tensor

from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.modalities.rendering import image_html

SIDE = 240
"""Longest side of what is drawn, in pixels."""

TRUE, GUESS, OUTLINE = "#1a9850", "#e6550d", "#ffffff"
"""Colours of what is right, of what the model says, and around both."""


@dataclass(frozen=True)
class Shown:
    """An item as a report shows it.

    Attributes:
        image: in the sheet, at most ``SIDE`` pixels; an image's own look, or a plot of what is heard.
        html: in the page: an image, a player, a text.
        title: a word above it, where several stand side by side.
    """

    image: Pillow.Image
    html: str
    title: str = ""


def shown_image(image: Pillow.Image, title: str = "") -> Shown:
    """An image that was drawn on."""
    return Shown(image, image_html(image, title), title)


def shown_item(modality: Modality, inputs: Any, row: int, size: Tensor | None = None, title: str = "") -> Shown:
    """A sample of a batch as its modality shows it.

    Args:
        modality: with a tokenizer where it reads text.
        inputs: the modality's part of a batch.
        row: which sample.
        size: (2,) width and height of an image before it became a square, to show it in its proportions.
        title: a word above it.
    """
    item = modality.sample(inputs, row)
    image = modality.thumbnail(item, SIDE)
    if size is None:
        return Shown(image, modality.html(item, title), title)
    width, height = (size * SIDE / size.max()).round().clamp(min=1).int().tolist()
    return shown_image(image.resize((width, height), Pillow.Resampling.BICUBIC), title)


@dataclass(frozen=True)
class Drawn:
    """One answered sample.

    Attributes:
        items: what was asked about, in order, side by side; an image stands for itself.
        asked: the question or statement; "" where the items say it.
        answered: what the model says.
        expected: what is right; empty where an item shows it.
        right: whether the answer is.
        legend: what colours in the items stand for, as CSS writes them.
        name: what a person finds the sample by; "" where nobody says.
    """

    items: Sequence[Shown | Pillow.Image]
    asked: str
    answered: str
    expected: str
    right: bool
    legend: dict[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def shown(self) -> list[Shown]:
        """The items as a report shows them."""
        return [shown_image(item) if isinstance(item, Pillow.Image) else item for item in self.items]

    @property
    def images(self) -> list[Pillow.Image]:
        """The items as images."""
        return [item if isinstance(item, Pillow.Image) else item.image for item in self.items]


def draw_box(image: Pillow.Image, box: Tensor, colour: str) -> None:
    """Outline a box, in place.

    Args:
        image: of W × H.
        box: (4,) x0, y0, x1, y1 as fractions of W and H; in any order.
        colour: of the line.
    """
    x0, y0, x1, y1 = (box.float().cpu() * torch.tensor([*image.size, *image.size])).tolist()
    x0, x1 = sorted((x0, x1))
    y0, y1 = sorted((y0, y1))
    draw = ImageDraw.Draw(image)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=OUTLINE, width=4)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=2)
