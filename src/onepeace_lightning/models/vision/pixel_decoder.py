"""Mask2Former's pixel decoder (arXiv 2112.01527): deformable attention over the coarser maps, then finer ones joined.

B = images, N = positions of the maps of strides 32, 16 and 8, E = width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.vision.deformable import DeformableAttention, Size, centres
from onepeace_lightning.models.vision.dense_adapter import Levels

LEVELS = 3
"""Maps that queries look at in turn: strides 32, 16, 8. Masks are drawn at stride 4."""


def sine_positions(size: Size, width: int, device: torch.device) -> Tensor:
    """(N, width) sines and cosines, in turn, of each position's row and then of its column, as in DETR.

    Rows and columns count from 1 to n, divided by n and in units of 2π (arXiv 2005.12872).
    """
    feature = torch.arange(width // 2, device=device)
    frequency = 10_000.0 ** (-2 * (feature // 2) / (width // 2))
    axes = []
    for length in size:
        angle = torch.arange(1, length + 1, device=device)[:, None] / (length + 1e-6) * 2 * math.pi * frequency
        axes.append(torch.where(feature % 2 == 0, angle.sin(), angle.cos()))
    row, column = axes
    return torch.cat([row[:, None].expand(*size, -1), column.expand(*size, -1)], -1).flatten(0, 1)


class NormedConv(nn.Sequential):
    """Convolution and group norm, perhaps ReLU."""

    def __init__(
        self, channels_in: int, width: int, kernel: int, groups: int, *, bias: bool, relu: bool = False
    ) -> None:
        layers = [
            nn.Conv2d(channels_in, width, kernel, padding=kernel // 2, bias=bias),
            nn.GroupNorm(groups, width),
            *([nn.ReLU()] if relu else []),
        ]
        super().__init__(*layers)


class DeformableLayer(nn.Module):
    """Deformable self-attention of all positions, then a feed-forward network; norms come after each."""

    def __init__(self, width: int, heads: int, inner: int, points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads, LEVELS, points)
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))

    def forward(self, x_BNE: Tensor, position_NE: Tensor, at_N2: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(B, N, E) -> (B, N, E); positions are added to the queries."""
        x_BNE = self.norm_attention(x_BNE + self.attention(x_BNE + position_NE, at_N2, x_BNE, sizes))
        return self.norm_ffn(x_BNE + self.ffn(x_BNE))


class DeformablePixelDecoder(nn.Module):
    """A pyramid of strides 4, 8, 16 and 32 to three refined maps and the pixels' features.

    Args:
        features: channels of each map of the pyramid.
        width: E.
        layers: of deformable attention.
        heads: of deformable attention.
        inner: width of the feed-forward networks.
        groups: of the group norms.
        points: that a position reads from each map.
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        layers: int = 6,
        heads: int = 32,
        inner: int = 4096,
        groups: int = 32,
        points: int = 4,
    ) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(NormedConv(features, width, 1, groups, bias=True) for _ in range(LEVELS))
        self.levels = Levels(LEVELS, width)
        self.layers = nn.ModuleList(DeformableLayer(width, heads, inner, points) for _ in range(layers))
        self.lateral = NormedConv(features, width, 1, groups, bias=False)
        self.output = NormedConv(width, width, 3, groups, bias=False, relu=True)
        self.pixels = nn.Conv2d(width, width, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Three maps (B, E, …), coarsest first, and the pixels' features (B, E, 4Y, 4X) at stride 4.

        Args:
            pyramid: maps of strides 4, 8, 16, 32.
        """
        finest, *rest = pyramid
        maps = [layer(part) for layer, part in zip(self.inputs, reversed(rest), strict=True)]
        sizes = [(part.shape[-2], part.shape[-1]) for part in maps]
        at_N2, width = centres(sizes, finest.device), maps[0].shape[1]
        positions = [sine_positions(size, width, finest.device) + self.levels.table[i] for i, size in enumerate(sizes)]
        x_BNE, position_NE = torch.cat([part.flatten(2).mT for part in maps], 1), torch.cat(positions)
        for layer in self.layers:
            x_BNE = layer(x_BNE, position_NE, at_N2, sizes)
        parts = x_BNE.split([y * x for y, x in sizes], 1)
        maps = [part.mT.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        lateral = self.lateral(finest)
        up = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return maps, self.pixels(self.output(lateral + up))
