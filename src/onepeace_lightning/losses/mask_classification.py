"""The mask-classification loss: queries are matched to the classes of a picture, then told apart (arXiv 2112.01527).

Every class that a picture shows is one mask. The cheapest one-to-one matching of masks to queries, by class, binary
cross-entropy and dice, decides what each query should have said; the others should have said "none". Every layer's
prediction is matched and judged by itself.

Pixels without a class count for nothing. Large pictures are compared at some of their pixels: in matching at random
ones, in the loss mostly at those of which the mask is least sure, as PointRend draws them (arXiv 1912.08193).

B = pictures, Q = queries, K = classes, S = side of a picture, P = pixels that are compared, M = matched masks of all
layers, Y and X = rows and columns of predicted masks.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.models.heads.mask_decoder import MaskPrediction
from onepeace_lightning.models.heads.segmentation import UNLABELLED

WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
NO_OBJECT = 0.1
"""Weight of the queries that should say "none", among those of the class loss."""

POINTS = 112 * 112
_OVERSAMPLE, _UNSURE = 3, 0.75
"""Candidates drawn for each point, and share of the points taken for how unsure the mask is there."""


def mask_classification_loss(
    predictions: Sequence[MaskPrediction], labels_BSS: Tensor, *, points: int = POINTS
) -> dict[str, Tensor]:
    """Weighted losses by name, each summed over the layers' predictions.

    ``class`` is cross-entropy, averaged over queries by weight; a picture without any labelled pixel is left out.
    ``mask`` (binary cross-entropy) and ``dice`` are averaged over the masks in the pictures of all ranks.

    Args:
        predictions: of each layer.
        labels_BSS: class indices, ``UNLABELLED`` where there is none.
        points: pixels that are compared in each mask; all, where a picture has no more.

    Raises:
        FloatingPointError: a prediction is infinite or not a number.
    """
    with torch.autocast(labels_BSS.device.type, enabled=False):
        classes_LBQK = torch.stack([part.classes_BQK for part in predictions]).float()
        masks_LBQYX = torch.stack([part.masks_BQYX for part in predictions]).float()
        layer, picture, query, label = match(classes_LBQK, masks_LBQYX, labels_BSS, points=points)
        targets_LBQ = torch.full(classes_LBQK.shape[:3], classes_LBQK.shape[-1] - 1, device=labels_BSS.device)
        targets_LBQ[layer, picture, query] = label
        is_empty_B = (labels_BSS == UNLABELLED).flatten(1).all(1)
        losses = {
            "class": class_loss(classes_LBQK, targets_LBQ, is_empty_B),
            **mask_losses(masks_LBQYX[layer, picture, query], picture, label, labels_BSS, layers=len(predictions),
                          points=points),
        }  # fmt: skip
    return {name: WEIGHTS[name] * loss for name, loss in losses.items()}


@torch.no_grad()
def match(
    classes_LBQK: Tensor, masks_LBQYX: Tensor, labels_BSS: Tensor, *, points: int = POINTS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cheapest matching of every layer's queries to the classes of each picture.

    Args:
        classes_LBQK: (L, B, Q, K + 1) logits of L layers.
        masks_LBQYX: logits of each pixel.
        labels_BSS: class indices.
        points: pixels that are compared.

    Returns:
        (M,) layer, picture, query and class of each matched pair. Where a picture has more classes than there are
        queries, as many as there are.

    Raises:
        FloatingPointError: a prediction is infinite or not a number.
    """
    cost_LBQK = matching_cost(classes_LBQK, masks_LBQYX, labels_BSS, points=points)
    if not cost_LBQK.isfinite().all():
        raise FloatingPointError("masks or classes are not finite: the model has diverged; lower the learning rate")
    shown = torch.zeros(len(labels_BSS), UNLABELLED + 1, dtype=torch.bool, device=labels_BSS.device)
    shown.scatter_(1, labels_BSS.flatten(1).long(), True)
    present_BK = shown[:, : cost_LBQK.shape[-1]].cpu().numpy()
    pairs = []
    for layer, costs in enumerate(cost_LBQK.cpu().numpy()):
        for picture, (cost_QK, present_K) in enumerate(zip(costs, present_BK, strict=True)):
            labels = present_K.nonzero()[0]
            queries, columns = linear_sum_assignment(cost_QK[:, labels])
            pairs += [(layer, picture, query, label) for query, label in zip(queries, labels[columns], strict=True)]
    pairs_M4 = torch.tensor(pairs, dtype=torch.long).reshape(-1, 4).to(labels_BSS.device)
    return pairs_M4[:, 0], pairs_M4[:, 1], pairs_M4[:, 2], pairs_M4[:, 3]


