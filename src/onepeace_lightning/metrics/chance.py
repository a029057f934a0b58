"""Scores of one who has no input.

B = samples of a batch, C = answers or classes, N = choices.
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class CommonestAnswer(Metric):
    """Accuracy of always giving the answer that is right the most often, a fraction.

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

    def compute(self) -> Tensor:
        """0-D float32."""
        return self.right_C.max() / self.samples


class RandomScores(Metric):
    """Mean average precision of scores in random order: the mean frequency of classes that have a sample, a fraction.

    Args:
        classes: how many there are.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts_C: Tensor
    samples: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts_C", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target_BC: Tensor) -> None:
        """Count the classes of samples; ``preds`` are not looked at."""
        self.counts_C += target_BC.long().sum(0)
        self.samples += len(target_BC)

    def compute(self) -> Tensor:
        """0-D float32; NaN where no class has a sample."""
        return self.counts_C[self.counts_C > 0].float().mean() / self.samples


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
