"""Images in pages that stand alone."""

import base64
import io
from html import escape

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

REPORT_SIDE = 320
"""Pixels along the longer side of an image in a page."""


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
