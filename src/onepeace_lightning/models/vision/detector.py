"""Object detection and instance segmentation: a Cascade Mask R-CNN on the image branch (paper appendix; COCO).

B = images, S = side of the model's square, K = classes, P = proposals, M = instances found in an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from onepeace_lightning.models.config import ModelConfig, at_least, raise_all
from onepeace_lightning.models.vision.boxes import decode, has_extent, scaled
from onepeace_lightning.models.vision.cascade import (
    BOX_SIDE,
    MASK_SIDE,
    STAGE_WEIGHTS,
    BoxHead,
    MaskHead,
    mask_scores,
    paste,
    pool,
)
from onepeace_lightning.models.vision.detection_trunk import DetectionTrunk
from onepeace_lightning.models.vision.proposals import ProposalHead, propose
from onepeace_lightning.models.vision.pyramid import SimplePyramid

PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)
"""Mean of each colour, from 0 to 255."""
PIXEL_STD = (68.5005327, 66.6321579, 70.32316305)
"""Standard deviation of each colour."""

PROPOSALS = 1000
"""The most proposals of a level, and of an image."""
INSTANCES = 100
"""The most instances of an image."""
OVERLAP = 0.6
"""Overlap with a better box of the same class from which one is dropped."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What there is on top of the image branch.

    Attributes:
        classes: K.
        window: side of an attention window in patches, and of the grid that the relative biases were pretrained for.
        global_blocks: blocks that attend to the whole image; None: every fourth.
        channels: of the pyramid.
        hidden: features of a region.
    """

    classes: int
    window: int = 16
    global_blocks: tuple[int, ...] | None = None
    channels: int = 256
    hidden: int = 1024

    def __post_init__(self) -> None:
        raise_all("detector", at_least(self, classes=1, window=1, channels=1, hidden=1))


@dataclass(frozen=True)
class Instances:
    """What is found in one image, best boxes first.

    Attributes:
        boxes: (M, 4) pixels of the image that the model was given.
        scores: (M,) probability of the class.
        classes: (M,) indices.
        masks: (M, 28, 28) probabilities within the box.
        mask_scores: (M,) scores times how sure the mask is: published mask AP ranks by them, box AP by ``scores``.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor
    mask_scores: Tensor

    def where(self, kept: Tensor) -> "Instances":
        """Some of them; ``kept`` is (M,) bool."""
        return Instances(*(getattr(self, part.name)[kept] for part in fields(self)))

    def at(self, source: Sequence[int], target: Sequence[int]) -> "Instances":
        """The same in an image of another size, without boxes that have no extent there.

        Args:
            source: rows and columns of the image that the model was given.
            target: of the one that is asked for.
        """
        boxes = clip_boxes_to_image(scaled(self.boxes, source, target), (target[0], target[1]))
        kept = has_extent(boxes)
        return Instances(boxes[kept], self.scores[kept], self.classes[kept], self.masks[kept], self.mask_scores[kept])

    def pasted(self, size: Sequence[int]) -> Tensor:
        """(M, Y, X) bool masks in the image of ``size`` that the boxes are in."""
        return paste(self.masks, self.boxes, size)


