"""The mask-classification loss: queries are matched to the classes of an image, then told apart (arXiv 2112.01527).

Every class that an image shows is one mask; pixels without a class are outside of all masks. The cheapest one-to-one
matching of masks to queries, by class, binary cross-entropy and dice, decides what each query should have said; the
others should have said "none". Every layer's prediction is matched and judged by itself.

Masks are compared at points anywhere in the image: in matching at the same random ones for all masks of an image, in
the loss mostly where the prediction is least sure, as PointRend draws them (arXiv 1912.08193).

B = images, L = layers, Q = queries, K = classes, S = side of an image, P = points, M = matched masks of all layers,
Y and X = rows and columns of predicted masks.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.models.vision.mask_decoder import MaskPrediction
from onepeace_lightning.models.vision.segmentation import UNLABELLED

WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
NO_OBJECT = 0.1
"""Weight of the queries that should say "none", among those of the class loss."""

POINTS = 112 * 112
_OVERSAMPLE, _UNSURE = 3, 0.75
"""Candidates drawn for each point, and fraction of the points taken for how unsure the mask is there."""


def mask_classification_loss(
    predictions: Sequence[MaskPrediction], labels_BSS: Tensor, *, points: int = POINTS
) -> dict[str, Tensor]:
    """Weighted losses by name, each summed over the layers' predictions.

    ``class`` is cross-entropy, averaged over queries by weight. ``mask`` (binary cross-entropy) and ``dice`` are
    averaged over the masks in the images of all ranks.

    Args:
        predictions: of each layer.
        labels_BSS: class indices, ``UNLABELLED`` where there is none.
        points: at which each mask is compared.

    Raises:
        FloatingPointError: a prediction is infinite or not a number.
    """
    with torch.autocast(labels_BSS.device.type, enabled=False):
        classes_LBQK = torch.stack([part.classes_BQK for part in predictions]).float()
        masks_LBQYX = torch.stack([part.masks_BQYX for part in predictions]).float()
        layer, image, query, label = match(classes_LBQK, masks_LBQYX, labels_BSS, points=points)
        targets_LBQ = torch.full(classes_LBQK.shape[:3], classes_LBQK.shape[-1] - 1, device=labels_BSS.device)
        targets_LBQ[layer, image, query] = label
        masks_MYX = masks_LBQYX[layer, image, query]
        at_MP2 = unsure_points(masks_MYX.detach(), points)
        target_MP = labels_at_points(labels_BSS, image, at_MP2, label[:, None])[:, :, 0]
        losses = {
            "class": class_loss(classes_LBQK, targets_LBQ),
            **mask_losses(at_points(masks_MYX[:, None], at_MP2)[:, 0], target_MP, layers=len(predictions)),
        }
    return {name: WEIGHTS[name] * loss for name, loss in losses.items()}


@torch.no_grad()
def match(
    classes_LBQK: Tensor, masks_LBQYX: Tensor, labels_BSS: Tensor, *, points: int = POINTS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cheapest matching of every layer's queries to the classes of each image.

    Args:
        classes_LBQK: (L, B, Q, K + 1) logits of L layers.
        masks_LBQYX: logits of each pixel.
        labels_BSS: class indices.
        points: that are compared.

    Returns:
        (M,) layer, image, query and class of each matched pair. Where an image has more classes than there are queries,
        as many as there are.

    Raises:
        FloatingPointError: a prediction is infinite or not a number.
    """
    at_BP2 = torch.rand(len(labels_BSS), points, 2, device=labels_BSS.device)
    cost_LBQK = matching_cost(classes_LBQK, masks_LBQYX, labels_BSS, at_BP2)
    if not cost_LBQK.isfinite().all():
        raise FloatingPointError("masks or classes are not finite: the model has diverged; lower the learning rate")
    shown = torch.zeros(len(labels_BSS), UNLABELLED + 1, dtype=torch.bool, device=labels_BSS.device)
    shown.scatter_(1, labels_BSS.flatten(1).long(), True)
    present_BK = shown[:, : cost_LBQK.shape[-1]].cpu().numpy()
    pairs = []
    for layer, costs in enumerate(cost_LBQK.cpu().numpy()):
        for image, (cost_QK, present_K) in enumerate(zip(costs, present_BK, strict=True)):
            labels = present_K.nonzero()[0]
            queries, columns = linear_sum_assignment(cost_QK[:, labels])
            pairs += [(layer, image, query, label) for query, label in zip(queries, labels[columns], strict=True)]
    pairs_M4 = torch.tensor(pairs, dtype=torch.long).reshape(-1, 4).to(labels_BSS.device)
    return pairs_M4[:, 0], pairs_M4[:, 1], pairs_M4[:, 2], pairs_M4[:, 3]


