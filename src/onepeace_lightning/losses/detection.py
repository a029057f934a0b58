"""Training losses of the detector: proposals, three cascade stages, masks (arXiv 1506.01497, 1712.00726, 1703.06870).

G = true instances of an image, A = anchors, R = regions of all images, K = classes, Y and X = rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

from onepeace_lightning.models.vision.boxes import encode, has_extent
from onepeace_lightning.models.vision.cascade import MASK_SIDE, STAGE_WEIGHTS, pool
from onepeace_lightning.models.vision.detector import Detector, clipped
from onepeace_lightning.models.vision.proposals import WEIGHTS, Proposals, flat, level_anchors, propose

ANCHOR_NEGATIVE, ANCHOR_POSITIVE = 0.3, 0.7
"""Overlap below which an anchor is background, and from which it is an object."""
ANCHORS, ANCHORS_POSITIVE = 256, 0.5
"""Anchors of an image that count, and the most of them, as a fraction, that are objects."""

STAGE_POSITIVE = (0.5, 0.6, 0.7)
"""Overlap from which a region shows an instance, in each stage."""
REGIONS, REGIONS_POSITIVE = 512, 0.25
"""Regions of an image that count in the stages, and the most of them, as a fraction, that show an instance at first."""

PROPOSALS_BEFORE, PROPOSALS_AFTER = 2000, 1000
"""The most proposals of a level before near duplicates are dropped, and of an image after, in training."""


@dataclass(frozen=True)
class Truth:
    """What an image shows.

    Attributes:
        boxes: (G, 4) pixels, each with an extent.
        classes: (G,) int64 indices.
        masks: (G, Y, X) bool.
    """

    boxes: Tensor
    classes: Tensor
    masks: Tensor


def detection_losses(
    detector: Detector, images: Sequence[Tensor], truths: Sequence[Truth], *, count: int = REGIONS
) -> dict[str, Tensor]:
    """Losses by name, to be added up.

    ``objectness`` and ``proposals`` are of the proposals, ``classes_1`` … and ``boxes_1`` … of the stages, ``masks`` of
    the mask head. An image without instances teaches what is background.

    Args:
        detector: in training mode.
        images: (3, Y, X) uint8, see ``Detector.pixels``.
        truths: one for each image.
        count: regions of an image that count in the stages.

    Raises:
        FloatingPointError: a prediction is infinite or not a number.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    maps = detector.maps(images)
    logits, deltas = detector.proposals(maps)
    losses = proposal_losses(logits, deltas, truths)
    proposals = propose(logits, deltas, sizes, before=PROPOSALS_BEFORE, after=PROPOSALS_AFTER)
    regions = [sample_regions(part, truth, count) for part, truth in zip(proposals, truths, strict=True)]
    losses |= cascade_losses(detector, maps, regions, truths, sizes)
    losses["masks"] = mask_loss(detector, maps, regions, truths)
    return losses


