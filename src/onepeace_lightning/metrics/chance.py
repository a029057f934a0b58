"""Scores of one who has no input."""

import torch
from torch import Tensor
from torchmetrics import Metric


class CommonestClass(Metric):
    """Accuracy of always naming the commonest class of the samples, a fraction.

    Args:
        classes: how many there are.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts_C: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("counts_C", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target_B: Tensor) -> None:
        """Count the right classes; ``preds`` are not looked at."""
        self.counts_C += torch.bincount(target_B, minlength=self.classes)

    def compute(self) -> Tensor:
        """0-D float32."""
        return self.counts_C.max() / self.counts_C.sum()
