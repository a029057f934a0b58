"""The image branch with a convolutional companion for dense prediction: ViT-Adapter (arXiv 2205.08534).

A *spatial prior* of convolutions gives tokens c of strides 8, 16 and 32. Before each of the groups of blocks an
*injector* lets patches read from c, after it an *extractor* lets c read from the patches. The result is a pyramid of
strides 4, 8, 16 and 32.

B = images, or other rasters of C channels; g = patches along a side, N = g² patches, M = 21·g²/4 tokens of c,
D = width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.config import ModelConfig, at_least, raise_all
from onepeace_lightning.models.patches import Pixels
from onepeace_lightning.models.vision.deformable import DeformableAttention, Size, centres
from onepeace_lightning.models.vision.trunk import Trunk, drop_path, raster_modality

LEVELS = 3
"""Maps of c: strides 8, 16, 32."""


@dataclass(frozen=True, kw_only=True)
class DenseAdapterConfig:
    """Sizes of the companion; the defaults are the published ones.

    Attributes:
        channels: of the first convolutions; later ones have 2 and 4 times as many.
        heads: of deformable attention.
        points: that a query reads from each map.
        groups: of blocks between injector and extractor; the depth is a multiple.
        value_fraction: width of the values of deformable attention as a fraction of D.
        ffn_fraction: inner width of the extractors' feed-forward networks as a fraction of D.
        drop_path: stochastic depth of the extractors' feed-forward networks.
    """

    channels: int = 64
    heads: int = 24
    points: int = 4
    groups: int = 4
    value_fraction: float = 0.5
    ffn_fraction: float = 0.25
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        problems = at_least(self, channels=1, heads=1, points=1)
        if self.groups != 4:
            problems.append(f"groups is {self.groups}, must be 4: one for each stride of the pyramid")
        if not 0.0 <= self.drop_path < 1.0:
            problems.append(f"drop_path is {self.drop_path}, must be in [0, 1)")
        raise_all("dense adapter", problems)


class ConvNorm(nn.Sequential):
    """3×3 convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


