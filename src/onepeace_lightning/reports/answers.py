"""A page and an image that show what a task answers to held-out samples: boxes, masks, answers."""

from dataclasses import replace
from html import escape
from typing import Any

import lightning as L
from PIL import Image, ImageDraw, ImageFont

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.reports.base import ValidationReport, interleaved
from onepeace_lightning.reports.drawing import SIDE, Drawn
from onepeace_lightning.reports.pages import INK, RIGHT, WRONG, figure, grid, in_a_row, legend
from onepeace_lightning.reports.sheets import wrapped


class AnswersReport(ValidationReport):
    """The first samples of every validation stream with their answers.

    The task draws them by its method ``draw(batch, outputs, row)``, which gives a ``reports.drawing.Drawn``, from what
    its ``validation_step`` returned.

    Args:
        folder: see ``ValidationReport``.
        samples: how many of each stream.

    Raises:
        ValueError: for less than one sample.
    """

    title = "Answers"
    introduction = """Held-out samples: what was asked, the model's answer, right ✓ or wrong ✗, and in grey what is
right. Where boxes or outlines are drawn, the right one is green, the model's orange."""

    def __init__(self, folder: str | None = None, samples: int = 24) -> None:
        super().__init__(folder)
        if samples < 1:
            raise ValueError(f"samples is {samples}; a report shows at least 1")
        self.samples = samples

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the task can be drawn.

        Raises:
            TypeError: it has no method ``draw``.
        """
        if not callable(getattr(pl_module, "draw", None)):
            raise TypeError(f"{type(pl_module).__name__} draws no answers; take AnswersReport out of the callbacks")

    def collect(
        self, kept: list[Drawn] | None, name: str, batch: Any, outputs: Any, task: L.LightningModule
    ) -> list[Drawn]:
        """Draw a batch's samples, until there are enough."""
        kept = kept or []
        rows = range(min(len(batch), self.samples - len(kept)))
        drawn = [task.draw(batch, outputs, row) for row in rows]  # type: ignore[operator]  # checked in setup
        if isinstance(batch, Batch):
            drawn = [replace(one, name=batch.named(row)) for row, one in enumerate(drawn)]
        return [*kept, *drawn]

    def join(self, parts: list[list[Drawn]]) -> list[Drawn]:
        """The first samples of all processes."""
        return interleaved(parts)[: self.samples]

    def sections(self, streams: dict[str, list[Drawn]]) -> str:
        """One for each stream, a figure for each sample."""
        return "\n".join(
            f"<section><h2>{escape(_title(name, samples))}</h2>{_figures(samples)}</section>"
            for name, samples in streams.items()
        )

    def sheet(self, streams: dict[str, list[Drawn]]) -> Image.Image:
        """Streams one under the other."""
        return render_sheet(streams)


def _figures(samples: list[Drawn]) -> str:
    figures = []
    for sample in samples:
        kind, mark = ("right", "✓") if sample.right else ("wrong", "✗")
        lines = [escape(sample.asked)] if sample.asked else []
        lines.append(f"<b>{mark}</b> {escape(sample.answered)}")
        if sample.expected:
            lines.append(f"<small>{escape(sample.expected)}</small>")
        if sample.name:
            lines.append(f"<small>{escape(sample.name)}</small>")
        content = in_a_row([item.html for item in sample.shown], [item.title for item in sample.shown])
        if sample.legend:
            content += legend(sample.legend)
        figures.append(figure(content, "<br>".join(lines), kind))
    return grid(figures, wide=any(len(sample.shown) > 1 for sample in samples))


def _title(name: str, samples: list[Drawn]) -> str:
    return f"{name}: {sum(sample.right for sample in samples)} of these {len(samples)} right"


COLUMNS, GAP, FRAME, LINE, HEADING = 4, 12, 4, 17, 40
"""Sheet layout: samples side by side; then in pixels: space between, frame width, line of text, section heading."""


def render_sheet(streams: dict[str, list[Drawn]]) -> Image.Image:
    """Draw the gallery as one RGB image: images framed green (right) or red, the words under them.

    Words are drawn in Pillow's built-in font, which has Latin letters only; the page shows every script.

    Args:
        streams: name of a validation stream to its samples, one section under the other.
    """
    cells = {name: [_cell(sample) for sample in samples] for name, samples in streams.items()}
    rows = {name: [some[i : i + COLUMNS] for i in range(0, len(some), COLUMNS)] for name, some in cells.items()}
    widest = max((cell.width for some in cells.values() for cell in some), default=SIDE)
    height = sum(HEADING + sum(GAP + max(cell.height for cell in row) for row in some) for some in rows.values())
    sheet = Image.new("RGB", (GAP + COLUMNS * (widest + GAP), height + GAP), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for name, some in rows.items():
        title = _title(name, streams[name])
        draw.text((GAP, y + HEADING / 2), title, INK, ImageFont.load_default(16), anchor="lm")
        y += HEADING
        for row in some:
            for column, cell in enumerate(row):
                sheet.paste(cell, (GAP + column * (widest + GAP), y))
            y += max(cell.height for cell in row) + GAP
    return sheet


def _cell(sample: Drawn) -> Image.Image:
    """One sample: its images side by side in a frame, the words under them."""
    font = ImageFont.load_default(14)
    width = 2 * FRAME + SIDE * len(sample.items) + FRAME * (len(sample.items) - 1)
    height = 2 * FRAME + max(image.height for image in sample.images)
    asked = sample.asked or ", ".join(item.title for item in sample.shown if item.title)
    words = [(asked, INK), (sample.answered, RIGHT if sample.right else WRONG), (sample.expected, INK)]
    lines = [(line, colour) for text, colour in words for line in wrapped(text, font, width)]
    cell = Image.new("RGB", (width, height + GAP // 2 + LINE * len(lines)), "white")
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, width - 1, height - 1), RIGHT if sample.right else WRONG)
    for column, image in enumerate(sample.images):
        cell.paste(image, (FRAME + column * (SIDE + FRAME), FRAME))
    for number, (line, colour) in enumerate(lines):
        draw.text((0, height + GAP // 2 + LINE * number), line, colour, font)
    return cell