def matching_cost(classes_LBQK: Tensor, masks_LBQYX: Tensor, labels_BSS: Tensor, *, points: int = POINTS) -> Tensor:
    """(L, B, Q, K) what it costs to take a query for a class of a picture; see ``match``."""
    layers, pictures = classes_LBQK.shape[:2]
    labels_BP, index_BP = labels_BSS.flatten(1), None
    if labels_BP.shape[1] > points:
        index_BP = torch.randint(labels_BP.shape[1], (pictures, points), device=labels_BSS.device)
        labels_BP = labels_BP.gather(1, index_BP)
        index_BP = index_BP.repeat(layers, 1)
    x_LBQP = at_pixels(masks_LBQYX.flatten(0, 1), labels_BSS.shape[-1], index_BP).unflatten(0, (layers, pictures))
    target_BPK = _one_hot(labels_BP, classes_LBQK.shape[-1] - 1).float()
    known_BP1 = (labels_BP != UNLABELLED).float()[..., None]
    inside_LBQP = x_LBQP.sigmoid()
    # -log σ(x) in the mask and -log σ(-x) outside of it, which differ by x.
    entropy = (F.softplus(x_LBQP) @ known_BP1 - x_LBQP @ target_BPK) / known_BP1.sum(1, keepdim=True).clamp(min=1)
    shared = inside_LBQP @ target_BPK
    dice = 1 - (2 * shared + 1) / (inside_LBQP @ known_BP1 + target_BPK.sum(1, keepdim=True) + 1)
    probability = classes_LBQK.softmax(-1)[..., :-1]
    return WEIGHTS["mask"] * entropy + WEIGHTS["dice"] * dice - WEIGHTS["class"] * probability


def class_loss(classes_LBQK: Tensor, targets_LBQ: Tensor, is_empty_B: Tensor) -> Tensor:
    """Cross-entropy of what each query should say, averaged by weight within each layer, summed over layers."""
    weights_K = classes_LBQK.new_ones(classes_LBQK.shape[-1])
    weights_K[-1] = NO_OBJECT
    nll_LBQ = F.cross_entropy(classes_LBQK.flatten(0, 2), targets_LBQ.flatten(), reduction="none").view_as(targets_LBQ)
    weights_LBQ = weights_K[targets_LBQ] * ~is_empty_B[:, None]
    total_L = weights_LBQ.sum((1, 2)).clamp(min=torch.finfo(weights_K.dtype).tiny)
    return ((weights_LBQ * nll_LBQ).sum((1, 2)) / total_L).sum()


def mask_losses(
    masks_MYX: Tensor, picture_M: Tensor, label_M: Tensor, labels_BSS: Tensor, *, layers: int, points: int
) -> dict[str, Tensor]:
    """Binary cross-entropy and dice of matched masks, averaged over a layer's masks, summed over layers.

    Args:
        masks_MYX: logits.
        picture_M: which picture each is in.
        label_M: which class it should show.
        labels_BSS: class indices.
        layers: that the masks are of.
        points: pixels that are compared.
    """
    side = labels_BSS.shape[-1]
    index_MP = unsure_pixels(masks_MYX.detach(), side, points) if side**2 > points else None
    x_MP = at_pixels(masks_MYX[:, None], side, index_MP)[:, 0]
    labels_BP = labels_BSS.flatten(1)
    labels_MP = labels_BP[picture_M] if index_MP is None else labels_BP[picture_M[:, None], index_MP]
    known_MP = (labels_MP != UNLABELLED).float()
    target_MP = (labels_MP == label_M[:, None]).float()
    entropy_MP = F.binary_cross_entropy_with_logits(x_MP, target_MP, reduction="none") * known_MP
    inside_MP = x_MP.sigmoid() * known_MP
    dice_M = 1 - (2 * (inside_MP * target_MP).sum(1) + 1) / (inside_MP.sum(1) + target_MP.sum(1) + 1)
    masks = _mean_over_ranks(x_MP.new_tensor(len(masks_MYX) / layers)).clamp(min=1)
    return {"mask": (entropy_MP.sum(1) / known_MP.sum(1).clamp(min=1)).sum() / masks, "dice": dice_M.sum() / masks}


@torch.no_grad()
def unsure_pixels(masks_MYX: Tensor, side: int, points: int) -> Tensor:
    """(M, P) indices of pixels of S × S pictures: most of those that a mask is least sure of, the rest at random."""
    masks, device = len(masks_MYX), masks_MYX.device
    chosen = round(points * _UNSURE)
    candidates = torch.randint(side**2, (masks, points * _OVERSAMPLE), device=device)
    sureness = at_pixels(masks_MYX[:, None], side, candidates)[:, 0].abs()
    unsure = candidates.gather(1, sureness.topk(chosen, largest=False).indices)
    return torch.cat([unsure, torch.randint(side**2, (masks, points - chosen), device=device)], 1)


def at_pixels(masks_NCYX: Tensor, side: int, index_NP: Tensor | None) -> Tensor:
    """(N, C, P) masks at pixels of S × S pictures, interpolated linearly.

    Args:
        masks_NCYX: logits.
        side: S.
        index_NP: row · S + column of the pixels; None: all of them, in this order.
    """
    if index_NP is None:
        return F.interpolate(masks_NCYX, size=(side, side), mode="bilinear", align_corners=False).flatten(2)
    # From -1 to 1 over the picture, a pixel's place being its centre; the border's pixels take the border's values.
    place_NP2 = torch.stack([index_NP % side, index_NP // side], -1).add(0.5).mul(2 / side).sub(1)
    sampled = F.grid_sample(
        masks_NCYX, place_NP2[:, None].to(masks_NCYX.dtype), padding_mode="border", align_corners=False
    )
    return sampled[:, :, 0]


def _one_hot(labels_BP: Tensor, classes: int) -> Tensor:
    """(B, P, K) bool; nowhere true where there is no class."""
    return labels_BP[..., None] == torch.arange(classes, device=labels_BP.device)


def _mean_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
