"""Images in pages that stand alone."""

import base64
import io
from html import escape

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

REPORT_SIDE = 244
"""Pixels along the longer side of an image in a page, which shows it at half of that."""


def image_html(image: Pillow.Image, title: str = "") -> str:
    """An image in a page."""
    return f'<img src="data:image/png;base64,{encoded_png(image)}" alt="{escape(title)}">'


def encoded_png(image: Pillow.Image) -> str:
    """An image as a PNG file in base64."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def text_card(text: str, side: int) -> Pillow.Image:
    """A grey square with a word or two in its middle."""
    card = Pillow.new("RGB", (side, side), "#f4f4f4")
    font = ImageFont.load_default(max(10, side // 8))
    ImageDraw.Draw(card).text((side / 2, side / 2), text, "#222222", font, anchor="mm")
    return card
