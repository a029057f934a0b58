"""A page and a picture that show what held-out sounds and captions retrieve.

Q = queries, P = pictures, N = waveform samples, d = embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.models.inputs import MEAN, STD
from onepeace_lightning.models.inputs import Image as Images
from onepeace_lightning.reports.pages import INK, RIGHT, WRONG, answer_row, audio_tag, figure, image_tag, page
from onepeace_lightning.reports.sheets import wrapped

THUMBNAIL = 96
"""Longest side of a picture kept, in pixels."""

MAX_PICTURES = 1024
"""Candidates kept per gallery: 28 MB of thumbnails."""

QUERY_MODALITIES = ("audio", "text")


@dataclass
class RetrievalExamples:
    """Queries of one modality and the pictures they are searched in.

    A picture is a right answer when its caption equals the query's.

    Attributes:
        name: the validation stream's name, for the heading.
        modality: what the queries are, ``"audio"`` or ``"text"``.
        captions: one per query.
        embeddings: (d,) per query.
        waveforms: (N,) per query at 16 kHz; empty for text.
        picture_captions: one per picture.
        picture_embeddings: (d,) per picture.
        pictures: (3, height, width) uint8 per picture.
    """

    name: str
    modality: str
    captions: list[str] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    waveforms: list[Tensor] = field(default_factory=list)
    picture_captions: list[str] = field(default_factory=list)
    picture_embeddings: list[Tensor] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Heading: what searches what."""
        queries = {"audio": "Sounds", "text": "Captions"}[self.modality]
        return f"{queries} to pictures · {self.name}, {len(self.pictures)} pictures"

    def add(self, batch: Batch, embeddings: dict[str, Tensor], queries: int) -> None:
        """Take a batch's pictures, and its queries until there are enough; no caption is asked for twice.

        Args:
            batch: with an image and this modality in ``inputs``.
            embeddings: modality to (B, d).
            queries: how many to keep in all.
        """
        room = MAX_PICTURES - len(self.pictures)
        if room == 0:
            return
        self.pictures += thumbnails(batch.inputs["image"].pixels[:room])
        self.picture_captions += batch.captions[:room]
        self.picture_embeddings += embeddings["image"][:room].float().cpu()
        for row, caption in enumerate(batch.captions[:room]):
            if len(self.captions) == queries:
                break
            if caption in self.captions:
                continue
            self.captions.append(caption)
            self.embeddings.append(embeddings[self.modality][row].float().cpu())
            if self.modality == "audio":
                audio = batch.inputs["audio"]
                # A copy, or the whole batch of waveforms would stay in memory.
                self.waveforms.append(audio.waveforms_BN[row, : audio.lengths[row]].float().cpu().clone())

    def retrieve(self, top: int) -> list[list[tuple[int, float]]]:
        """For each query its ``top`` nearest pictures (fewer where there are fewer): index and cosine, best first."""
        queries = F.normalize(torch.stack(self.embeddings), dim=1)
        pictures = F.normalize(torch.stack(self.picture_embeddings), dim=1)
        cosines, indices = (queries @ pictures.T).topk(min(top, len(self.pictures)), dim=1)
        return [
            list(zip(row, values, strict=True)) for row, values in zip(indices.tolist(), cosines.tolist(), strict=True)
        ]


