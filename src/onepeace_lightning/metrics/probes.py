"""What frozen embeddings know of classes: nearest neighbours and a linear classifier on top.

N = training samples, M = measured samples, d = embedding width, C = classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multilabel_average_precision

AT_ONCE = 1024
"""Bounds the matrix of cosines to 1024 × N floats."""


def knn_scores(train: Tensor, targets: Tensor, queries: Tensor, *, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Class scores by a vote of the k nearest training samples, weighted by exp(cosine / temperature).

    The vote is that of arXiv 1805.01978 (section 3.4), usual for representations learned without labels.

    Args:
        train: (N, d) of unit length.
        targets: (N, C) 0 or 1.
        queries: (M, d) of unit length.
        k: neighbours; all of them where there are fewer.
        temperature: of the weights.

    Returns:
        (M, C).
    """
    votes = []
    for part in queries.split(AT_ONCE):
        cosines, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        weights = ((cosines - cosines[:, :1]) / temperature).exp()
        votes.append((weights[..., None] * targets[nearest].to(weights)).sum(1))
    return torch.cat(votes)


def linear_scores(
    train: Tensor, targets: Tensor, queries: Tensor, *, several: bool = False, decay: float = 1e-4, steps: int = 100
) -> Tensor:
    """Logits of a logistic regression trained to its optimum by L-BFGS; no randomness is in it.

    Args:
        train: (N, d).
        targets: (N, C) 0 or 1.
        queries: (M, d).
        several: a sample may be in several classes (one sigmoid each instead of a softmax).
        decay: weight of the squared weights beside the mean loss.
        steps: iterations at most.

    Returns:
        (M, C).
    """
    mean, scale = train.mean(0), train.std(0, correction=0).clamp(min=1e-6)
    with torch.inference_mode(False):  # what is made in inference mode has no gradient
        inputs, wanted = (train - mean) / scale, targets.to(torch.float, copy=True)
        weight = torch.zeros(targets.shape[1], train.shape[1], device=train.device, requires_grad=True)
        bias = torch.zeros(targets.shape[1], device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(inputs, weight, bias)
        if several:
            value = F.binary_cross_entropy_with_logits(logits, wanted)
        else:
            value = F.cross_entropy(logits, wanted.argmax(1))
        value = value + decay * weight.square().sum()
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(train.device.type, enabled=False):
        optimizer.step(loss)
    return F.linear((queries - mean) / scale, weight.detach(), bias.detach())


def class_score(scores: Tensor, targets: Tensor, *, several: bool) -> Tensor:
    """Accuracy or, where a sample may be in several classes, the mean average precision over classes; in percent.

    Args:
        scores: (M, C), greater where a class is likelier.
        targets: (M, C) 0 or 1.
        several: which of the two.
    """
    if several:
        # Average precision depends on the order alone, and logits are welcome to it.
        found = targets.any(0)
        return 100 * multilabel_average_precision(
            scores[:, found].sigmoid(), targets[:, found].int(), int(found.sum()), average="macro"
        )
    return 100 * (scores.argmax(1) == targets.argmax(1)).float().mean()


def chance_score(train: Tensor, targets: Tensor, *, several: bool) -> Tensor:
    """The same score of one who has no input: always the commonest training class, or any order; in percent.

    Args:
        train: (N, C) 0 or 1.
        targets: (M, C) 0 or 1.
        several: which of the two.
    """
    if several:
        found = targets.any(0)
        return 100 * targets[:, found].float().mean()
    return 100 * targets[:, int(train.float().mean(0).argmax())].float().mean()
