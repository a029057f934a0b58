"""A page and a picture that show what a task answers to held-out samples: boxes, masks, answers.

W and H = width and height in pixels.
"""

from html import escape
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageDraw, ImageFont

from onepeace_lightning.modalities.rendering import image_html
from onepeace_lightning.reports.drawing import GUESS, SIDE, TRUE, Drawn
from onepeace_lightning.reports.pages import INK, RIGHT, WRONG, figure, grid, page
from onepeace_lightning.reports.sheets import wrapped


class AnswersGallery(L.Callback):
    """Writes ``answers.html`` and ``answers.png``: the first samples of every validation stream with their answers.

    The task draws them by its method ``draw(batch, outputs, row)``, which gives a ``reports.drawing.Drawn``, from what
    its ``validation_step`` returned. The page stands alone: pictures are inside. Made once, when ``fit`` (from its last
    validation) or ``validate`` ends; the picture also goes to TensorBoard. Under several processes the samples are rank
    zero's first ones.

    Args:
        folder: where both files go, the trainer's ``default_root_dir`` if None; older files are replaced.
        samples: how many of each stream.

    Raises:
        ValueError: for less than one sample.
    """

    def __init__(self, folder: str | None = None, samples: int = 24) -> None:
        if samples < 1:
            raise ValueError(f"samples is {samples}; a gallery shows at least 1")
        self.folder = folder
        self.samples = samples
        self._drawn: dict[str, list[Drawn]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the task can be drawn.

        Raises:
            TypeError: it has no method ``draw``.
        """
        if not callable(getattr(pl_module, "draw", None)):
            raise TypeError(f"{type(pl_module).__name__} draws no answers; take AnswersGallery out of the callbacks")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the previous validation."""
        self._drawn = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw a batch's samples, until there are enough."""
        if trainer.sanity_checking or not trainer.is_global_zero or not outputs:  # a filler has none
            return
        loaders = trainer.val_dataloaders
        name = list(loaders)[dataloader_idx] if isinstance(loaders, dict) else f"validation {dataloader_idx}"
        drawn = self._drawn.setdefault(name, [])
        for row in range(min(len(batch), self.samples - len(drawn))):
            drawn.append(pl_module.draw(batch, outputs, row))  # type: ignore[operator]  # checked in setup

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write after ``validate``."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write after ``fit``."""
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        if not any(self._drawn.values()):
            rank_zero_warn("no validation sample was answered: there is no gallery of answers to write")
            return
        sheet = render_sheet(self._drawn)
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "answers.png")
        (folder / "answers.html").write_text(render_html(self._drawn), encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("answers", np.asarray(sheet), trainer.global_step, dataformats="HWC")


def render_html(streams: dict[str, list[Drawn]]) -> str:
    """Write the gallery as one self-contained page.

    Args:
        streams: name of a validation stream to its samples; one section each.
    """
    sections = []
    for name, samples in streams.items():
        figures = []
        for sample in samples:
            kind, mark = ("right", "✓") if sample.right else ("wrong", "✗")
            caption = f"{escape(sample.asked)}<br><b>{mark}</b> {escape(sample.answered)}"
            if sample.expected:
                caption += f"<br><i>{escape(sample.expected)}</i>"
            pictures = "".join(image_html(picture, sample.asked) for picture in sample.pictures)
            figures.append(figure(pictures, caption, kind))
        sections.append(f"<section><h2>{escape(_title(name, samples))}</h2>{grid(figures)}</section>")
    return page("Answers", _INTRODUCTION, "\n".join(sections))


def _title(name: str, samples: list[Drawn]) -> str:
    return f"{name}: {sum(sample.right for sample in samples)} of {len(samples)} right"


_INTRODUCTION = f"""Held-out samples: what was asked, the model's answer, <b style="color: {RIGHT}">right ✓</b> or
<b style="color: {WRONG}">wrong ✗</b>, and in grey what is right. Where boxes or outlines are drawn, the right one is
<b style="color: {TRUE}">green</b>, the model's <b style="color: {GUESS}">orange</b>."""

COLUMNS, GAP, FRAME, LINE, HEADING = 4, 12, 4, 17, 40
"""Sheet layout: samples side by side; then in pixels: space between, frame width, line of text, section heading."""


def render_sheet(streams: dict[str, list[Drawn]]) -> Image.Image:
    """Draw the gallery as one RGB picture: pictures framed green (right) or red, the words under them.

    Words are drawn in Pillow's built-in font, which has Latin letters only; the page shows every script.

    Args:
        streams: name of a validation stream to its samples, one section under the other.
    """
    cells = {name: [_cell(sample) for sample in samples] for name, samples in streams.items()}
    rows = {name: [some[i : i + COLUMNS] for i in range(0, len(some), COLUMNS)] for name, some in cells.items()}
    widest = max(cell.width for some in cells.values() for cell in some)
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
    """One sample: its pictures side by side in a frame, the words under them."""
    font = ImageFont.load_default(14)
    width = 2 * FRAME + SIDE * len(sample.pictures) + FRAME * (len(sample.pictures) - 1)
    height = 2 * FRAME + max(picture.height for picture in sample.pictures)
    words = [(sample.asked, INK), (sample.answered, RIGHT if sample.right else WRONG), (sample.expected, INK)]
    lines = [(line, colour) for text, colour in words for line in wrapped(text, font, width)]
    cell = Image.new("RGB", (width, height + GAP // 2 + LINE * len(lines)), "white")
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, width - 1, height - 1), RIGHT if sample.right else WRONG)
    for column, picture in enumerate(sample.pictures):
        cell.paste(picture, (FRAME + column * (SIDE + FRAME), FRAME))
    for number, (line, colour) in enumerate(lines):
        draw.text((0, height + GAP // 2 + LINE * number), line, colour, font)
    return cell
