"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159), sampled with ``grid_sample``.

B = images, N = queries, M = positions of all value maps, D = width, H = heads, E = features of a head, P = points.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int]
"""Rows and columns of a map."""


def centres(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """(N, 2) x and y in [0, 1] of the centres of all positions of some maps, one map after another."""
    parts = []
    for rows, columns in sizes:
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        parts.append(torch.stack([x.repeat(rows), y.repeat_interleave(columns)], -1))
    return torch.cat(parts)


class Offsets(nn.Linear):
    """Where a query looks around its centre; at first the heads look in directions of their own, points further out."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        self.shape = (heads, levels, points, 2)
        super().__init__(width, math.prod(self.shape))

    def reset_parameters(self) -> None:
        """Zero weights; biases on a star, point p at p + 1 steps."""
        heads, _, points, _ = self.shape
        angle = torch.arange(heads, device=self.bias.device) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1, device=self.bias.device)
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            self.bias.copy_((direction[:, None, None] * steps[:, None]).expand(self.shape).flatten())

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, H, levels, P, 2) x and y in positions of a map."""
        return super().forward(x).unflatten(-1, self.shape)


class PointWeights(nn.Linear):
    """How much each sampled point counts: a softmax over the points of all maps; all alike at first."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        self.shape = (heads, levels, points)
        super().__init__(width, math.prod(self.shape))

    def reset_parameters(self) -> None:
        """Zero weights and bias."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, H, levels, P), adding up to 1 over levels and points."""
        heads, levels, points = self.shape
        weights = super().forward(x).unflatten(-1, (heads, levels * points)).float().softmax(-1)
        return weights.to(x.dtype).unflatten(-1, (levels, points))


class XavierLinear(nn.Linear):
    """A linear layer with Xavier's uniform weights, bias zero."""

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class DeformableAttention(nn.Module):
    """Every query reads a few points of each value map, where it finds them from its own features.

    Args:
        width: D.
        heads: H.
        levels: value maps.
        points: P for each map and head.
        value_width: H·E; None: D.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int = 4, value_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.offsets = Offsets(width, heads, levels, points)
        self.weights = PointWeights(width, heads, levels, points)
        self.value = XavierLinear(width, value_width or width)
        self.out = XavierLinear(value_width or width, width)

    def forward(self, queries_BND: Tensor, centres_N2: Tensor, values_BMD: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(B, N, D) what each query read.

        Args:
            queries_BND: queries.
            centres_N2: x and y in [0, 1] of each query, the same in all maps.
            values_BMD: all positions of the maps, one map after another.
            sizes: of the maps.
        """
        offsets, weights = self.offsets(queries_BND), self.weights(queries_BND)
        maps = self.value(values_BMD).unflatten(-1, (self.heads, -1)).split([y * x for y, x in sizes], 1)
        read_BHEN: Tensor | None = None
        for level, (values_BMHE, (rows, columns)) in enumerate(zip(maps, sizes, strict=True)):
            offset = offsets[:, :, :, level] / offsets.new_tensor([columns, rows])
            # grid_sample counts from -1 to 1, with 0 and 1 as the outer edges of the border's pixels.
            at = (2 * (centres_N2[:, None, None] + offset) - 1).transpose(1, 2).flatten(0, 1)
            images = values_BMHE.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (rows, columns))
            sampled = F.grid_sample(images, at.to(images.dtype), padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            part = (sampled * weight).sum(-1)
            read_BHEN = part if read_BHEN is None else read_BHEN + part
        assert read_BHEN is not None
        return self.out(read_BHEN.unflatten(0, (queries_BND.shape[0], -1)).flatten(1, 2).mT)
