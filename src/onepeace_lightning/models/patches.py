"""What all that sees images has in common: 16-pixel patches, the convolutional stem, grid positions, normalisation.

B = images, C = channels, S = side of a square image, D = width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.flops import Flops, product
from onepeace_lightning.models.layers import ChannelNorm

PATCH = 16
"""Side of a patch in pixels."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of each colour, from 0 to 1, over CLIP's training images."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of each colour over CLIP's training images."""


@dataclass
class Pixels:
    """Images (B, C, S, S) for an image adapter: RGB in uint8, or floating-point and normalised already."""

    pixels: Tensor

    @property
    def token_lengths(self) -> list[int]:
        """CLS and the patches of each image."""
        batch, _, height, width = self.pixels.shape
        return [1 + (height // PATCH) * (width // PATCH)] * batch

    def normalised(self) -> Tensor:
        """(B, C, S, S) floating-point, see the function ``normalised``."""
        return normalised(self.pixels)


def normalised(pixels_B3SS: Tensor) -> Tensor:
    """RGB pixels in units of CLIP's ``STD`` from its ``MEAN``: uint8 becomes float32, floats are normalised already."""
    if pixels_B3SS.dtype != torch.uint8:
        return pixels_B3SS
    fractions = pixels_B3SS.float() / 255
    # Numbers and not tensors, which would have to be copied to the device each time.
    return torch.stack([(fractions[:, colour] - MEAN[colour]) / STD[colour] for colour in range(3)], 1)


class PatchConv(nn.Conv2d):
    """A convolution whose kernel is its stride; PyTorch's default weights, bias zero."""

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__(channels_in, channels_out, size, size)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def patch_stem(channels: int, width: int) -> nn.Sequential:
    """Pixels (B, C, S, S) to patches (B, D, S/16, S/16): the hMLP stem's 4×4, 2×2 and 2×2 convolutions."""
    quarter = width // 4
    return nn.Sequential(
        PatchConv(channels, quarter, 4),
        ChannelNorm(quarter),
        nn.GELU(),
        PatchConv(quarter, quarter, 2),
        ChannelNorm(quarter),
        nn.GELU(),
        PatchConv(quarter, width, 2),
    )


def patch_stem_flops(pixels: int, channels: int, width: int, *, learns: bool) -> Flops:
    """What ``patch_stem`` computes for so many pixels."""
    quarter = width // 4
    return (
        product(pixels // 16, channels * 4 * 4, quarter, gradients=int(learns))
        + product(pixels // 64, quarter * 2 * 2, quarter, gradients=2 * learns)
        + product(pixels // 256, quarter * 2 * 2, width, gradients=2 * learns)
    )


def grid_positions(table: Tensor, side: int) -> Tensor:
    """(1 + g², D) learned positions, CLS first, resized bicubically to (1 + side², D) where the grids differ."""
    grid = round((len(table) - 1) ** 0.5)
    if grid == side:
        return table
    cls, patches = table[:1], table[1:]
    # autocast would resize in bfloat16
    with torch.autocast(table.device.type, enabled=False):
        square = patches.float().T.reshape(1, -1, grid, grid)
        resized = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([cls, resized.flatten(2)[0].T.to(table.dtype)])