def matching_cost(classes_LBQK: Tensor, masks_LBQYX: Tensor, labels_BSS: Tensor, at_BP2: Tensor) -> Tensor:
    """(L, B, Q, K) what it costs to take a query for a class of an image.

    Args:
        classes_LBQK: (L, B, Q, K + 1) logits.
        masks_LBQYX: logits of each pixel.
        labels_BSS: class indices.
        at_BP2: x and y in [0, 1] of the points at which masks are compared.
    """
    layers, kinds = len(classes_LBQK), classes_LBQK.shape[-1] - 1
    x_LBQP = at_points(masks_LBQYX.flatten(0, 1), at_BP2.repeat(layers, 1, 1)).unflatten(0, (layers, -1))
    images = torch.arange(len(labels_BSS), device=labels_BSS.device)
    target_BPK = labels_at_points(labels_BSS, images, at_BP2, torch.arange(kinds, device=labels_BSS.device)[None])
    inside_LBQP = x_LBQP.sigmoid()
    # -log σ(x) in the mask and -log σ(-x) outside of it, which differ by x.
    entropy = (F.softplus(x_LBQP).sum(-1, keepdim=True) - x_LBQP @ target_BPK) / at_BP2.shape[1]
    shared = inside_LBQP @ target_BPK
    dice = 1 - (2 * shared + 1) / (inside_LBQP.sum(-1, keepdim=True) + target_BPK.sum(1, keepdim=True) + 1)
    probability = classes_LBQK.softmax(-1)[..., :-1]
    return WEIGHTS["mask"] * entropy + WEIGHTS["dice"] * dice - WEIGHTS["class"] * probability


def class_loss(classes_LBQK: Tensor, targets_LBQ: Tensor) -> Tensor:
    """Cross-entropy of what each query should say, averaged by weight within each layer, summed over layers."""
    weights_K = classes_LBQK.new_ones(classes_LBQK.shape[-1])
    weights_K[-1] = NO_OBJECT
    nll_LBQ = F.cross_entropy(classes_LBQK.flatten(0, 2), targets_LBQ.flatten(), reduction="none").view_as(targets_LBQ)
    weights_LBQ = weights_K[targets_LBQ]
    return ((weights_LBQ * nll_LBQ).sum((1, 2)) / weights_LBQ.sum((1, 2))).sum()


def mask_losses(x_MP: Tensor, target_MP: Tensor, *, layers: int) -> dict[str, Tensor]:
    """Binary cross-entropy and dice of matched masks, averaged over a layer's masks, summed over layers.

    Args:
        x_MP: logits at the points of each mask.
        target_MP: what they should be, from 0 to 1.
        layers: that the masks are of.
    """
    entropy_M = F.binary_cross_entropy_with_logits(x_MP, target_MP, reduction="none").mean(1)
    inside_MP = x_MP.sigmoid()
    dice_M = 1 - (2 * (inside_MP * target_MP).sum(1) + 1) / (inside_MP.sum(1) + target_MP.sum(1) + 1)
    masks = _mean_over_ranks(x_MP.new_tensor(len(x_MP) / layers)).clamp(min=1)
    return {"mask": entropy_M.sum() / masks, "dice": dice_M.sum() / masks}


@torch.no_grad()
def unsure_points(masks_MYX: Tensor, points: int) -> Tensor:
    """(M, P, 2) x and y in [0, 1]: most where a mask is least sure, among three times as many, the rest anywhere."""
    masks, device = len(masks_MYX), masks_MYX.device
    chosen = int(points * _UNSURE)
    candidates = torch.rand(masks, points * _OVERSAMPLE, 2, device=device)
    sureness = at_points(masks_MYX[:, None], candidates)[:, 0].abs()
    unsure = sureness.topk(chosen, largest=False).indices
    taken = candidates.gather(1, unsure[..., None].expand(-1, -1, 2))
    return torch.cat([taken, torch.rand(masks, points - chosen, 2, device=device)], 1)


def at_points(masks_NCYX: Tensor, at_NP2: Tensor) -> Tensor:
    """(N, C, P) masks at x and y in [0, 1], interpolated linearly, with zeros beyond the border's centres."""
    return F.grid_sample(masks_NCYX, 2 * at_NP2[:, None] - 1, align_corners=False)[:, :, 0]


def labels_at_points(labels_BSS: Tensor, image_N: Tensor, at_NP2: Tensor, label_NC: Tensor) -> Tensor:
    """(N, P, C) masks of classes at x and y in [0, 1], interpolated linearly, without the masks being written out.

    Args:
        labels_BSS: class indices.
        image_N: in which image the points of each row are.
        at_NP2: the points.
        label_NC: the classes of each row, or (1, C) those of all.
    """
    side = labels_BSS.shape[-1]
    at_NP2 = at_NP2 * side - 0.5
    first = at_NP2.floor()
    out = at_NP2.new_zeros(*at_NP2.shape[:2], label_NC.shape[1])
    for x in (0, 1):
        for y in (0, 1):
            corner = first + at_NP2.new_tensor([x, y])
            weight = (1 - (at_NP2 - corner).abs()).prod(-1)
            column, row = corner.long().clamp(0, side - 1).unbind(-1)
            known = ((corner >= 0) & (corner < side)).all(-1)
            is_label = labels_BSS[image_N[:, None], row, column][..., None] == label_NC[:, None]
            out += is_label * (weight * known)[..., None]
    return out


def _mean_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