class SpatialPrior(nn.Module):
    """Convolutions of the pixels to maps of strides 4, 8, 16 and 32, each of width D."""

    def __init__(self, channels_in: int, channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(channels_in, channels, 2), ConvNorm(channels, channels, 1), ConvNorm(channels, channels, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )  # fmt: skip
        sizes = [channels, 2 * channels, 4 * channels, 4 * channels]
        self.down = nn.ModuleList(ConvNorm(before, after, 2) for before, after in pairwise(sizes))
        self.project = nn.ModuleList(nn.Conv2d(size, width, 1) for size in sizes)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, C, S, S) normalised pixels to four maps (B, D, …), finest first."""
        maps = [self.stem(pixels)]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        return [project(x) for project, x in zip(self.project, maps, strict=True)]


class Injector(nn.Module):
    """Patches read from c; γ starts at 0, so that at first nothing is changed."""

    def __init__(self, width: int, config: DenseAdapterConfig) -> None:
        super().__init__()
        self.norm_query, self.norm_values = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = DeformableAttention(
            width, config.heads, LEVELS, config.points, int(width * config.value_fraction)
        )
        self.gamma = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero γ."""
        nn.init.zeros_(self.gamma)

    def forward(self, x_BND: Tensor, at_N2: Tensor, c_BMD: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(B, N, D) patches, given their centres, the tokens of c and the sizes of its maps."""
        return x_BND + self.gamma * self.attention(self.norm_query(x_BND), at_N2, self.norm_values(c_BMD), sizes)


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise 3×3 convolution on each level's map between its layers."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.down = nn.Linear(inner, width)

    def forward(self, c_BMD: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        parts = self.up(c_BMD).split([y * x for y, x in sizes], 1)
        maps = [self.depthwise(part.mT.unflatten(2, size)) for part, size in zip(parts, sizes, strict=True)]
        return self.down(F.gelu(torch.cat([part.flatten(2).mT for part in maps], 1)))


class Extractor(nn.Module):
    """c reads from the patches, then its feed-forward network."""

    def __init__(self, width: int, config: DenseAdapterConfig) -> None:
        super().__init__()
        self.norm_query, self.norm_values = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = DeformableAttention(width, config.heads, 1, config.points, int(width * config.value_fraction))
        self.norm_ffn = nn.LayerNorm(width, eps=1e-6)
        self.ffn = ConvFFN(width, int(width * config.ffn_fraction))
        self.drop_rate = config.drop_path

    def forward(self, c_BMD: Tensor, at_M2: Tensor, x_BND: Tensor, grid: int, sizes: Sequence[Size]) -> Tensor:
        """(B, M, D) tokens of c, given their centres, the patches of a ``grid`` × ``grid`` map and c's map sizes."""
        read_BMD = self.attention(self.norm_query(c_BMD), at_M2, self.norm_values(x_BND), [(grid, grid)])
        c_BMD = c_BMD + read_BMD
        return c_BMD + drop_path(self.ffn(self.norm_ffn(c_BMD), sizes), self.drop_rate, self.training)


class Interaction(nn.Module):
    """The injector before a group of blocks and the extractors after it."""

    def __init__(self, width: int, config: DenseAdapterConfig, extra: int) -> None:
        super().__init__()
        self.injector = Injector(width, config)
        self.extractors = nn.ModuleList(Extractor(width, config) for _ in range(1 + extra))

    def extract(self, c_BMD: Tensor, at_M2: Tensor, x_BND: Tensor, grid: int, sizes: Sequence[Size]) -> Tensor:
        """(B, M, D) tokens of c after all extractors."""
        for extractor in self.extractors:
            c_BMD = extractor(c_BMD, at_M2, x_BND, grid, sizes)
        return c_BMD


class Levels(nn.Module):
    """A learned vector for each of some maps."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(levels, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw them from a standard normal."""
        nn.init.normal_(self.table)


class DenseAdapter(nn.Module):
    """Spatial prior, injectors and extractors beside an image branch: maps of four strides.

    Args:
        config: sizes of the image branch; images have a side that is a multiple of 32.
        adapter: sizes of the companion.

    Raises:
        ValueError: where the side is no multiple of 32, or the depth none of the number of groups.
    """

    def __init__(self, config: ModelConfig, adapter: DenseAdapterConfig) -> None:
        super().__init__()
        depth, width = config.encoder.depth, config.encoder.width
        raster: Any = config.adapters[raster_modality(config)]
        value_width = int(width * adapter.value_fraction)
        problems = []
        if raster.image_size % 32:
            problems.append(f"image_size is {raster.image_size}, must be a multiple of 32")
        if depth % adapter.groups:
            problems.append(f"depth {depth} is not a multiple of the {adapter.groups} groups")
        if value_width % adapter.heads:
            problems.append(f"value width {value_width} is not a multiple of {adapter.heads} heads")
        raise_all("dense adapter", problems)
        self.group = depth // adapter.groups
        self.spatial_prior = SpatialPrior(raster.channels, adapter.channels, width)
        self.levels = Levels(LEVELS, width)
        self.interactions = nn.ModuleList(
            Interaction(width, adapter, extra=2 if index == adapter.groups - 1 else 0)
            for index in range(adapter.groups)
        )
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(adapter.groups))

    def forward(self, trunk: Trunk, image: Pixels) -> list[Tensor]:
        """Four maps (B, D, …) of strides 4, 8, 16 and 32, of (B, C, S, S) images through the given image branch."""
        x_BLD, biases = trunk.embed(image), trunk.biases()
        cls_B1D, x_BND = x_BLD[:, :1], x_BLD[:, 1:]
        finest, *maps = self.spatial_prior(image.normalised().to(x_BND.dtype))
        grid, sizes = trunk.grid, [(part.shape[-2], part.shape[-1]) for part in maps]
        c_BMD = torch.cat([part.flatten(2).mT + self.levels.table[i] for i, part in enumerate(maps)], 1)
        at_N2, at_M2 = centres([(grid, grid)], x_BND.device), centres(sizes, x_BND.device)
        patches = []
        for index, step in enumerate(cast(Sequence[Interaction], self.interactions)):
            x_BND = step.injector(x_BND, at_N2, c_BMD, sizes)
            x_BLD = torch.cat([cls_B1D, x_BND], 1)
            for number in range(index * self.group, (index + 1) * self.group):
                x_BLD = trunk.blocks[number](x_BLD, biases[number])
            cls_B1D, x_BND = x_BLD[:, :1], x_BLD[:, 1:]
            c_BMD = step.extract(c_BMD, at_M2, x_BND, grid, sizes)
            patches.append(x_BND.mT.unflatten(2, (grid, grid)))
        parts = c_BMD.split([y * x for y, x in sizes], 1)
        coarse = [part.mT.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        pyramid = [finest + self.up(coarse[0]), *coarse]
        # Each group's patches go to one stride, the first group's to the finest.
        for level, (map_, x_BDYX) in enumerate(zip(pyramid, patches, strict=True)):
            pyramid[level] = map_ + F.interpolate(x_BDYX, size=map_.shape[-2:], mode="bilinear", align_corners=False)
        return [norm(map_) for norm, map_ in zip(self.norms, pyramid, strict=True)]
