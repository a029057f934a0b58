"""How well boxes are found.

B = boxes of a batch; a box is x0, y0, x1, y1 in any unit.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

THRESHOLD = 0.5
"""Overlap from which a box counts as found."""


def overlap(predicted_B4: Tensor, target_B4: Tensor) -> Tensor:
    """(B,) float32 intersection over union of each box with its own target; 0 where the prediction is no box."""
    predicted_B4, target_B4 = predicted_B4.float(), target_B4.float()
    iou_B = box_iou(predicted_B4, target_B4).diagonal()
    return torch.where((predicted_B4[:, :2] < predicted_B4[:, 2:]).all(1), iou_B, torch.zeros_like(iou_B))


class BoxAccuracy(Metric):
    """Fraction of boxes that overlap their targets by at least half, and mean overlap.

    Args:
        **kwargs: see ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    found: Tensor
    overlaps: Tensor
    boxes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("found", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("overlaps", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("boxes", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted_B4: Tensor, target_B4: Tensor) -> None:
        """Add boxes.

        Raises:
            ValueError: shapes disagree, or a box holds NaN or infinity.
        """
        if predicted_B4.shape != target_B4.shape or predicted_B4.shape[1:] != (4,):
            raise ValueError(f"boxes {tuple(predicted_B4.shape)} for {tuple(target_B4.shape)}; give (B, 4) for both")
        if not (predicted_B4.isfinite().all() and target_B4.isfinite().all()):
            raise ValueError("boxes are not finite: the model has diverged; lower the learning rate")
        iou_B = overlap(predicted_B4, target_B4)
        self.found += (iou_B >= THRESHOLD).sum()
        self.overlaps += iou_B.sum()
        self.boxes += len(iou_B)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy@0.5`` and ``mean_IoU``, fractions from 0 to 1.

        Raises:
            ValueError: no box was given.
        """
        if self.boxes == 0:
            raise ValueError("no box reached update(); check the validation data and limit_val_batches")
        return {"accuracy@0.5": self.found / self.boxes, "mean_IoU": self.overlaps / self.boxes}