class RetrievalGallery(L.Callback):
    """Writes ``gallery.html`` and ``gallery.png``: the pictures nearest to some held-out sounds and captions.

    Reads what the task's ``validation_step`` returns, ``{"embeddings": {modality: (B, d)}}``, for validation streams
    that hold images with sounds or with captions. The page stands alone: pictures and playable sounds are inside. Made
    once, when ``fit`` (from its last validation) or ``validate`` ends; the picture also goes to TensorBoard. Under
    several processes queries and candidates are rank zero's share.

    Args:
        folder: where both files go, the trainer's ``default_root_dir`` if None; older files are replaced.
        queries: how many of each stream to show, with distinct captions.
        top: pictures retrieved for each.
    """

    def __init__(self, folder: str | None = None, queries: int = 8, top: int = 5) -> None:
        if queries < 1 or top < 1:
            raise ValueError(f"queries is {queries} and top is {top}: a gallery shows at least 1 of each")
        self.folder = folder
        self.queries = queries
        self.top = top
        self._examples: dict[int, RetrievalExamples] = {}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the previous validation."""
        self._examples = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep thumbnails, embeddings and queries of a batch with pictures."""
        if trainer.sanity_checking or not trainer.is_global_zero or "image" not in batch.inputs or batch.filler:
            return
        modality = next((name for name in QUERY_MODALITIES if name in batch.inputs), None)
        if modality is None:
            return
        if dataloader_idx not in self._examples:
            loaders = trainer.val_dataloaders
            name = list(loaders)[dataloader_idx] if isinstance(loaders, dict) else f"validation {dataloader_idx}"
            self._examples[dataloader_idx] = RetrievalExamples(name, modality)
        self._examples[dataloader_idx].add(batch, outputs["embeddings"], self.queries)

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
        examples = list(self._examples.values())
        if not examples:  # no validation stream held images with sounds or captions
            return
        sheet = render_sheet(examples, self.top)
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "gallery.png")
        (folder / "gallery.html").write_text(render_html(examples, self.top), encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("gallery", np.asarray(sheet), trainer.global_step, dataformats="HWC")


def thumbnails(pixels: Tensor) -> list[Tensor]:
    """Shrink pictures, and undo CLIP's normalisation.

    Args:
        pixels: (B, 3, S, S), uint8 or normalised.

    Returns:
        B times (3, s, s) uint8 with s at most ``THUMBNAIL``; smaller pictures keep their size.
    """
    pictures = Images(pixels).normalised().float().cpu()
    if pictures.shape[-1] > THUMBNAIL:
        pictures = F.interpolate(pictures, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return list(((pictures * std + mean) * 255).round().clamp(0, 255).to(torch.uint8))


def render_html(examples: Sequence[RetrievalExamples], top: int) -> str:
    """Write the gallery as one self-contained page.

    Args:
        examples: one section each.
        top: pictures per query.
    """
    sections = []
    for section in examples:
        rows = []
        for query, found in enumerate(section.retrieve(top)):
            caption = section.captions[query]
            sound = audio_tag(section.waveforms[query]) if section.waveforms else ""
            figures = []
            for index, cosine in found:
                answer = section.picture_captions[index]
                kind, mark = ("right", "✓") if answer == caption else ("wrong", "✗")
                picture = image_tag(_to_pil(section.pictures[index]), answer)
                figures.append(figure(picture, f"<b>{mark}</b> {escape(answer)} <i>{cosine:.2f}</i>", kind))
            rows.append(answer_row(f"<p>{escape(caption)}</p>{sound}", figures))
        sections.append(f"<section><h2>{escape(section.title)}</h2>{''.join(rows)}</section>")
    return page("Retrieval gallery", _INTRODUCTION, "\n".join(sections))


_INTRODUCTION = f"""Each row is a held-out query and the pictures nearest to it, nearest first, with their cosine. A
picture is <b style="color: {RIGHT}">right ✓</b> when its caption equals the query's, else
<b style="color: {WRONG}">wrong ✗</b>. The captions of sounds and pictures are shown to the reader only, never to the
search."""


def _to_pil(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


CELL, GAP, FRAME, LABEL, HEADING = 104, 10, 4, 250, 40
"""Sheet layout in pixels: side of a framed picture, space between, frame width, caption column, section heading."""


def render_sheet(examples: Sequence[RetrievalExamples], top: int) -> Image.Image:
    """Draw the gallery as one RGB picture: captions at the left, a note before those of sounds, pictures at the right.

    Captions are drawn in Pillow's built-in font, which has Latin letters only; the page shows every script.

    Args:
        examples: one section each, one under the other.
        top: pictures per query; right ones are framed green, wrong ones red.
    """
    width = GAP + LABEL + top * (CELL + GAP)
    height = sum(HEADING + len(section.captions) * (CELL + GAP) for section in examples) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = 0
    for section in examples:
        draw.text((GAP, y + HEADING / 2), section.title, INK, ImageFont.load_default(16), anchor="lm")
        y += HEADING
        for query, found in enumerate(section.retrieve(top)):
            caption = section.captions[query]
            left = GAP
            if section.modality == "audio":
                _draw_note(draw, left, y + CELL / 2)
                left += 22
            _draw_wrapped(draw, caption, left, y + CELL / 2, GAP + LABEL - GAP - left)
            for column, (index, _) in enumerate(found):
                x = GAP + LABEL + column * (CELL + GAP)
                right = section.picture_captions[index] == caption
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), RIGHT if right else WRONG)
                side = CELL - 2 * FRAME
                sheet.paste(_to_pil(section.pictures[index]).resize((side, side)), (x + FRAME, y + FRAME))
            y += CELL + GAP
    return sheet


def _draw_note(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    """An eighth note: the built-in font has no ♪."""
    draw.ellipse((x, y + 3, x + 8, y + 9), INK)
    draw.line((x + 7, y + 6, x + 7, y - 9), INK, 2)
    draw.line((x + 7, y - 9, x + 13, y - 3), INK, 2)


def _draw_wrapped(draw: ImageDraw.ImageDraw, text: str, x: float, y: float, width: float) -> None:
    """Lines of text, centred on y."""
    font = ImageFont.load_default(14)
    draw.multiline_text((x, y), "\n".join(wrapped(text, font, width)), INK, font, anchor="lm", spacing=3)
