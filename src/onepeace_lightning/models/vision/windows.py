"""Images of any size through a model of square ones, as evaluation on ADE20K does: windows, several scales, mirrored.

An image is resized until its shorter side is a scale times S (the longer one at most four times that), both sides up to
a multiple of 32, and read in windows. The scores of overlapping windows are averaged, resized to the image's own size
and made probabilities; those of several scales and of the mirror image are averaged.

S = side of a window; C = channels, Y and X = rows and columns of an image or of another raster, K = classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.models.patches import Pixels

LONGEST = 4
"""Longest side of a resized image, as a multiple of what its shorter side should have."""

MULTIPLE = 32
"""Of which both sides of a resized image are multiples."""

SCALES = tuple(side / 896 for side in range(384, 1153, 128))
"""Shorter sides of the published multi-scale evaluation, as multiples of S."""


def published_step(side: int) -> int:
    """Distance between windows: 512 pixels for windows of 896, in proportion for others."""
    return max(1, round(side * 512 / 896))


def starts(size: int, side: int, step: int) -> list[int]:
    """First pixels of windows that cover ``size`` pixels, ``step`` apart; the last one ends with the image."""
    count = -(-max(size - side, 0) // step) + 1
    return [min(index * step, max(size - side, 0)) for index in range(count)]


@dataclass
class View:
    """One reading of an image: resized, normalised, perhaps mirrored, filled up to a window where it is smaller.

    Attributes:
        pixels: (C, Y', X') normalised, Y' and X' at least S.
        content: its rows and columns without what was filled up.
        size: Y and X of the image itself.
        mirrored: left to right.
    """

    pixels: Tensor
    content: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool = False

    def probabilities(self, mean_KYX: Tensor) -> Tensor:
        """(K, Y, X) at the image's own size and the right way round, from scores of all of ``pixels``."""
        rows, columns = self.content
        scores = F.interpolate(mean_KYX[None, :, :rows, :columns], size=self.size, mode="bilinear", align_corners=False)
        probabilities = scores[0].softmax(0)
        return probabilities.flip(-1) if self.mirrored else probabilities


@dataclass
class _Reading:
    """A view whose windows are being read; of many views few are at a time."""

    view: View
    corners: list[tuple[int, int]]
    total: Tensor | None = None
    read: int = 0

    def add(self, top: int, left: int, scores_KSS: Tensor) -> Tensor | None:
        """Take in a window's scores; after the last one, give the view's probabilities (K, Y, X)."""
        side, shape = scores_KSS.shape[-1], self.view.pixels.shape[1:]
        if self.total is None:
            self.total = scores_KSS.new_zeros(len(scores_KSS), *shape)
        self.total[:, top : top + side, left : left + side] += scores_KSS
        self.read += 1
        if self.read < len(self.corners):
            return None
        count = self.total.new_zeros(shape)
        for row, column in self.corners:
            count[row : row + side, column : column + side] += 1
        mean, self.total = self.total / count, None
        return self.view.probabilities(mean)


def read_views(
    score: Callable[[Tensor], Tensor], views: Iterable[View], side: int, step: int, batch_size: int = 16
) -> Iterator[Tensor]:
    """Each view's probabilities (K, Y, X), in order.

    Args:
        score: (n, C, S, S) normalised windows to (n, K, S, S) scores.
        views: of one image or of several.
        side: S.
        step: distance between windows in pixels.
        batch_size: windows that run through the model together, of one view or of several.
    """
    readings = (
        _Reading(view, [(y, x) for y in starts(rows, side, step) for x in starts(columns, side, step)])
        for view in views
        for rows, columns in [view.pixels.shape[1:]]
    )
    windows = ((reading, top, left) for reading in readings for top, left in reading.corners)
    while part := list(islice(windows, batch_size)):
        scores = score(torch.stack([r.view.pixels[:, y : y + side, x : x + side] for r, y, x in part]))
        for scores_KSS, (reading, top, left) in zip(scores, part, strict=True):
            whole = reading.add(top, left, scores_KSS)
            if whole is not None:
                yield whole


def sliding_probabilities(
    score: Callable[[Tensor], Tensor],
    images: Iterable[Tensor],
    side: int,
    *,
    step: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 16,
) -> Iterator[Tensor]:
    """Each image's class probabilities (K, Y, X) at its own size, in order.

    Args:
        score: (n, C, S, S) normalised windows to (n, K, S, S) scores.
        images: (C, Y, X) pixels of any sizes, uint8 or normalised already (see ``Pixels``).
        side: S.
        step: distance between windows in pixels; None: ``published_step``.
        scales: shorter sides to read an image at, as multiples of S.
        flip: read each also mirrored.
        batch_size: windows that run through the model together.
    """
    views = (view for pixels in images for scale in scales for view in image_views(pixels, side, scale, flip))
    count = len(scales) * (1 + flip)
    read = read_views(score, views, side, published_step(side) if step is None else step, batch_size)
    while part := list(islice(read, count)):
        yield part[0] if count == 1 else torch.stack(part).mean(0)


def image_views(pixels: Tensor, side: int, scale: float, flip: bool) -> Iterator[View]:
    """The readings of (C, Y, X) pixels at one scale: as they are, then mirrored where ``flip`` says so."""
    size = (pixels.shape[1], pixels.shape[2])
    rows, columns = scaled_size(size, scale * side)
    resized = resize(pixels, (rows, columns))
    resized = resize(resized, (-(-rows // MULTIPLE) * MULTIPLE, -(-columns // MULTIPLE) * MULTIPLE))
    content = (resized.shape[1], resized.shape[2])
    for mirrored in (False, True)[: 1 + flip]:
        normalised = Pixels((resized.flip(-1) if mirrored else resized)[None]).normalised()[0]
        # Normalised pixels: what is filled up has the mean colour.
        filled = F.pad(normalised, (0, max(side - content[1], 0), 0, max(side - content[0], 0)))
        yield View(filled, content, size, mirrored)


def scaled_size(size: Sequence[int], shorter: float) -> tuple[int, int]:
    """Rows and columns of an image in its proportions whose shorter side has about so many pixels, at least 1.

    Fewer where the longer side would have more than ``LONGEST`` times as many.
    """
    factor = shorter * min(1 / min(size), LONGEST / max(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, Y, X) pixels at another size, bilinear without antialiasing; the same tensor where it has that size."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    resized = F.interpolate(pixels[None].float(), size=size, mode="bilinear", align_corners=False)
    return resized[0] if pixels.is_floating_point() else resized[0].round().clamp(0, 255).to(torch.uint8)
