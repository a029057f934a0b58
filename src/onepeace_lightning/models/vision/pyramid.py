"""A feature pyramid from the trunk's last map alone (arXiv 2203.16527, section 3).

B = images, C = channels of the pyramid, D = width of the trunk, Y and X = rows and columns of its map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (4, 8, 16, 32, 64)
"""Pixels between neighbours of each map."""


class MapNorm(nn.Module):
    """Normalisation over the channels of (B, C, Y, X). Published training lets its weights decay, not a LayerNorm's."""

    eps = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start without scale and shift."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x_BYXC = x.permute(0, 2, 3, 1)
        return F.layer_norm(x_BYXC, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class NormedConv(nn.Conv2d):
    """A convolution without bias that keeps the map's size, and its norm; Kaiming's initialisation."""

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__(channels_in, channels_out, size, padding=size // 2, bias=False)
        self.norm = MapNorm(channels_out)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, C', Y, X)."""
        return self.norm(super().forward(x))


class SimplePyramid(nn.Module):
    """Five maps of strides 4 to 64 out of one of stride 16, by transposed convolutions and pooling.

    Args:
        width: D, a multiple of 4.
        channels: C.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.p2 = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            MapNorm(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
            NormedConv(width // 4, channels, 1),
            NormedConv(channels, channels, 3),
        )
        self.p3 = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            NormedConv(width // 2, channels, 1),
            NormedConv(channels, channels, 3),
        )
        self.p4 = nn.Sequential(NormedConv(width, channels, 1), NormedConv(channels, channels, 3))
        self.p5 = nn.Sequential(nn.MaxPool2d(2), NormedConv(width, channels, 1), NormedConv(channels, channels, 3))

    def forward(self, x_BDYX: Tensor) -> list[Tensor]:
        """(B, D, Y, X) -> maps (B, C, …) of ``STRIDES``."""
        maps = [level(x_BDYX) for level in (self.p2, self.p3, self.p4, self.p5)]
        return [*maps, maps[-1][:, :, ::2, ::2]]
