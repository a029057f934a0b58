"""Pictures of any size through a model of square ones: sliding windows, several scales, mirrored.

A picture is resized until its shorter side is a scale times S (the longer one at most four times that), as evaluation
on ADE20K does, and read in windows. The scores of windows, scales and mirror images are averaged, at the picture's own
size.

S = side of a window, step = 2/3 of it; Y and X = rows and columns of a picture, K = classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.models.patches import MEAN

STEP = 2 / 3
"""Distance between windows as a share of their side, at most."""

LONGEST = 4
"""Longest side of a resized picture, as a multiple of what its shorter side should have."""


def starts(size: int, side: int) -> list[int]:
    """First pixels of windows of ``side`` that cover ``size`` pixels: evenly spread, at most ``STEP`` sides apart."""
    rest = max(size - side, 0)
    gaps = -(-rest // max(int(side * STEP), 1))
    return [round(rest * index / gaps) for index in range(gaps + 1)] if gaps else [0]


@dataclass
class _View:
    """One reading of a picture: resized, perhaps mirrored, filled up to a window where it is smaller.

    Attributes:
        pixels: (3, Y', X') uint8, Y' and X' at least S.
        content: its rows and columns without what was filled up.
        size: Y and X of the picture itself.
        mirrored: left to right.
        corners: first row and column of each window.
    """

    pixels: Tensor
    content: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool
    corners: list[tuple[int, int]]
    total: Tensor | None = None
    read: int = 0

    def add(self, top: int, left: int, scores_KSS: Tensor) -> Tensor | None:
        """Take in a window's scores; after the last one, give (K, Y, X) those of the picture, the right way round."""
        side = scores_KSS.shape[-1]
        total = self.total
        if total is None:  # not before: of many views few are being read
            total = self.total = scores_KSS.new_zeros(len(scores_KSS), *self.pixels.shape[1:])
        total[:, top : top + side, left : left + side] += scores_KSS
        self.read += 1
        if self.read < len(self.corners):
            return None
        count = total.new_zeros(total.shape[1:])
        for row, column in self.corners:
            count[row : row + side, column : column + side] += 1
        rows, columns = self.content
        scores = (total / count)[None, :, :rows, :columns]
        self.total = None
        if self.content != self.size:
            scores = F.interpolate(scores, size=self.size, mode="bilinear", align_corners=False)
        return scores[0].flip(-1) if self.mirrored else scores[0]


def sliding_scores(
    score: Callable[[Tensor], Tensor],
    pictures: Iterable[Tensor],
    side: int,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 16,
) -> Iterator[Tensor]:
    """Each picture's class scores (K, Y, X) at its own size, in order.

    Args:
        score: (n, 3, S, S) uint8 windows to (n, K, S, S) scores.
        pictures: (3, Y, X) uint8 pixels of any sizes.
        side: S.
        scales: shorter sides to read a picture at, as multiples of S.
        flip: read each also mirrored.
        batch_size: windows that run through the model together, of one picture or of several.
    """
    windows = (
        (view, top, left)
        for pixels in pictures
        for scale in scales
        for view in _views(pixels, side, scale, flip)
        for top, left in view.corners
    )
    mean: Tensor | None = None
    views, seen = len(scales) * (1 + flip), 0
    while part := list(islice(windows, batch_size)):
        scores = score(torch.stack([view.pixels[:, y : y + side, x : x + side] for view, y, x in part]))
        for scores_KSS, (view, top, left) in zip(scores, part, strict=True):
            whole = view.add(top, left, scores_KSS)
            if whole is None:
                continue
            mean = whole / views if mean is None else mean + whole / views
            seen += 1
            if seen == views:
                yield mean
                mean, seen = None, 0


def _views(pixels: Tensor, side: int, scale: float, flip: bool) -> Iterator[_View]:
    size = (pixels.shape[1], pixels.shape[2])
    resized = resize(pixels, scaled_size(size, scale * side))
    content = (resized.shape[1], resized.shape[2])
    for mirrored in (False, True)[: 1 + flip]:
        filled = fill_up(resized.flip(-1) if mirrored else resized, side)
        corners = [(y, x) for y in starts(filled.shape[1], side) for x in starts(filled.shape[2], side)]
        yield _View(filled, content, size, mirrored, corners)


def scaled_size(size: Sequence[int], shorter: float) -> tuple[int, int]:
    """Rows and columns of a picture in its proportions whose shorter side has about so many pixels, at least 1.

    Fewer where the longer side would have more than ``LONGEST`` times as many.
    """
    factor = shorter * min(1 / min(size), LONGEST / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, Y, X) uint8 pixels at another size, bicubic with antialiasing; the same tensor where it has that size."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    resized = F.interpolate(pixels[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def fill_up(pixels: Tensor, side: int) -> Tensor:
    """Pixels below and to the right, in the colour that becomes zero, where a picture is smaller than a window."""
    rows, columns = pixels.shape[1:]
    if rows >= side and columns >= side:
        return pixels
    grey = torch.tensor([round(255 * value) for value in MEAN], dtype=torch.uint8, device=pixels.device)
    filled = grey[:, None, None].repeat(1, max(rows, side), max(columns, side))
    filled[:, :rows, :columns] = pixels
    return filled
