"""Semantic segmentation: the image branch with a mask-classification head, and what it says of each pixel.

S = side of the square picture; see ``mask_decoder`` for the rest.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.heads.mask_decoder import MaskDecoder, MaskHeadConfig, MaskPrediction
from onepeace_lightning.models.patches import normalised

UNLABELLED = 255
"""Class index of pixels without a class, in 8-bit masks."""


class SegmentModel(nn.Module):
    """Backbone and mask head.

    Args:
        config: sizes.
        head: sizes of the head.
    """

    def __init__(self, config: ModelConfig, head: MaskHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = MaskDecoder(head, config.encoder.width, config.encoder.width // 4)

    def forward(self, image: Any) -> list[MaskPrediction]:
        """What the queries say of (B, 3, S, S) pictures before the first decoder layer and after each."""
        adapter = cast(Any, self.backbone.adapter("image"))
        features = self.backbone({"image": image})["image"].values_TD
        # Pictures are all of one size: nothing is padded.
        x_BLD = features.unflatten(0, (len(image.pixels), -1))
        x_BDYX = x_BLD[:, 1:].mT.unflatten(2, (adapter.config.grid,) * 2)
        return self.head(x_BDYX, stem_maps(adapter, image))


def stem_maps(adapter: Any, image: Any) -> list[Tensor]:
    """Maps (B, D/4, S/4, S/4) and (B, D/4, S/8, S/8): the stem's convolutions after their activations.

    They are computed again: next to the blocks they cost nothing, and ``embed`` need not know of them.
    """
    x = normalised(image.pixels).to(adapter.positions.dtype)
    maps = []
    for layer in list(adapter.stem)[:-1]:
        x = layer(x)
        if isinstance(layer, nn.GELU):
            maps.append(x)
    return maps


def class_scores(prediction: MaskPrediction, side: int) -> Tensor:
    """(B, K, S, S) float32: each pixel's probability of each class, as Mask2Former adds up its queries.

    Over the queries, the probability of the class times that of the pixel being in the mask; so scores of a pixel need
    not add up to 1.

    Args:
        prediction: of the last layer.
        side: S.
    """
    masks = F.interpolate(prediction.masks_BQYX.float(), size=(side, side), mode="bilinear", align_corners=False)
    classes_BQK = prediction.classes_BQK.float().softmax(-1)[..., :-1]
    with torch.autocast(masks.device.type, enabled=False):
        return (classes_BQK.mT @ masks.sigmoid().flatten(2)).unflatten(2, (side, side))
