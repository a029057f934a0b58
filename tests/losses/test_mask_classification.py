"""The mask-classification loss: matching against brute force, limits, ignored pixels, gradients."""

from itertools import permutations

import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning.losses.mask_classification import (
    at_pixels,
    mask_classification_loss,
    match,
    matching_cost,
    unsure_pixels,
)
from onepeace_lightning.models.heads.mask_decoder import MaskPrediction
from onepeace_lightning.models.heads.segmentation import UNLABELLED
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


def plain_cost(prediction: MaskPrediction, truth: torch.Tensor, picture: int, query: int, label: int) -> float:
    """The cost of one pair, written out."""
    logits = F.interpolate(prediction.masks_BQYX[picture, query][None, None], size=SIDE, mode="bilinear")[0, 0]
    known = truth[picture] != UNLABELLED
    x, t = logits[known], (truth[picture] == label)[known].float()
    entropy = F.binary_cross_entropy_with_logits(x, t)
    dice = 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
    return float(5 * entropy + 5 * dice - 2 * prediction.classes_BQK[picture, query].softmax(-1)[label])


def test_the_matching_is_the_cheapest_of_all():
    prediction, truth = said(), labels()
    cost = matching_cost(prediction.classes_BQK[None], prediction.masks_BQYX[None], truth)
    for picture in range(2):
        for query in range(QUERIES):
            for label in range(CLASSES):
                assert cost[0, picture, query, label] == pytest.approx(
                    plain_cost(prediction, truth, picture, query, label), abs=1e-4
                )
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


def test_a_perfect_answer_costs_nothing_in_any_order_of_queries():
    truth = labels()
    prediction = perfect(truth)
    losses = mask_classification_loss([prediction, prediction], truth)
    assert all(float(loss) == pytest.approx(0, abs=1e-5) for loss in losses.values())
    order = torch.tensor([4, 2, 0, 1, 3])
    wrong = MaskPrediction(prediction.classes_BQK[:, order], prediction.masks_BQYX)
    assert float(sum(mask_classification_loss([wrong], truth).values())) > 1


def test_layers_add_up_and_pictures_are_matched_alone():
    first, second, truth = said(seed=1), said(seed=2), labels()
    together = mask_classification_loss([first, second], truth)
    for name in together:
        apart = sum(float(mask_classification_loss([part], truth)[name]) for part in (first, second))
        assert float(together[name]) == pytest.approx(apart, rel=1e-5)
    swapped = MaskPrediction(*(part.flip(0) for part in first))
    again = mask_classification_loss([swapped], truth.flip(0))
    once = mask_classification_loss([first], truth)
    for name in once:
        assert float(again[name]) == pytest.approx(float(once[name]), rel=1e-5)


def test_what_is_drawn_where_there_is_no_class_does_not_matter():
    truth = labels()
    prediction = said(side=SIDE)
    changed = prediction.masks_BQYX.clone()
    changed[:, :, 0] += 7
    before = mask_classification_loss([prediction], truth)
    after = mask_classification_loss([prediction._replace(masks_BQYX=changed)], truth)
    for name in before:
        assert float(after[name]) == pytest.approx(float(before[name]), rel=1e-5)


def test_a_picture_without_labels_teaches_nothing():
    truth = labels()
    truth[1] = UNLABELLED
    prediction = MaskPrediction(*(part.requires_grad_() for part in said()))
    losses = mask_classification_loss([prediction], truth)
    sum(losses.values()).backward()
    for part in prediction:
        assert part.grad[0].abs().sum() > 0
        assert part.grad[1].abs().sum() == 0
    nothing = mask_classification_loss([said()], torch.full_like(truth, UNLABELLED))
    assert all(float(loss) == 0 for loss in nothing.values())


def test_random_pixels_stand_for_all():
    torch.manual_seed(0)
    side = 64
    rows = torch.arange(side)[None, :, None].expand(1, side, side)
    truth = (rows // 22).to(torch.uint8)
    masks = torch.randn(1, QUERIES, 8, 8)
    classes = torch.randn(1, QUERIES, CLASSES + 1)
    whole = matching_cost(classes[None], masks[None], truth)[..., :3]
    some = matching_cost(classes[None], masks[None], truth, points=2000)[..., :3]
    torch.testing.assert_close(some, whole, atol=0.4, rtol=0)
    assert not torch.equal(some, whole)
    sharp = perfect(torch.where(truth < 3, truth, UNLABELLED))
    assert float(mask_classification_loss([sharp], truth, points=500)["class"]) == pytest.approx(0, abs=1e-5)


def test_pixels_are_read_where_they_are_and_mostly_at_outlines():
    masks = torch.randn(3, 2, 4, 4, generator=drawn(1))
    index = torch.randint(SIDE**2, (3, 20), generator=drawn(2))
    whole = at_pixels(masks, SIDE, None)
    torch.testing.assert_close(at_pixels(masks, SIDE, index), whole.gather(2, index[:, None].expand(-1, 2, -1)))
    ramp = torch.linspace(-9, 9, 16).expand(1, 16, 16)
    columns = unsure_pixels(ramp, 64, 400) % 64
    assert ((columns - 31.5).abs() < 12).float().mean() > 0.75


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
    alone = mask_classification_loss([said()], labels())
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda count: count.mul_(4))
    beside = mask_classification_loss([said()], labels())
    for name, share in (("mask", 2), ("dice", 2), ("class", 1)):
        assert float(beside[name]) == pytest.approx(float(alone[name]) / share, rel=1e-5)
