"""Semantic segmentation as published for ADE20K: adapter trunk, deformable pixel decoder and mask decoder.

S = side of the square image, or of another raster, of C channels; see ``mask_decoder`` for the rest.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.config import ModelConfig, at_least, raise_all
from onepeace_lightning.models.patches import Pixels
from onepeace_lightning.models.vision.dense_adapter import DenseAdapter, DenseAdapterConfig
from onepeace_lightning.models.vision.mask_decoder import MaskDecoder, MaskPrediction
from onepeace_lightning.models.vision.pixel_decoder import DeformablePixelDecoder
from onepeace_lightning.models.vision.trunk import Trunk

UNLABELLED = 255
"""Class index of pixels without a class, in 8-bit masks."""


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """Sizes of pixel decoder and mask decoder; the defaults are the published ones.

    Attributes:
        classes: K.
        queries: Q, the most masks in one image.
        layers: of the mask decoder.
        width: E.
        heads: of attention.
        inner: width of the feed-forward networks.
        pixel_layers: of the pixel decoder.
        groups: of its group norms.
        points: that a position reads from each map.
    """

    classes: int
    queries: int = 200
    layers: int = 9
    width: int = 1024
    heads: int = 32
    inner: int = 4096
    pixel_layers: int = 6
    groups: int = 32
    points: int = 4

    def __post_init__(self) -> None:
        problems = at_least(
            self, classes=1, queries=1, layers=1, width=1, heads=1, inner=1, pixel_layers=1, groups=1, points=1
        )
        if not problems:
            problems = [
                f"width {self.width} is not a multiple of {name} {value}"
                for name, value in (("heads", self.heads), ("groups", self.groups), ("4:", 4))
                if self.width % value
            ]
        raise_all("mask head", problems)


class MaskHead(nn.Module):
    """Pixel decoder and mask decoder over a pyramid.

    Args:
        features: channels of each map of the pyramid.
        config: sizes.
    """

    def __init__(self, features: int, config: MaskHeadConfig) -> None:
        super().__init__()
        self.pixel_decoder = DeformablePixelDecoder(
            features, config.width, layers=config.pixel_layers, heads=config.heads, inner=config.inner,
            groups=config.groups, points=config.points,
        )  # fmt: skip
        self.mask_decoder = MaskDecoder(
            config.classes, config.queries, config.layers, config.width, config.heads, config.inner
        )

    def forward(self, pyramid: list[Tensor]) -> list[MaskPrediction]:
        """What the queries say before the first layer and after each, from maps of strides 4, 8, 16 and 32."""
        return self.mask_decoder(*self.pixel_decoder(pyramid))


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """What the segmentation model has besides the image branch.

    Attributes:
        head: sizes of the decoders.
        adapter: sizes of the image branch's convolutional companion.
    """

    head: MaskHeadConfig
    adapter: DenseAdapterConfig = field(default_factory=DenseAdapterConfig)


class SegmentationModel(nn.Module):
    """The image branch, its convolutional companion and the mask head.

    Args:
        config: sizes of the image branch, or of that of other rasters.
        segmentation: sizes of all else.
    """

    def __init__(self, config: ModelConfig, segmentation: SegmentationConfig) -> None:
        super().__init__()
        self.config, self.segmentation = config, segmentation
        self.backbone = Trunk(config)
        self.adapter = DenseAdapter(config, segmentation.adapter)
        self.head = MaskHead(config.encoder.width, segmentation.head)

    def forward(self, image: Pixels) -> list[MaskPrediction]:
        """What the queries say of (B, C, S, S) images before the first decoder layer and after each."""
        return self.head(self.adapter(self.backbone, image))

    def lr_scale(self, name: str, layer_decay: float) -> float | None:
        """What mask and class are made of has the rate of the first layer, as published."""
        lowest = name.startswith(tuple(f"head.mask_decoder.{part}." for part in _LOWEST_RATE))
        return layer_decay ** (self.config.encoder.depth + 1) if lowest else None

    def no_weight_decay(self) -> set[str]:
        """Vectors; CLS and positions do decay, unlike elsewhere, as published."""
        vectors = {name for name, parameter in self.named_parameters() if parameter.dim() < 2}
        return vectors - {f"backbone.adapters.{self.backbone.modality}.cls_token"}


_LOWEST_RATE = ("to_masks", "to_classes", "levels", "queries")


def class_scores(prediction: MaskPrediction, side: int) -> Tensor:
    """(B, K, S, S) float32: over the queries, the probability of a class times that of the pixel being in the mask.

    Scores of a pixel need not add up to 1.

    Args:
        prediction: of the last layer.
        side: S.
    """
    masks = prediction.masks_BQYX.float()
    classes_BQK = prediction.classes_BQK.float().softmax(-1)[..., :-1]
    scores = (classes_BQK.mT @ masks.sigmoid().flatten(2)).unflatten(2, masks.shape[-2:])
    return F.interpolate(scores, size=(side, side), mode="bilinear", align_corners=False)
