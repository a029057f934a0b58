"""How items look in reports: images in pages that stand alone, thumbnails, plots."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from torch import Tensor

REPORT_SIDE = 320
"""Pixels along the longer side of an image in a page."""

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def image_html(image: Pillow.Image, title: str = "") -> str:
    """An image in a page: small as a file, without loss where it has few colours."""
    stream = io.BytesIO()
    few = image.getcolors(256) is not None
    image.save(stream, "WEBP", lossless=few, quality=80 if few else 88)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(title)}">'


def text_card(text: str, side: int) -> Pillow.Image:
    """A grey square with a word or two in its middle."""
    card = Pillow.new("RGB", (side, side), "#f4f4f4")
    font = ImageFont.load_default(max(10, side // 8))
    ImageDraw.Draw(card).text((side / 2, side / 2), text, "#222222", font, anchor="mm")
    return card


def shrunk(image: Pillow.Image, side: int) -> Pillow.Image:
    """A copy of an image in its proportions, of at most ``side`` pixels along either side."""
    copy = image.copy()
    copy.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    return copy


def grey_image(values_YX: Tensor) -> Pillow.Image:
    """An RGB image of numbers: the lowest is black, as are those that are not finite, the highest white."""
    known = values_YX[values_YX.isfinite()]
    spread = max(float(known.max() - known.min()), 1e-8)
    grey = ((values_YX - known.min()) / spread).nan_to_num(0.0).mul(255).byte()
    return Pillow.fromarray(grey.numpy()).convert("RGB")


def line_plot(values_TC: Tensor, side: int) -> Pillow.Image:
    """A line for each of C channels over T, one above the other, in a square of ``side`` pixels."""
    plot = Pillow.new("RGB", (side, side), "white")
    low, high = values_TC.amin(0), values_TC.amax(0)
    heights = (high - values_TC) / (high - low).clamp(min=1e-6)  # 0 is the top of the channel's band
    band = side / values_TC.shape[1]
    for channel in range(values_TC.shape[1]):
        x = np.linspace(0, side - 1, len(values_TC))
        y = (channel + 0.05 + 0.9 * heights[:, channel].numpy()) * band
        points = list(zip(x.tolist(), y.tolist(), strict=True))
        ImageDraw.Draw(plot).line(points, _COLOURS[channel % len(_COLOURS)])
    return plot
