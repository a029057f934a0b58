"""Words on images that show results."""

from PIL import ImageFont

MOST_LINES = 5
"""A longer text ends in dots."""


def wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The lines of a text that is broken at blanks to fit a width in pixels; a longer word sticks out."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1] + " ..."]
