"""A page and an image that show what held-out queries of one modality retrieve in another.

d = embedding width.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.registry import modalities, modality
from onepeace_lightning.reports.base import ValidationReport, interleaved
from onepeace_lightning.reports.pages import INK, RIGHT, WRONG, answer_row, figure
from onepeace_lightning.reports.sheets import wrapped

THUMBNAIL = 96
"""Longest side of an image kept of a candidate, in pixels."""

MAX_CANDIDATES, MAX_BYTES = 1024, 64_000_000
"""Candidates that a process keeps of a stream, and characters of their HTML: players of long recordings are large."""


@dataclass(frozen=True)
class Query:
    """What is searched with.

    Attributes:
        caption: of it, or itself where it is a text.
        embedding: (d,).
        thumbnail: how it looks in the sheet; None for a text.
        html: how it looks in the page; "" for a text.
        name: what a person finds it by.
    """

    caption: str
    embedding: Tensor
    thumbnail: Image.Image | None = None
    html: str = ""
    name: str = ""


@dataclass(frozen=True)
class Candidate:
    """What is searched: its caption, its embedding (d,), how it looks in sheet and page, what a person finds it by."""

    caption: str
    embedding: Tensor
    thumbnail: Image.Image
    html: str
    name: str


@dataclass
class RetrievalExamples:
    """Queries of one modality and the candidates of another that they are searched in.

    A candidate is a right answer when its caption equals the query's.

    Attributes:
        name: the validation stream's name, for the heading.
        queried: the queries' modality.
        searched: the candidates' modality.
        queries: with different captions.
        candidates: all that were kept.
    """

    name: str
    queried: str
    searched: str
    queries: list[Query] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Heading: what searches what."""
        queries, candidates = (modality(name).plural or name for name in (self.queried, self.searched))
        return f"{queries.capitalize()} to {candidates} · {self.name}, {len(self.candidates)} {candidates}"

    def add(
        self, batch: Batch, embeddings: dict[str, Tensor], queries: int, preprocessing: Preprocessing | None = None
    ) -> None:
        """Take a batch's candidates, and its queries until there are enough; no caption is asked for twice.

        Args:
            batch: with both modalities in ``inputs``.
            embeddings: modality to (B, d); of a sample with several captions the text's rows follow one another.
            queries: how many to keep in all.
            preprocessing: settings with which the batch was made; None: the defaults.
        """
        settings = Preprocessing(preprocessing)
        searched, queried = settings.modality(self.searched), settings.modality(self.queried)
        several = batch.targets.get("captions")
        first = [0] * len(batch)  # row of the sample's first query
        for row in range(1, len(batch)):
            first[row] = first[row - 1] + (len(several[row - 1]) if several and queried.reads_text else 1)
        kept = sum(len(candidate.html) for candidate in self.candidates)
        for row, key in enumerate(batch.keys):
            if len(self.candidates) >= MAX_CANDIDATES or kept >= MAX_BYTES:
                return
            caption = (several[row][0] if several else batch.captions[row]) or key
            item = searched.sample(batch.inputs[self.searched], row)
            candidate = Candidate(
                caption,
                embeddings[self.searched][row].float().cpu(),
                searched.thumbnail(item, THUMBNAIL),
                searched.html(item, caption),
                batch.named(row),
            )
            self.candidates.append(candidate)
            kept += len(candidate.html)
            if len(self.queries) >= queries or caption in {query.caption for query in self.queries}:
                continue
            embedding = embeddings[self.queried][first[row]].float().cpu()
            if queried.reads_text:
                self.queries.append(Query(caption, embedding, name=batch.named(row)))
            else:
                item = queried.sample(batch.inputs[self.queried], row)
                thumbnail, html = queried.thumbnail(item, SMALL), queried.html(item, caption)
                self.queries.append(Query(caption, embedding, thumbnail, html, batch.named(row)))

    def retrieve(self, top: int) -> list[list[tuple[Candidate, float]]]:
        """For each query its ``top`` nearest candidates (fewer where there are fewer) with cosines, best first."""
        queries = F.normalize(torch.stack([query.embedding for query in self.queries]), dim=1)
        candidates = F.normalize(torch.stack([candidate.embedding for candidate in self.candidates]), dim=1)
        cosines, indices = (queries @ candidates.T).topk(min(top, len(self.candidates)), dim=1)
        return [
            [(self.candidates[index], cosine) for index, cosine in zip(row, values, strict=True)]
            for row, values in zip(indices.tolist(), cosines.tolist(), strict=True)
        ]


def searched_by(names: Collection[str]) -> tuple[str, str] | None:
    """What is searched and what with: the first modality of a batch that is no text, and the last one."""
    ordered = [name for name in modalities() if name in names]
    ordered.sort(key=lambda name: modality(name).reads_text)  # texts last
    return (ordered[0], ordered[-1]) if len(ordered) > 1 else None


