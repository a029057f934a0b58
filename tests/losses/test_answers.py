import math

import pytest
import torch
from torch import tensor

from onepeace_lightning.losses.answers import box_loss, choice_hinge, soft_score_bce


def logit(boxes: list[list[float]]) -> torch.Tensor:
    return tensor(boxes).logit()


def test_soft_scores_are_summed_over_classes_and_averaged_over_samples():
    logits, scores = tensor([[0.0, 1.0, -2.0], [3.0, 0.5, 0.0]]), tensor([[0.3, 1.0, 0.0], [0.6, 0.0, 0.9]])
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), scores.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    assert soft_score_bce(logits, scores).item() == pytest.approx(total / 2, rel=1e-5)


def test_hinge_counts_every_choice_the_right_one_included():
    scores = tensor([[0.2, 1.0, 0.5, -3.0], [2.0, 0.0, 0.0, 0.0]])
    # first: target 1: 1 + 0.2 - 1, 1 + 0, 1 + 0.5 - 1, 0; second: target 0: its own margin alone
    assert choice_hinge(scores, tensor([1, 0])).item() == pytest.approx((0.2 + 1 + 0.5 + 1) / 2)


def test_the_margin_scales_the_hinge():
    assert choice_hinge(tensor([[0.0, 0.0]]), tensor([0]), margin=2.0).item() == 4.0


def test_boxes_cost_their_distance_and_their_overlap():
    predicted, target = [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.4, 0.8]], [[0.1, 0.1, 0.5, 0.3], [0.6, 0.2, 0.8, 0.8]]
    distance = (0.2 + 0.8) / 2
    # first: half of the box; second: disjoint, a third of the hull (0.6 × 0.6) is empty
    overlap = (1 - 0.5 + 1 + 1 / 3) / 2
    assert box_loss(logit(predicted), tensor(target)).item() == pytest.approx(distance + overlap, rel=1e-4)


def test_only_what_is_a_box_can_overlap():
    predicted = [[0.1, 0.1, 0.5, 0.5], [0.5, 0.1, 0.2, 0.4], [0.1, 0.6, 0.2, 0.4]]
    target = [[0.1, 0.1, 0.5, 0.3]] * 3
    distance = (0.2 + (0.4 + 0.3 + 0.1) + (0.5 + 0.3 + 0.1)) / 3
    assert box_loss(logit(predicted), tensor(target)).item() == pytest.approx(distance + 0.5, rel=1e-4)


def test_where_nothing_is_a_box_the_distance_still_teaches():
    logits = logit([[0.8, 0.8, 0.2, 0.2]]).requires_grad_()
    loss = box_loss(logits, tensor([[0.1, 0.1, 0.3, 0.3]]))
    loss.backward()
    assert loss.item() == pytest.approx(1.6, rel=1e-5)
    assert logits.grad.isfinite().all()
    assert (logits.grad != 0).all()


def test_half_precision_logits_are_computed_in_float32():
    assert box_loss(torch.randn(2, 4).bfloat16(), torch.rand(2, 4)).dtype == torch.float32
    assert soft_score_bce(torch.randn(2, 4).bfloat16(), torch.rand(2, 4)).dtype == torch.float32
    assert choice_hinge(torch.randn(2, 4).bfloat16(), tensor([0, 1])).dtype == torch.float32


@pytest.mark.parametrize("loss", ["bce", "hinge", "cross-entropy"])
def test_equal_parts_of_a_step_average_to_the_sum_over_all_samples_divided_by_their_number(loss):
    """Published steps divide by the samples of all devices and micro-batches; batches here are always full."""
    torch.manual_seed(0)
    logits, scores, right = torch.randn(8, 4), torch.rand(8, 4), torch.randint(4, (8,))
    compute = {
        "bce": lambda part: soft_score_bce(logits[part], scores[part]),
        "hinge": lambda part: choice_hinge(logits[part], right[part]),
        "cross-entropy": lambda part: torch.nn.functional.cross_entropy(logits[part], right[part]),
    }[loss]
    parts = [compute(slice(first, first + 2)) for first in range(0, 8, 2)]
    one_by_one = [compute(slice(row, row + 1)) for row in range(8)]
    assert compute(slice(0, 8)).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)
    assert compute(slice(0, 8)).item() == pytest.approx(sum(x.item() for x in one_by_one) / 8, rel=1e-5)
