"""A light segmentation model: the plain image branch and a convolutional pixel decoder under the same mask decoder.

For small machines: no companion beside the blocks and no deformable attention. The coarser maps come from the features
alone, as in ViTDet's simple pyramid (arXiv 2203.16527); the finer ones are joined, as in a feature pyramid network
(arXiv 1612.03144), with what the image stem's convolutions give at their strides.

B = images, or other rasters of C channels; D = the encoder's width, E = width of the head, S = side of an image.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.layers import ChannelNorm
from onepeace_lightning.models.patches import Pixels
from onepeace_lightning.models.vision.mask_decoder import MaskDecoder, MaskPrediction
from onepeace_lightning.models.vision.segmentation import MaskHeadConfig
from onepeace_lightning.models.vision.trunk import raster_modality


class LightPixelDecoder(nn.Module):
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


class LightMaskHead(nn.Module):
    """Light pixel decoder and mask decoder."""

    def __init__(self, features: int, config: MaskHeadConfig) -> None:
        super().__init__()
        self.pixel_decoder = LightPixelDecoder(features, features // 4, config.width)
        self.mask_decoder = MaskDecoder(
            config.classes, config.queries, config.layers, config.width, config.heads, config.inner
        )

    def forward(self, x_BDYX: Tensor, details: Sequence[Tensor]) -> list[MaskPrediction]:
        """What the queries say before the first layer and after each, from features of stride 16 and finer maps."""
        return self.mask_decoder(*self.pixel_decoder(x_BDYX, details))


class LightSegmentationModel(nn.Module):
    """Backbone and light mask head.

    Args:
        config: sizes of the image branch, or of that of other rasters.
        head: sizes of the head; what it has of deformable attention and group norms is not used.
    """

    def __init__(self, config: ModelConfig, head: MaskHeadConfig) -> None:
        super().__init__()
        self.config, self.modality = config, raster_modality(config)
        self.backbone = Backbone(config)
        self.head = LightMaskHead(config.encoder.width, head)

    def forward(self, image: Pixels) -> list[MaskPrediction]:
        """What the queries say of (B, C, S, S) images before the first decoder layer and after each."""
        features = self.backbone({self.modality: image})[self.modality].values_TD
        # Images are all of one size: nothing is padded.
        return self.say(features.unflatten(0, (len(image.pixels), -1)), image)

    def say(self, x_BLD: Tensor, image: Pixels) -> list[MaskPrediction]:
        """The same, given the backbone's features of the images, CLS first."""
        adapter = cast(Any, self.backbone.adapter(self.modality))
        x_BDYX = x_BLD[:, 1:].mT.unflatten(2, (adapter.config.grid,) * 2)
        return self.head(x_BDYX, stem_maps(adapter, image))


def stem_maps(adapter: Any, image: Pixels) -> list[Tensor]:
    """Maps (B, D/4, S/4, S/4) and (B, D/4, S/8, S/8): the stem's convolutions after their activations.

    They are computed again: next to the blocks they cost nothing, and ``embed`` need not know of them.
    """
    x = image.normalised().to(adapter.positions.dtype)
    maps = []
    for layer in list(adapter.stem)[:-1]:
        x = layer(x)
        if isinstance(layer, nn.GELU):
            maps.append(x)
    return maps
