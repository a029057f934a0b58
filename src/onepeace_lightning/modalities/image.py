"""Images: a hierarchical convolutional stem of 16-pixel patches and learned grid positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.adapter import Adapter, register_adapter
from onepeace_lightning.models.config import PATCH, ImageConfig, ModelConfig
from onepeace_lightning.models.inputs import Image
from onepeace_lightning.models.layers import ChannelNorm, init_normal_
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.relative_bias import grid_buckets, grid_rows


class PatchConv(nn.Conv2d):
    """A convolution whose kernel is its stride; PyTorch's default weights, bias zero."""

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__(channels_in, channels_out, size, size)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)


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


@register_adapter
class ImageAdapter(Adapter):
    """Pixels to patch tokens (hMLP stem: 4×4, 2×2 and 2×2 convolutions)."""

    modality = "image"
    config_type = ImageConfig

    def __init__(self, config: ImageConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        width = model.encoder.width
        self.stem = nn.Sequential(
            PatchConv(3, width // 4, 4),
            ChannelNorm(width // 4),
            nn.GELU(),
            PatchConv(width // 4, width // 4, 2),
            ChannelNorm(width // 4),
            nn.GELU(),
            PatchConv(width // 4, width, 2),
        )
        grid = config.position_grid or config.grid
        self.positions = nn.Parameter(torch.empty(1 + grid**2, width))
        if config.type_embedding:
            self.type_embedding = nn.Parameter(torch.empty(1, width))
            self.type_embedding_second = nn.Parameter(torch.empty(1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw CLS and positions; type embeddings start at zero."""
        super().reset_parameters()
        init_normal_(self.positions, self.init_std)
        if self.config.type_embedding:
            nn.init.zeros_(self.type_embedding)
            nn.init.zeros_(self.type_embedding_second)

    def embed(self, inputs: Image) -> Tokens:
        """[CLS; patches] + positions.

        Raises:
            ValueError: where the images are not of the side that the relative bias is made for, or not of a type that
                ``Image`` names.
        """
        batch, _, height, width = inputs.pixels.shape
        if (height, width) != (self.config.image_size,) * 2:
            raise ValueError(
                f"images of {height}×{width} pixels; this model takes {self.config.image_size}×{self.config.image_size}"
                f" (a multiple of {PATCH}): set image_size in the data's preprocessing and in the model alike"
            )
        pixels = inputs.normalised()
        if not pixels.is_floating_point():
            raise ValueError(
                f"images of {pixels.dtype} pixels; give torch.uint8, from 0 to 255, or floating-point pixels that are"
                " normalised by CLIP's mean and standard deviation"
            )
        patches_BND = self.stem(pixels.to(self.positions.dtype)).flatten(2).transpose(1, 2)
        x_BLD = torch.cat([self.cls_token.expand(batch, 1, -1), patches_BND], 1)
        x_BLD = x_BLD + grid_positions(self.positions, self.config.grid)
        if self.config.type_embedding:
            x_BLD = x_BLD + self.type_embedding
        return Tokens.of_padded(x_BLD, [x_BLD.shape[1]] * batch)

    def as_second(self, tokens: Tokens) -> Tokens:
        """``embed``'s tokens marked as those of a sample's second image.

        Raises:
            ValueError: where the model was built without type embeddings.
        """
        if not self.config.type_embedding:
            raise ValueError("a second image needs type embeddings: set type_embedding=True for text and image")
        return tokens.with_values(tokens.values_TD + self.type_embedding_second)

    def no_weight_decay(self) -> set[str]:
        """Vectors and absolute positions."""
        return super().no_weight_decay() | {"positions"}

    def bias_rows(self) -> int:
        """Rows of a relative bias table."""
        return grid_rows(self.config.grid)

    def buckets(self, positions: int) -> Tensor:
        """(P, P) table rows."""
        return grid_buckets(self.config.grid, self.cls_token.device)
