"""Masks with classes from the features of a plain transformer: Mask2Former's decoders (arXiv 2112.01527).

A *pixel decoder* turns the single-scale features into maps of four strides. The coarser ones come from the features
alone, as in ViTDet's simple pyramid (arXiv 2203.16527); the finer ones are joined, as in a feature pyramid network
(arXiv 1612.03144), with what the image stem's convolutions give at their strides, since a patch of 16 pixels says
little of outlines. A *transformer decoder* lets queries look at these maps, each only within the mask that it has
drawn so far; every query gives one mask and one class.

Why this design: it is the head with which plain transformers reach their best published results on ADE20K, it needs
nothing but convolutions and attention, and a mask is found in one piece, whatever the number of classes.

B = pictures, D = the encoder's width, E = width of this head, Q = queries, K = classes, Y and X = rows and columns of a
map, N = Y·X, H = heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.config import raise_all
from onepeace_lightning.models.layers import ChannelNorm

LEVELS = 3
"""Maps that queries look at in turn: strides 32, 16, 8. Masks are drawn at stride 4."""


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """Sizes of both decoders; the defaults are the published ones.

    Attributes:
        classes: K.
        queries: Q, the most masks in one picture.
        layers: of the transformer decoder.
        width: E.
        heads: attention heads.
    """

    classes: int
    queries: int = 100
    layers: int = 9
    width: int = 256
    heads: int = 8

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, must be at least 1"
            for name in ("classes", "queries", "layers", "width", "heads")
            if getattr(self, name) < 1
        ]
        if not problems and (self.width % self.heads or self.width % 4):
            problems.append(f"width {self.width} is not a multiple of heads {self.heads} and of 4")
        raise_all("mask head", problems)


class MaskPrediction(NamedTuple):
    """What the queries say.

    Attributes:
        classes_BQK: (B, Q, K + 1) logits; the last class is none.
        masks_BQYX: logits of each pixel at stride 4.
    """

    classes_BQK: Tensor
    masks_BQYX: Tensor


class PixelDecoder(nn.Module):
    """Features of stride 16 and two finer maps to maps of strides 32, 16 and 8, and pixels of stride 4.

    Args:
        features: D.
        details: channels of the finer maps.
        width: E.
    """

    def __init__(self, features: int, details: int, width: int) -> None:
        super().__init__()
        self.middle = nn.Sequential(nn.Conv2d(features, width, 1), ChannelNorm(width))
        self.coarse = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), ChannelNorm(width))
        self.fine = Finer(details, width)
        self.finest = Finer(details, width)
        self.pixels = nn.Conv2d(width, width, 1)

    def forward(self, x_BDYX: Tensor, details: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Three maps (B, E, …), coarsest first, and the pixels' features (B, E, 4Y, 4X).

        Args:
            x_BDYX: features of stride 16.
            details: maps of strides 4 and 8, (B, details, 4Y, 4X) and (B, details, 2Y, 2X).
        """
        middle = self.middle(x_BDYX)
        fine = self.fine(middle, details[1])
        return [self.coarse(middle), middle, fine], self.pixels(self.finest(fine, details[0]))


class Finer(nn.Module):
    """A map at half its stride, joined with details of that stride."""

    def __init__(self, details: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.detail = nn.Conv2d(details, width, 1)
        self.norm = ChannelNorm(width)
        self.join = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), ChannelNorm(width), nn.GELU())

    def forward(self, x_BEYX: Tensor, detail: Tensor) -> Tensor:
        """(B, E, Y, X) and (B, details, 2Y, 2X) -> (B, E, 2Y, 2X)."""
        return self.join(F.gelu(self.norm(self.up(x_BEYX) + self.detail(detail))))


