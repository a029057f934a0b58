"""A page and an image that show what held-out queries of one modality retrieve in another.

d = embedding width.
"""

from collections.abc import Collection, Sequence
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
from onepeace_lightning.modalities.registry import modalities, modality
from onepeace_lightning.modalities.rendering import image_html
from onepeace_lightning.reports.pages import INK, RIGHT, WRONG, answer_row, figure, page
from onepeace_lightning.reports.sheets import wrapped

THUMBNAIL = 96
"""Longest side of an image kept of a candidate, in pixels."""

MAX_CANDIDATES = 1024
"""Candidates kept per gallery: 28 MB of images."""


@dataclass
class RetrievalExamples:
    """Queries of one modality and the candidates of another that they are searched in.

    A candidate is a right answer when its caption equals the query's.

    Attributes:
        name: the validation stream's name, for the heading.
        queried: the queries' modality.
        searched: the candidates' modality.
        captions: one per query.
        embeddings: (d,) per query.
        items: decoded, per query; the caption itself for text.
        candidate_captions: one per candidate.
        candidate_embeddings: (d,) per candidate.
        pictures: how each candidate looks.
    """

    name: str
    queried: str
    searched: str
    captions: list[str] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    candidate_captions: list[str] = field(default_factory=list)
    candidate_embeddings: list[Tensor] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Heading: what searches what."""
        queries, candidates = (modality(name).plural or name for name in (self.queried, self.searched))
        return f"{queries.capitalize()} to {candidates} · {self.name}, {len(self.pictures)} {candidates}"

    def add(self, batch: Batch, embeddings: dict[str, Tensor], queries: int) -> None:
        """Take a batch's candidates, and its queries until there are enough; no caption is asked for twice.

        Args:
            batch: with both modalities in ``inputs``.
            embeddings: modality to (B, d).
            queries: how many to keep in all.
        """
        room = min(MAX_CANDIDATES - len(self.pictures), len(batch))
        searched, queried = modality(self.searched)(), modality(self.queried)()
        for row in range(room):
            item = searched.sample(batch.inputs[self.searched], row)
            self.pictures.append(searched.picture(item, THUMBNAIL))
        captions = [caption or key for caption, key in zip(batch.captions, batch.keys, strict=True)]
        self.candidate_captions += captions[:room]
        self.candidate_embeddings += embeddings[self.searched][:room].float().cpu()
        for row, caption in enumerate(captions[:room]):
            if len(self.captions) == queries:
                break
            if caption in self.captions:
                continue
            self.captions.append(caption)
            self.embeddings.append(embeddings[self.queried][row].float().cpu())
            self.items.append(caption if queried.reads_text else queried.sample(batch.inputs[self.queried], row))

    def retrieve(self, top: int) -> list[list[tuple[int, float]]]:
        """For each query its ``top`` nearest candidates (fewer where there are fewer): index and cosine, best first."""
        queries = F.normalize(torch.stack(self.embeddings), dim=1)
        candidates = F.normalize(torch.stack(self.candidate_embeddings), dim=1)
        cosines, indices = (queries @ candidates.T).topk(min(top, len(self.pictures)), dim=1)
        return [
            list(zip(row, values, strict=True)) for row, values in zip(indices.tolist(), cosines.tolist(), strict=True)
        ]


def searched_by(names: Collection[str]) -> tuple[str, str] | None:
    """What is searched and what with: the first modality of a batch that is no text, and the last one."""
    ordered = [name for name in modalities() if name in names]
    ordered.sort(key=lambda name: modality(name).reads_text)  # texts last
    return (ordered[0], ordered[-1]) if len(ordered) > 1 else None


class RetrievalGallery(L.Callback):
    """Writes ``gallery.html`` and ``gallery.png``: what is nearest to some held-out queries.

    Reads what the task's ``validation_step`` returns, ``{"embeddings": {modality: (B, d)}}``, for validation streams
    of several modalities: captions search images or recordings, recordings search images. The page stands alone:
    images and players are inside. Made once, when ``fit`` (from its last validation) or ``validate`` ends; the image
    also goes to TensorBoard. Under several processes queries and candidates are rank zero's part.

    Args:
        folder: where both files go, the trainer's ``default_root_dir`` if None; older files are replaced.
        queries: how many of each stream to show, with distinct captions.
        top: candidates retrieved for each.
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
        """Keep pictures, embeddings and queries of a batch of several modalities."""
        if (
            trainer.sanity_checking
            or batch.filler
            or not trainer.is_global_zero
            or (pair := searched_by(batch.inputs)) is None
        ):
            return
        if dataloader_idx not in self._examples:
            loaders = trainer.val_dataloaders
            name = list(loaders)[dataloader_idx] if isinstance(loaders, dict) else f"validation {dataloader_idx}"
            self._examples[dataloader_idx] = RetrievalExamples(name, pair[1], pair[0])
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
        if not examples:  # no validation stream held several modalities
            return
        sheet = render_sheet(examples, self.top)
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "gallery.png")
        (folder / "gallery.html").write_text(render_html(examples, self.top), encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("gallery", np.asarray(sheet), trainer.global_step, dataformats="HWC")


def render_html(examples: Sequence[RetrievalExamples], top: int) -> str:
    """Write the gallery as one self-contained page.

    Args:
        examples: one section each.
        top: candidates per query.
    """
    sections = []
    for section in examples:
        rows = []
        for query, found in enumerate(section.retrieve(top)):
            caption = section.captions[query]
            queried = modality(section.queried)()
            shown = "" if queried.reads_text else queried.html(section.items[query], caption)
            figures = []
            for index, cosine in found:
                answer = section.candidate_captions[index]
                kind, mark = ("right", "✓") if answer == caption else ("wrong", "✗")
                picture = image_html(section.pictures[index], answer)
                figures.append(figure(picture, f"<b>{mark}</b> {escape(answer)} <i>{cosine:.2f}</i>", kind))
            rows.append(answer_row(f"<p>{escape(caption)}</p>{shown}", figures))
        sections.append(f"<section><h2>{escape(section.title)}</h2>{''.join(rows)}</section>")
    return page("Retrieval gallery", _INTRODUCTION, "\n".join(sections))


_INTRODUCTION = f"""Each row is a held-out query and what is nearest to it, nearest first, with its cosine. An answer
is <b style="color: {RIGHT}">right ✓</b> when its caption equals the query's, else
<b style="color: {WRONG}">wrong ✗</b>. The captions of recordings and images are shown to the reader only, never to the
search."""


CELL, GAP, FRAME, LABEL, HEADING, SMALL = 104, 10, 4, 250, 40, 32
"""Sheet layout in pixels: side of a framed picture, space between, frame width, caption column, section heading, side
of a query's picture."""


def render_sheet(examples: Sequence[RetrievalExamples], top: int) -> Image.Image:
    """Draw the gallery as one RGB image: captions at the left, with the query's picture, candidates at the right.

    Captions are drawn in Pillow's built-in font, which has Latin letters only; the page shows every script.

    Args:
        examples: one section each, one under the other.
        top: candidates per query; right ones are framed green, wrong ones red.
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
            queried = modality(section.queried)()
            if not queried.reads_text:
                small = queried.picture(section.items[query], SMALL)
                sheet.paste(small, (left, y + (CELL - small.height) // 2))
                left += SMALL + GAP
            _draw_wrapped(draw, caption, left, y + CELL / 2, GAP + LABEL - GAP - left)
            for column, (index, _) in enumerate(found):
                x = GAP + LABEL + column * (CELL + GAP)
                right = section.candidate_captions[index] == caption
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), RIGHT if right else WRONG)
                side = CELL - 2 * FRAME
                sheet.paste(section.pictures[index].resize((side, side)), (x + FRAME, y + FRAME))
            y += CELL + GAP
    return sheet


def _draw_wrapped(draw: ImageDraw.ImageDraw, text: str, x: float, y: float, width: float) -> None:
    """Lines of text, centred on y."""
    font = ImageFont.load_default(14)
    draw.multiline_text((x, y), "\n".join(wrapped(text, font, width)), INK, font, anchor="lm", spacing=3)
