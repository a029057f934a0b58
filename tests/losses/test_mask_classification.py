"""The mask-classification loss: matching against brute force, limits, points, gradients."""

from itertools import permutations

import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning.losses.mask_classification import (
    at_points,
    labels_at_points,
    mask_classification_loss,
    match,
    matching_cost,
    unsure_points,
)
from onepeace_lightning.models.vision.mask_decoder import MaskPrediction
from onepeace_lightning.models.vision.segmentation import UNLABELLED
from tests.tiny import drawn

CLASSES, QUERIES, SIDE = 5, 4, 8


def said(pictures: int = 2, seed: int = 0, side: int = SIDE // 4) -> MaskPrediction:
    rng = drawn(seed)
    return MaskPrediction(
        torch.randn(pictures, QUERIES, CLASSES + 1, generator=rng),
        3 * torch.randn(pictures, QUERIES, side, side, generator=rng),
    )


def labels(pictures: int = 2, seed: int = 5) -> torch.Tensor:
    """Three classes in each picture, and a row without any."""
    rows = torch.stack([torch.randperm(CLASSES, generator=drawn(seed + i))[:3] for i in range(pictures)])
    out = rows[:, torch.arange(SIDE) % 3, None].repeat(1, 1, SIDE).to(torch.uint8)
    out[:, 0] = UNLABELLED
    return out


def perfect(truth: torch.Tensor) -> MaskPrediction:
    """Masks at full size that are the truth, on as many queries as there are classes, in another order."""
    order = torch.tensor([3, 1, 4, 0, 2])
    masks = (truth[:, None] == order[None, :, None, None]).float() * 80 - 40
    present = (truth[:, None] == order[None, :, None, None]).flatten(2).any(2)
    classes = F.one_hot(torch.where(present, order, CLASSES), CLASSES + 1) * 40.0
    return MaskPrediction(classes, masks)


def every_pixel(side: int = SIDE) -> torch.Tensor:
    """(P, 2) x and y of all pixels' centres, row by row."""
    at = (torch.arange(side) + 0.5) / side
    return torch.stack([at.repeat(side), at.repeat_interleave(side)], -1)


def plain_cost(prediction: MaskPrediction, truth: torch.Tensor, picture: int, query: int, label: int) -> float:
    """The cost of one pair at all pixels, written out."""
    x = at_points(prediction.masks_BQYX[picture, query][None, None], every_pixel()[None])[0, 0]
    t = (truth[picture] == label).float().flatten()
    entropy = F.binary_cross_entropy_with_logits(x, t)
    dice = 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
    return float(5 * entropy + 5 * dice - 2 * prediction.classes_BQK[picture, query].softmax(-1)[label])


def test_the_matching_is_the_cheapest_of_all(monkeypatch):
    prediction, truth = said(), labels()
    everywhere = every_pixel().expand(2, -1, -1)
    cost = matching_cost(prediction.classes_BQK[None], prediction.masks_BQYX[None], truth, everywhere)
    for picture in range(2):
        for query in range(QUERIES):
            for label in range(CLASSES):
                assert cost[0, picture, query, label] == pytest.approx(
                    plain_cost(prediction, truth, picture, query, label), abs=1e-4
                )
    monkeypatch.setattr(torch, "rand", lambda *size, device: everywhere)
    pairs = torch.stack(match(prediction.classes_BQK[None], prediction.masks_BQYX[None], truth), 1).tolist()
    for picture in range(2):
        present = sorted(set(truth[picture].flatten().tolist()) - {UNLABELLED})
        best = min(
            permutations(range(QUERIES), len(present)),
            key=lambda queries: sum(cost[0, picture, q, k] for q, k in zip(queries, present, strict=True)),
        )
        found = {(q, k) for _, p, q, k in pairs if p == picture}
        assert found == set(zip(best, present, strict=True))


def test_more_classes_than_queries_leaves_the_dearest_out():
    prediction = MaskPrediction(torch.randn(1, 2, CLASSES + 1), torch.randn(1, 2, 2, 2))
    layer, _, query, _ = match(prediction.classes_BQK[None], prediction.masks_BQYX[None], labels(1))
    assert len(layer) == 2
    assert sorted(query.tolist()) == [0, 1]
    assert mask_classification_loss([prediction], labels(1))["mask"].isfinite()


def test_a_perfect_answer_costs_next_to_nothing_in_any_order_of_queries():
    truth = labels()
    prediction = perfect(truth)
    torch.manual_seed(0)
    losses = mask_classification_loss([prediction, prediction], truth)
    assert float(losses["class"]) == pytest.approx(0, abs=1e-5)
    order = torch.tensor([4, 2, 0, 1, 3])
    wrong = MaskPrediction(prediction.classes_BQK[:, order], prediction.masks_BQYX)
    assert float(sum(mask_classification_loss([wrong], truth).values())) > 10 * float(losses["class"] + losses["dice"])


def test_layers_add_up_and_pictures_are_matched_alone():
    first, second, truth = said(seed=1), said(seed=2), labels()
    together = mask_classification_loss([first, second], truth)
    for name in together:
        apart = sum(float(mask_classification_loss([part], truth)[name]) for part in (first, second))
        assert float(together[name]) == pytest.approx(apart, rel=0.05)
    swapped = MaskPrediction(*(part.flip(0) for part in first))
    again = mask_classification_loss([swapped], truth.flip(0))
    once = mask_classification_loss([first], truth)
    for name in once:
        assert float(again[name]) == pytest.approx(float(once[name]), rel=0.05)


def test_pixels_without_a_class_are_outside_of_all_masks():
    truth = labels()
    prediction = said(side=SIDE)
    lower = prediction.masks_BQYX.clone()
    lower[:, :, 0] = -40
    upper = lower.clone()
    upper[:, :, 0] = 40
    before = mask_classification_loss([prediction._replace(masks_BQYX=lower)], truth)
    after = mask_classification_loss([prediction._replace(masks_BQYX=upper)], truth)
    assert float(after["mask"]) > float(before["mask"]) + 1


def test_a_picture_without_labels_teaches_that_no_query_sees_anything():
    truth = torch.full_like(labels(), UNLABELLED)
    prediction = MaskPrediction(*(part.requires_grad_() for part in said()))
    losses = mask_classification_loss([prediction], truth)
    assert float(losses["mask"]) == float(losses["dice"]) == 0
    losses["class"].backward()
    # the gradient of cross-entropy pushes "none" up and all else down
    assert (prediction.classes_BQK.grad[..., -1] < 0).all()
    assert (prediction.classes_BQK.grad[..., :-1] > 0).all()


def test_masks_are_read_at_points_as_they_would_be_written_out():
    truth = labels(3)
    at = torch.rand(4, 50, 2, generator=drawn(2))
    image, label = torch.tensor([2, 0, 1, 0]), torch.tensor([[3], [0], [4], [1]])
    written = at_points((truth[image] == label[:, None]).float()[:, None], at)
    torch.testing.assert_close(labels_at_points(truth, image, at, label), written.mT)


def test_points_are_mostly_at_outlines():
    torch.manual_seed(0)
    ramp = torch.linspace(-9, 9, 16).expand(1, 16, 16)
    at = unsure_points(ramp, 400)
    assert at.shape == (1, 400, 2)
    assert ((at[..., 0] - 0.5).abs() < 0.19).float().mean() > 0.75


def test_gradients_reach_masks_and_classes_in_half_precision_too():
    prediction = MaskPrediction(*(part.bfloat16().requires_grad_() for part in said()))
    with torch.autocast("cpu", torch.bfloat16):
        losses = mask_classification_loss([prediction], labels())
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(part.grad.abs().sum() > 0 for part in prediction)


def test_a_diverged_model_is_named():
    prediction = said()
    prediction.masks_BQYX[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        mask_classification_loss([prediction], labels())


def test_masks_are_averaged_over_all_ranks(monkeypatch):
    """With another rank that has three times as many masks, this one's weigh half."""
    torch.manual_seed(0)
    alone = mask_classification_loss([said()], labels())
    torch.manual_seed(0)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda count: count.mul_(4))
    beside = mask_classification_loss([said()], labels())
    for name, share in (("mask", 2), ("dice", 2), ("class", 1)):
        assert float(beside[name]) == pytest.approx(float(alone[name]) / share, rel=1e-5)