class RetrievalReport(ValidationReport):
    """What is nearest to some held-out queries, with right and wrong answers marked.

    Reads what the task's ``validation_step`` returns, ``{"embeddings": {modality: (B, d)}}``, for validation streams
    of several modalities: captions search images or recordings, recordings search images.

    Args:
        folder: see ``ValidationReport``.
        queries: how many of each stream to show, with distinct captions.
        top: candidates retrieved for each.

    Raises:
        ValueError: for less than one of either.
    """

    title = "Retrieval"
    introduction = """Each row is a held-out query and what is nearest to it, nearest first, with its cosine. An answer
is right ✓ when its caption equals the query's, else wrong ✗. The captions of recordings and images are shown to the
reader only, never to the search."""

    def __init__(self, folder: str | None = None, queries: int = 8, top: int = 5) -> None:
        super().__init__(folder)
        if queries < 1 or top < 1:
            raise ValueError(f"queries is {queries} and top is {top}: a report shows at least 1 of each")
        self.queries = queries
        self.top = top

    def collect(
        self, kept: RetrievalExamples | None, name: str, batch: Any, outputs: Any, task: L.LightningModule
    ) -> RetrievalExamples | None:
        """Keep images, embeddings and queries of a batch of several modalities."""
        if (pair := searched_by(batch.inputs)) is None:
            return None
        kept = kept or RetrievalExamples(name, pair[1], pair[0])
        kept.add(batch, outputs["embeddings"], self.queries, getattr(task, "preprocessing", None))
        return kept

    def join(self, parts: list[RetrievalExamples]) -> RetrievalExamples:
        """All candidates, and the first queries of all processes."""
        first = parts[0]
        candidates = interleaved([part.candidates for part in parts])
        queries: dict[str, Query] = {}
        for query in interleaved([part.queries for part in parts]):
            queries.setdefault(query.caption, query)
        first_ones = list(queries.values())[: self.queries]
        return RetrievalExamples(first.name, first.queried, first.searched, first_ones, candidates)

    def sections(self, streams: dict[str, RetrievalExamples]) -> str:
        """One for each stream, a row for each query."""
        return "\n".join(_section(examples, self.top) for examples in streams.values())

    def sheet(self, streams: dict[str, RetrievalExamples]) -> Image.Image:
        """Streams one under the other."""
        return render_sheet(list(streams.values()), self.top)


def _section(examples: RetrievalExamples, top: int) -> str:
    rows = []
    for query, found in zip(examples.queries, examples.retrieve(top), strict=True):
        figures = []
        for candidate, cosine in found:
            kind, mark = ("right", "✓") if candidate.caption == query.caption else ("wrong", "✗")
            words = f'<b>{mark}</b> {escape(candidate.caption)} <span class="cosine">{cosine:.2f}</span>'
            words += f"<small>{escape(candidate.name)}</small>"
            figures.append(figure(candidate.html, words, kind))
        asked = f"<p>{escape(query.caption)}</p>{query.html}<small>{escape(query.name)}</small>"
        rows.append(answer_row(asked, figures))
    return f"<section><h2>{escape(examples.title)}</h2>{''.join(rows)}</section>"


CELL, GAP, FRAME, LABEL, HEADING, SMALL = 104, 10, 4, 250, 40, 32
"""Sheet layout in pixels: side of a framed image, space between, frame width, caption column, section heading, side
of a query's image."""


def render_sheet(examples: Sequence[RetrievalExamples], top: int) -> Image.Image:
    """Draw the gallery as one RGB image: captions at the left, with the query's image, candidates at the right.

    Captions are drawn in Pillow's built-in font, which has Latin letters only; the page shows every script.

    Args:
        examples: one section each, one under the other.
        top: candidates per query; right ones are framed green, wrong ones red.
    """
    width = GAP + LABEL + top * (CELL + GAP)
    height = sum(HEADING + len(section.queries) * (CELL + GAP) for section in examples) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = 0
    for section in examples:
        draw.text((GAP, y + HEADING / 2), section.title, INK, ImageFont.load_default(16), anchor="lm")
        y += HEADING
        for query, found in zip(section.queries, section.retrieve(top), strict=True):
            left = GAP
            if query.thumbnail is not None:
                sheet.paste(query.thumbnail, (left, y + (CELL - query.thumbnail.height) // 2))
                left += SMALL + GAP
            _draw_wrapped(draw, query.caption, left, y + CELL / 2, GAP + LABEL - GAP - left)
            for column, (candidate, _) in enumerate(found):
                x = GAP + LABEL + column * (CELL + GAP)
                right = candidate.caption == query.caption
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), RIGHT if right else WRONG)
                side = CELL - 2 * FRAME
                sheet.paste(candidate.thumbnail.resize((side, side)), (x + FRAME, y + FRAME))
            y += CELL + GAP
    return sheet


def _draw_wrapped(draw: ImageDraw.ImageDraw, text: str, x: float, y: float, width: float) -> None:
    """Lines of text, centred on y."""
    font = ImageFont.load_default(14)
    draw.multiline_text((x, y), "\n".join(wrapped(text, font, width)), INK, font, anchor="lm", spacing=3)
