"""Mask2Former's transformer decoder (arXiv 2112.01527): queries that look at feature maps within what they have drawn.

Every query gives one mask and one class. B = images, E = width, Q = queries, K = classes, Y and X = rows and columns of
a map, N = Y·X, H = heads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.vision.deformable import Size, XavierLinear
from onepeace_lightning.models.vision.dense_adapter import Levels
from onepeace_lightning.models.vision.pixel_decoder import LEVELS, sine_positions


class MaskPrediction(NamedTuple):
    """What the queries say.

    Attributes:
        classes_BQK: (B, Q, K + 1) logits; the last class is none.
        masks_BQYX: logits of each pixel at stride 4.
    """

    classes_BQK: Tensor
    masks_BQYX: Tensor


class QueryAttention(nn.Module):
    """Multi-head attention of queries over a memory, parts of which may be blocked for each query."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = XavierLinear(width, 3 * width)
        self.out = XavierLinear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, allowed_BQN: Tensor | None = None) -> Tensor:
        """(B, Q, E) from queries (B, Q, E), keys and values (B, N, E); every query needs something allowed."""
        weights, biases = self.project.weight.chunk(3), self.project.bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        )
        mask = None if allowed_BQN is None else allowed_BQN[:, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class MaskedLayer(nn.Module):
    """Masked attention to a map, then attention among queries, then a feed-forward network; norms come after each."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.cross, self.among = (QueryAttention(width, heads) for _ in range(2))
        self.norm_cross, self.norm_among, self.norm_ffn = (nn.LayerNorm(width) for _ in range(3))
        self.ffn = nn.Sequential(XavierLinear(width, inner), nn.ReLU(), XavierLinear(inner, width))

    def forward(
        self, x_BQE: Tensor, position_QE: Tensor, map_BNE: Tensor, place_NE: Tensor, allowed_BQN: Tensor
    ) -> Tensor:
        """The queries after a look at one map; positions are added to queries and keys, not to values."""
        x_BQE = self.norm_cross(x_BQE + self.cross(x_BQE + position_QE, map_BNE + place_NE, map_BNE, allowed_BQN))
        placed = x_BQE + position_QE
        x_BQE = self.norm_among(x_BQE + self.among(placed, placed, x_BQE))
        return self.norm_ffn(x_BQE + self.ffn(x_BQE))


class Queries(nn.Module):
    """Learned queries and their positions (Q, E)."""

    def __init__(self, queries: int, width: int) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.empty(queries, width))
        self.positions = nn.Parameter(torch.empty(queries, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both from a standard normal."""
        nn.init.normal_(self.features)
        nn.init.normal_(self.positions)


class MaskDecoder(nn.Module):
    """Queries, masked layers, and what they say before the first layer and after each.

    Args:
        classes: K.
        queries: Q, the most masks in one image.
        layers: masked layers.
        width: E.
        heads: H.
        inner: width of the feed-forward networks.
    """

    def __init__(self, classes: int, queries: int, layers: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MaskedLayer(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.queries = Queries(queries, width)
        self.levels = Levels(LEVELS, width)
        self.to_classes = nn.Linear(width, classes + 1)
        self.to_masks = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, maps: Sequence[Tensor], pixels_BEYX: Tensor) -> list[MaskPrediction]:
        """What the queries say before the first layer and after each; the last is the answer.

        Args:
            maps: (B, E, …) of strides 32, 16 and 8.
            pixels_BEYX: features of stride 4.
        """
        sizes = [(part.shape[-2], part.shape[-1]) for part in maps]
        places = [sine_positions(size, part.shape[1], part.device) for size, part in zip(sizes, maps, strict=True)]
        memory = [part.flatten(2).mT + self.levels.table[level] for level, part in enumerate(maps)]
        x_BQE = self.queries.features.expand(pixels_BEYX.shape[0], -1, -1)
        said = [self._say(x_BQE, pixels_BEYX)]
        for index, layer in enumerate(self.layers):
            level = index % LEVELS
            allowed_BQN = within(said[-1].masks_BQYX, sizes[level])
            x_BQE = layer(x_BQE, self.queries.positions, memory[level], places[level], allowed_BQN)
            said.append(self._say(x_BQE, pixels_BEYX))
        return said

    def _say(self, x_BQE: Tensor, pixels_BEYX: Tensor) -> MaskPrediction:
        x_BQE = self.norm(x_BQE)
        masks_BQN = self.to_masks(x_BQE) @ pixels_BEYX.flatten(2)
        return MaskPrediction(self.to_classes(x_BQE), masks_BQN.unflatten(2, pixels_BEYX.shape[-2:]))


@torch.no_grad()
def within(masks_BQYX: Tensor, size: Size) -> Tensor:
    """(B, Q, N) bool: the positions of a map of another size that are in a query's mask; all, where none is."""
    logits = F.interpolate(masks_BQYX.float(), size=size, mode="bilinear", align_corners=False)
    inside_BQN = logits.flatten(2) >= 0
    return inside_BQN | ~inside_BQN.any(-1, keepdim=True)
