"""Three box heads, each refining the boxes of the one before (arXiv 1712.00726), and the mask head (arXiv 1703.06870).

R = regions of all images, K = classes, C = channels of the pyramid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from onepeace_lightning.models.vision.boxes import Weights
from onepeace_lightning.models.vision.pyramid import STRIDES, NormedConv

STAGE_WEIGHTS: tuple[Weights, ...] = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
"""Of each stage's deltas: later stages move boxes less."""

BOX_SIDE, MASK_SIDE = 7, 14
"""Points along a side at which a region's features are pooled for its box and for its mask."""

_POOLED_LEVELS = 4
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 2
"""Regions of 224² pixels are pooled from the map of stride 16."""


def pool(maps: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
    """(R, C, side, side) features of regions, each from the map that suits its size, aligned with it.

    Args:
        maps: the pyramid's; the coarsest is not read.
        boxes: of each image, (r, 4) pixels.
        side: points along a side of the result.
    """
    image = torch.cat([part.new_full((len(part), 1), index) for index, part in enumerate(boxes)])
    boxes_R4 = torch.cat(list(boxes))
    areas = (boxes_R4[:, 2:] - boxes_R4[:, :2]).prod(1)
    levels_R = torch.floor(_CANONICAL_LEVEL + torch.log2(areas.sqrt() / _CANONICAL_SIDE + 1e-8))
    levels_R = levels_R.clamp(0, _POOLED_LEVELS - 1)
    pooled = boxes_R4.new_zeros(len(boxes_R4), maps[0].shape[1], side, side)
    for level in range(_POOLED_LEVELS):
        index = (levels_R == level).nonzero()[:, 0]
        regions = torch.cat([image, boxes_R4], 1)[index]
        # in float32, also under autocast: boxes are pixels of large images
        features = roi_align(maps[level].float(), regions, side, 1 / STRIDES[level], aligned=True)
        pooled = pooled.index_put((index,), features)
    return pooled


class BoxHead(nn.Module):
    """One stage: what a region shows, and where its box should be, for all classes alike.

    Args:
        channels: C.
        hidden: features of a region.
        classes: K.
    """

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(NormedConv(channels, channels, 3) for _ in range(4))
        self.hidden = nn.Linear(channels * BOX_SIDE**2, hidden)
        self.classes = nn.Linear(hidden, classes + 1)
        self.deltas = nn.Linear(hidden, 4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the linear layers anew."""
        nn.init.kaiming_uniform_(self.hidden.weight, a=1)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.hidden, self.classes, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, 7, 7) -> logits (R, K + 1), the last for "nothing", and deltas (R, 4)."""
        for conv in self.convs:
            x = F.relu(conv(x))
        x = F.relu(self.hidden(x.flatten(1)))
        return self.classes(x), self.deltas(x)


class MaskHead(nn.Module):
    """A mask of every class for each region.

    Args:
        channels: C.
        classes: K.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(NormedConv(channels, channels, 3) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.masks = nn.Conv2d(channels, classes, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the last two layers anew."""
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.masks.weight, std=0.001)
        for layer in (self.upsample, self.masks):
            nn.init.constant_(layer.get_parameter("bias"), 0.0)

    def forward(self, x: Tensor, classes_R: Tensor) -> Tensor:
        """(R, C, 14, 14) -> (R, 28, 28) logits of each region's own class."""
        for conv in self.convs:
            x = F.relu(conv(x))
        logits_RKyx = self.masks(F.relu(self.upsample(x)))
        return logits_RKyx[torch.arange(len(classes_R), device=classes_R.device), classes_R]


def mask_scores(scores_R: Tensor, masks_Ryx: Tensor) -> Tensor:
    """(R,) scores times how sure the mask is: its mean over the pixels that it holds, 0 where it holds none.

    Args:
        scores_R: of the boxes.
        masks_Ryx: probabilities.
    """
    inside = masks_Ryx > 0.5
    return scores_R * (masks_Ryx * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


def paste(masks_Ryx: Tensor, boxes_R4: Tensor, size: Sequence[int]) -> Tensor:
    """(R, Y, X) bool: masks of regions in an image of Y × X pixels.

    Args:
        masks_Ryx: probabilities within the box.
        boxes_R4: in pixels of that image.
        size: Y and X.
    """
    rows, columns = size
    pasted = torch.zeros(len(masks_Ryx), rows, columns, dtype=torch.bool, device=masks_Ryx.device)
    for index, (mask, box) in enumerate(zip(masks_Ryx, boxes_R4, strict=True)):  # most boxes are small
        left, top = (box[:2].floor() - 1).clamp(min=0).int().tolist()
        right, bottom = (box[2:].ceil() + 1).int().tolist()
        right, bottom = min(right, columns), min(bottom, rows)
        x = (torch.arange(left, right, device=box.device) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(top, bottom, device=box.device) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)
        part = F.grid_sample(mask[None, None].float(), grid[None], align_corners=False)[0, 0]
        pasted[index, top:bottom, left:right] = part >= 0.5
    return pasted
