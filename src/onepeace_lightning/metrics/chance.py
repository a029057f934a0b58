"""Scores of one who has no input.

B = samples of a batch, C = answers or classes, N = choices.
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class _Rightness(Metric):
    """How often each answer is right.

    Args:
        answers: how many there are.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    right_C: Tensor
    samples: Tensor

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.add_state("right_C", torch.zeros(answers), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count right answers.

        Args:
            preds: not looked at.
            target: (B,) the right answers' indices, or (B, C) how right each answer is.
        """
        one_hot = target.ndim == 1
        counts_C = torch.bincount(target, minlength=len(self.right_C)) if one_hot else target.float().sum(0)
        self.right_C += counts_C
        self.samples += len(target)


class CommonestAnswer(_Rightness):
    """Accuracy of always giving the answer that is right the most often, a fraction."""

    def compute(self) -> Tensor:
        """0-D float32."""
        return self.right_C.max() / self.samples


class RandomScores(_Rightness):
    """Mean average precision of random scores: the mean frequency of classes that have a sample, a fraction."""

    def compute(self) -> Tensor:
        """0-D float32; NaN where no class has a sample."""
        return self.right_C[self.right_C > 0].mean() / self.samples


class RandomChoice(Metric):
    """Accuracy of choosing at random, a fraction."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    expected: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("expected", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores_BN: Tensor) -> None:
        """Count choices; the scores are not looked at."""
        samples, choices = scores_BN.shape
        self.expected += samples / choices
        self.samples += samples

    def compute(self) -> Tensor:
        """0-D float32."""
        return self.expected / self.samples
