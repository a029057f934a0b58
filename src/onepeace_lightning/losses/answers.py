"""Losses of fine-tuned models that answer: many-label scores, a choice out of several, a box."""

from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss


def soft_score_bce(logits_BC: Tensor, scores_BC: Tensor) -> Tensor:
    """Binary cross-entropy against scores in [0, 1], summed over classes, averaged over samples."""
    return F.binary_cross_entropy_with_logits(logits_BC.float(), scores_BC.float(), reduction="sum") / len(logits_BC)


def choice_hinge(scores_BN: Tensor, target_B: Tensor, margin: float = 1.0) -> Tensor:
    """Σ max(0, margin + s - s_target) over all N choices, the right one included, averaged over samples."""
    right_B1 = scores_BN.float().gather(1, target_B[:, None])
    return (margin + scores_BN.float() - right_B1).clamp(min=0).sum(1).mean()


def box_loss(logits_B4: Tensor, target_B4: Tensor) -> Tensor:
    """L1 and generalised IoU of boxes x0, y0, x1, y1 in [0, 1]; logits become boxes by a sigmoid.

    The L1 distances are summed over coordinates and averaged over samples. 1 - GIoU is averaged over the predictions
    that are boxes (x0 < x1 and y0 < y1); where none is, that part is zero.
    """
    boxes_B4, target_B4 = logits_B4.float().sigmoid(), target_B4.float()
    distance = F.l1_loss(boxes_B4, target_B4, reduction="sum") / len(boxes_B4)
    proper_B = (boxes_B4[:, :2] < boxes_B4[:, 2:]).all(1)
    overlap = generalized_box_iou_loss(boxes_B4[proper_B], target_B4[proper_B], reduction="sum")
    return distance + overlap / proper_B.sum().clamp(min=1)
