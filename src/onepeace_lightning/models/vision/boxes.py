"""Boxes and the four numbers that move one onto another (arXiv 1311.2524, appendix C).

Boxes are (…, 4) x0, y0, x1, y1 in pixels. Deltas are (…, 4): the shift of the centre over the box's sides, and the
logarithm of the ratio of sides, each times a weight.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GROWTH = math.log(1000 / 16)
"""The most by which a side may grow, as a logarithm."""

Weights = tuple[float, float, float, float]
"""What deltas of x, y, width and height are multiplied by."""


def encode(boxes: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """Deltas that move ``boxes`` onto ``targets``; boxes must have an extent."""
    centre, size = _centre_size(boxes)
    target_centre, target_size = _centre_size(targets)
    deltas = torch.cat([(target_centre - centre) / size, torch.log(target_size / size)], -1)
    return deltas * deltas.new_tensor(weights)


def decode(boxes: Tensor, deltas: Tensor, weights: Weights) -> Tensor:
    """``boxes`` moved by ``deltas``, in float32; an image's edge does not stop them."""
    deltas = deltas.float() / deltas.new_tensor(weights, dtype=torch.float32)
    centre, size = _centre_size(boxes.float())
    centre = deltas[..., :2] * size + centre
    size = deltas[..., 2:].clamp(max=GROWTH).exp() * size
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def has_extent(boxes: Tensor) -> Tensor:
    """(…,) whether a box has pixels at all."""
    return ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)


def scaled(boxes: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Boxes of an image of ``source`` rows and columns in the same image resized to ``target``."""
    factors = [target[1] / source[1], target[0] / source[0]]
    return boxes * boxes.new_tensor(factors * 2)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size