class QueryAttention(nn.Module):
    """Multi-head attention of queries over a memory, parts of which may be blocked for each query."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, allowed_BQN: Tensor | None = None) -> Tensor:
        """(B, Q, E) from queries (B, Q, E), keys and values (B, N, E); every query needs something allowed."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.query, queries), (self.key, keys), (self.value, values))
        )
        mask = None if allowed_BQN is None else allowed_BQN[:, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class MaskedLayer(nn.Module):
    """Masked attention to a map, then attention among queries, then a feed-forward network; norms come after each."""

    def __init__(self, config: MaskHeadConfig) -> None:
        super().__init__()
        width = config.width
        self.look, self.talk = (QueryAttention(width, config.heads) for _ in range(2))
        self.norm_look, self.norm_talk, self.norm_think = (nn.LayerNorm(width) for _ in range(3))
        self.think = nn.Sequential(nn.Linear(width, 8 * width), nn.ReLU(), nn.Linear(8 * width, width))

    def forward(
        self, x_BQE: Tensor, position_QE: Tensor, map_BNE: Tensor, place_NE: Tensor, allowed_BQN: Tensor
    ) -> Tensor:
        """The queries after a look at one map; positions are added to queries and keys, not to values."""
        x_BQE = self.norm_look(x_BQE + self.look(x_BQE + position_QE, map_BNE + place_NE, map_BNE, allowed_BQN))
        placed = x_BQE + position_QE
        x_BQE = self.norm_talk(x_BQE + self.talk(placed, placed, x_BQE))
        return self.norm_think(x_BQE + self.think(x_BQE))


class MaskDecoder(nn.Module):
    """Pixel decoder and transformer decoder.

    Args:
        config: sizes.
        features: D.
        details: channels of the finer maps.
    """

    def __init__(self, config: MaskHeadConfig, features: int, details: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pixel_decoder = PixelDecoder(features, details, width)
        self.layers = nn.ModuleList(MaskedLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.to_classes = nn.Linear(width, config.classes + 1)
        self.to_masks = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.queries = nn.Parameter(torch.empty(config.queries, width))
        self.query_positions = nn.Parameter(torch.empty(config.queries, width))
        self.levels = nn.Parameter(torch.empty(LEVELS, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the queries, their positions and the vectors by which maps are told apart."""
        for parameter in (self.queries, self.query_positions, self.levels):
            nn.init.normal_(parameter)

    def forward(self, x_BDYX: Tensor, details: Sequence[Tensor]) -> list[MaskPrediction]:
        """What the queries say before the first layer and after each; the last is the answer.

        Args:
            x_BDYX: features of stride 16.
            details: maps of strides 4 and 8.
        """
        maps, pixels_BEYX = self.pixel_decoder(x_BDYX, details)
        sizes = [(part.shape[-2], part.shape[-1]) for part in maps]
        places = [sine_positions(size, self.config.width, x_BDYX.device) for size in sizes]
        flat = [part.flatten(2).mT + self.levels[level] for level, part in enumerate(maps)]
        x_BQE = self.queries.expand(len(x_BDYX), -1, -1)
        said = [self._say(x_BQE, pixels_BEYX)]
        for index, layer in enumerate(self.layers):
            level = index % LEVELS
            allowed_BQN = within(said[-1].masks_BQYX, sizes[level])
            x_BQE = layer(x_BQE, self.query_positions, flat[level], places[level], allowed_BQN)
            said.append(self._say(x_BQE, pixels_BEYX))
        return said

    def _say(self, x_BQE: Tensor, pixels_BEYX: Tensor) -> MaskPrediction:
        x_BQE = self.norm(x_BQE)
        masks_BQN = self.to_masks(x_BQE) @ pixels_BEYX.flatten(2)
        return MaskPrediction(self.to_classes(x_BQE), masks_BQN.unflatten(2, pixels_BEYX.shape[-2:]))


@torch.no_grad()
def within(masks_BQYX: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, Q, N) bool: the places of a map of another size that are in a query's mask; all, where none is."""
    logits = F.interpolate(masks_BQYX.float(), size=size, mode="bilinear", align_corners=False)
    inside_BQN = logits.flatten(2) >= 0
    return inside_BQN | ~inside_BQN.any(-1, keepdim=True)


def sine_positions(size: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """(N, width) sines and cosines of the row and column of each place, as in DETR (arXiv 2005.12872)."""
    frequency = 10_000 ** (-torch.arange(0, width // 2, 2, device=device) / (width // 2))
    axes = []
    for length in size:
        angle = (torch.arange(length, device=device) + 0.5)[:, None] / length * 2 * math.pi * frequency
        axes.append(torch.cat([angle.sin(), angle.cos()], 1))
    row, column = axes
    return torch.cat([row[:, None].expand(*size, -1), column.expand(*size, -1)], -1).flatten(0, 1)