class Detector(nn.Module):
    """Trunk, pyramid, region proposals, three box heads and a mask head.

    Args:
        config: sizes of the image branch; ``image_size`` is S.
        head: sizes of the rest.
    """

    def __init__(self, config: ModelConfig, head: DetectorConfig) -> None:
        super().__init__()
        self.config, self.head_config = config, head
        depth = config.encoder.depth
        chosen = tuple(range(3, depth, 4)) if head.global_blocks is None else head.global_blocks
        self.backbone = DetectionTrunk(config, head.window, chosen)
        self.pyramid = SimplePyramid(config.encoder.width, head.channels)
        self.proposals = ProposalHead(head.channels)
        self.stages = nn.ModuleList(BoxHead(head.channels, head.hidden, head.classes) for _ in STAGE_WEIGHTS)
        self.masks = MaskHead(head.channels, head.classes)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that do not decay in published training: the learned positions and LayerNorms.

        Biases, γ and the norms of pyramid and heads decay.
        """
        norms = {name for name, module in self.named_modules() if isinstance(module, nn.LayerNorm)}
        return {
            name
            for name, _ in self.named_parameters()
            if name.rpartition(".")[0] in norms or name == "backbone.adapters.image.positions"
        }

    @property
    def image_size(self) -> int:
        """S."""
        return self.backbone.image_size

    def pixels(self, images: Sequence[Tensor]) -> Tensor:
        """(B, 3, S, S) normalised images, zero to the right and below of those that are smaller.

        Args:
            images: (3, Y, X) uint8 RGB, of at most S rows and columns.

        Raises:
            ValueError: an image is larger.
        """
        side = self.image_size
        if large := [tuple(image.shape[1:]) for image in images if max(image.shape[1:]) > side]:
            raise ValueError(f"images of {large[0]} pixels; the model takes at most {side} × {side}: resize them")
        reference = self.backbone.embedding.positions
        mean, std = (reference.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
        batch = reference.new_zeros(len(images), 3, side, side)
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = (image.to(reference) - mean) / std
        return batch

    def maps(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid's five maps of a batch of images."""
        return self.pyramid(self.backbone(self.pixels(images)))

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> list[Instances]:
        """What each image shows.

        Args:
            images: see ``pixels``.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        maps = self.maps(images)
        logits, deltas = self.proposals(maps)
        proposals = propose(logits, deltas, sizes, before=PROPOSALS, after=PROPOSALS)
        boxes, probabilities = self.refine(maps, [part.boxes for part in proposals], sizes)
        found = [best(*part) for part in zip(boxes, probabilities, strict=True)]
        pooled = pool(maps, [part[0] for part in found], MASK_SIDE)
        masks = self.masks(pooled, torch.cat([part[2] for part in found])).float().sigmoid()
        return [
            Instances(boxes_M4, scores_M, classes_M, masks_M, mask_scores(scores_M, masks_M))
            for (boxes_M4, scores_M, classes_M), masks_M in zip(
                found, masks.split([len(part[0]) for part in found]), strict=True
            )
        ]

    def refine(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[Sequence[int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes (P, 4) after the last stage and probabilities (P, K + 1), the mean over stages, of each image."""
        boxes, probabilities = list(boxes), []
        for index in range(len(self.stages)):
            logits, _, moved = self.stage(index, maps, boxes)
            boxes = clipped(moved, sizes)
            probabilities.append(logits.float().softmax(-1))
        mean_RK = torch.stack(probabilities).mean(0)
        return boxes, list(mean_RK.split([len(part) for part in boxes]))

    def stage(
        self, index: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Logits (R, K + 1) and deltas (R, 4) of all images' regions, and each image's boxes (P, 4) after the move."""
        logits, deltas = self.stages[index](pool(maps, boxes, BOX_SIDE))
        moved = decode(torch.cat(list(boxes)), deltas.detach(), STAGE_WEIGHTS[index])
        return logits, deltas, moved.split([len(part) for part in boxes])


def clipped(boxes: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Each image's boxes, within its rows and columns."""
    return [clip_boxes_to_image(part, (size[0], size[1])) for part, size in zip(boxes, sizes, strict=True)]


def best(boxes_P4: Tensor, probabilities_PK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (M, 4), scores (M,) and classes (M,) of the best instances; a region may count for several classes.

    Args:
        boxes_P4: of one image.
        probabilities_PK: (P, K + 1), the last of "nothing".

    Raises:
        FloatingPointError: a prediction is infinite or not a number.
    """
    if not (boxes_P4.isfinite().all() and probabilities_PK.isfinite().all()):
        raise FloatingPointError("boxes or classes are not finite: the model has diverged; lower the learning rate")
    region, classes = (probabilities_PK[:, :-1] > 0).nonzero(as_tuple=True)
    scores, boxes = probabilities_PK[region, classes], boxes_P4[region]
    kept = batched_nms(boxes, scores, classes, OVERLAP)[:INSTANCES]
    return boxes[kept], scores[kept], classes[kept]