def proposal_losses(logits: Sequence[Tensor], deltas: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
    """Binary cross-entropy and L1 of a sample of anchors, over the sample's size.

    Args:
        logits: (B, 3, Y, X) of each level.
        deltas: (B, 12, Y, X) of each level.
        truths: of each image.
    """
    levels = [level_anchors(part.shape[2:], level, part.device) for level, part in enumerate(logits)]
    anchors_A4 = torch.cat(levels)
    logits_BA = torch.cat([flat(part, 1)[..., 0] for part in logits], 1)
    deltas_BA4 = torch.cat([flat(part, 4) for part in deltas], 1)
    objectness, boxes = logits_BA.new_zeros(()), logits_BA.new_zeros(())
    for logits_A, deltas_A4, truth in zip(logits_BA, deltas_BA4, truths, strict=True):
        labels_A, instance_A = label_anchors(truth.boxes, anchors_A4)
        positive, negative = sample(labels_A, ANCHORS, ANCHORS_POSITIVE)
        chosen = torch.cat([positive, negative])
        objectness = objectness + F.binary_cross_entropy_with_logits(
            logits_A[chosen], labels_A[chosen].float(), reduction="sum"
        )
        targets = encode(anchors_A4[positive], truth.boxes[instance_A[positive]], WEIGHTS)
        boxes = boxes + F.l1_loss(deltas_A4[positive], targets, reduction="sum")
    count = ANCHORS * len(truths)
    return {"objectness": objectness / count, "proposals": boxes / count}


def label_anchors(boxes_G4: Tensor, anchors_A4: Tensor) -> tuple[Tensor, Tensor]:
    """(A,) 1 for an object, 0 for background, -1 for neither; and (A,) the instance that each overlaps most.

    The anchors that overlap an instance most are objects even where they overlap it little.
    """
    if not len(boxes_G4):
        nothing = torch.zeros(len(anchors_A4), dtype=torch.int64, device=anchors_A4.device)
        return nothing, nothing
    overlaps_GA = box_iou(boxes_G4, anchors_A4)
    best_A, instance_A = overlaps_GA.max(0)
    labels_A = torch.full_like(instance_A, -1)
    labels_A[best_A < ANCHOR_NEGATIVE] = 0
    labels_A[best_A >= ANCHOR_POSITIVE] = 1
    best_G1 = overlaps_GA.amax(1, keepdim=True)
    labels_A[((overlaps_GA == best_G1) & (best_G1 > 0)).any(0)] = 1
    return labels_A, instance_A


def sample(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Random indices of labels above 0 and of labels 0, together at most ``count``."""
    positive, negative = (labels > 0).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
    most = min(int(count * positive_fraction), len(positive))
    positive = positive[torch.randperm(len(positive), device=labels.device)[:most]]
    return positive, negative[torch.randperm(len(negative), device=labels.device)[: count - most]]


def match_regions(boxes: Tensor, truth: Truth, threshold: float) -> tuple[Tensor, Tensor]:
    """(r,) whether each region shows an instance, and (r,) the one that it overlaps most."""
    if not len(truth.boxes):
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return nothing.bool(), nothing
    overlap, instance = box_iou(truth.boxes, boxes).max(0)
    return overlap >= threshold, instance


def sample_regions(proposals: Proposals, truth: Truth, count: int = REGIONS) -> Tensor:
    """(r, 4) proposals and true boxes that count in training, those that show an instance first."""
    boxes = torch.cat([proposals.boxes, truth.boxes])
    shows, _ = match_regions(boxes, truth, STAGE_POSITIVE[0])
    return boxes[torch.cat(sample(shows.long(), count, REGIONS_POSITIVE))]


def cascade_losses(
    detector: Detector,
    maps: Sequence[Tensor],
    regions: Sequence[Tensor],
    truths: Sequence[Truth],
    sizes: Sequence[Sequence[int]],
) -> dict[str, Tensor]:
    """Cross-entropy and L1 of each stage, over its regions; the stages' gradients to the maps are averaged.

    Args:
        detector: whose stages are trained.
        maps: of the pyramid.
        regions: (r, 4) of each image.
        truths: of each image.
        sizes: rows and columns of each image.
    """
    count = len(detector.stages)
    shared = [part.detach() + (part - part.detach()) / count for part in maps]
    losses = {}
    boxes = list(regions)
    for index, threshold in enumerate(STAGE_POSITIVE):
        classes_R, targets_R4 = _targets(boxes, truths, threshold, detector.head_config.classes)
        logits, deltas, moved = detector.stage(index, shared, boxes)
        shows = classes_R < detector.head_config.classes
        wanted = encode(torch.cat(boxes)[shows], targets_R4[shows], STAGE_WEIGHTS[index])
        total = max(1, len(classes_R))
        losses[f"classes_{index + 1}"] = F.cross_entropy(logits.float(), classes_R, reduction="sum") / total
        losses[f"boxes_{index + 1}"] = F.l1_loss(deltas[shows].float(), wanted, reduction="sum") / total
        boxes = [part[has_extent(part)] for part in clipped(moved, sizes)]
    return losses


def _targets(
    boxes: Sequence[Tensor], truths: Sequence[Truth], threshold: float, background: int
) -> tuple[Tensor, Tensor]:
    """(R,) classes and (R, 4) true boxes of all images' regions; those of background are the regions themselves."""
    classes, targets = [], []
    for part, truth in zip(boxes, truths, strict=True):
        shows, instance = match_regions(part, truth, threshold)
        labels, target = torch.full_like(instance, background), part.clone()
        labels[shows] = truth.classes[instance[shows]]
        target[shows] = truth.boxes[instance[shows]]
        classes.append(labels)
        targets.append(target)
    return torch.cat(classes), torch.cat(targets)


def mask_loss(detector: Detector, maps: Sequence[Tensor], regions: Sequence[Tensor], truths: Sequence[Truth]) -> Tensor:
    """Binary cross-entropy of each pixel of the masks of regions that show an instance; 0 where none does."""
    boxes, classes, targets = [], [], []
    for part, truth in zip(regions, truths, strict=True):
        shows, instance = match_regions(part, truth, STAGE_POSITIVE[0])
        boxes.append(part[shows])
        classes.append(truth.classes[instance[shows]])
        targets.append(mask_targets(truth.masks, instance[shows], part[shows]))
    logits = detector.masks(pool(maps, boxes, MASK_SIDE), torch.cat(classes)).float()
    # A sum and not a mean, which has no value over nothing.
    loss = F.binary_cross_entropy_with_logits(logits, torch.cat(targets), reduction="sum")
    return loss / max(1, logits.numel())


def mask_targets(masks_GYX: Tensor, instance: Tensor, boxes: Tensor) -> Tensor:
    """(r, 28, 28) 0 or 1: the part of an instance's mask within a box.

    Args:
        masks_GYX: of an image's instances.
        instance: (r,) which.
        boxes: (r, 4) pixels.
    """
    side = 2 * MASK_SIDE
    if not len(boxes):
        return boxes.new_zeros(0, side, side)
    shown, index = instance.unique(return_inverse=True)
    boxes_r5 = torch.cat([index[:, None].to(boxes), boxes], 1)
    masks = masks_GYX[shown][:, None].to(boxes)
    return (roi_align(masks, boxes_r5, side, aligned=True)[:, 0] >= 0.5).to(boxes)
