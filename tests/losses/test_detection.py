"""The detector's losses: what is matched with what, and that everything learns."""

import pytest
import torch

from onepeace_lightning.losses.detection import (
    Truth,
    detection_losses,
    label_anchors,
    mask_targets,
    match_regions,
    proposal_losses,
    sample,
    sample_regions,
)
from onepeace_lightning.models.vision.detector import Detector
from onepeace_lightning.models.vision.proposals import Proposals, flat, level_anchors
from tests.models.vision.test_detector import CONFIG, HEAD, images


def truth(boxes: list[list[float]], size: tuple[int, int] = (128, 128)) -> Truth:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, box in zip(masks, boxes, strict=True):
        x0, y0, x1, y1 = map(int, box)
        mask[y0:y1, x0:x1] = True
    return Truth(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes)) % HEAD.classes, masks
    )


def test_anchors_are_objects_background_or_neither():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 20], [30, 30, 40, 40], [60, 60, 70, 70]])
    labels, instance = label_anchors(torch.tensor([[0.0, 0, 10, 10], [32, 38, 60, 60]]), anchors)
    assert labels.tolist() == [1, -1, -1, 1, 0]  # the fourth overlaps the second box little, but no other does more
    assert instance[[0, 3]].tolist() == [0, 1]
    assert label_anchors(torch.zeros(0, 4), anchors)[0].tolist() == [0] * 5


def test_a_box_that_no_anchor_touches_makes_none_an_object():
    labels, _ = label_anchors(torch.tensor([[500.0, 500, 510, 510]]), torch.tensor([[0.0, 0, 10, 10]]))
    assert labels.tolist() == [0]


def test_sample_fills_up_with_background():
    labels = torch.tensor([1] * 10 + [0] * 50 + [-1] * 5)
    positive, negative = sample(labels, 16, 0.25)
    assert len(positive) == 4
    assert len(negative) == 12
    assert bool((labels[positive] == 1).all() and (labels[negative] == 0).all())
    assert len(sample(labels, 16, 1.0)[1]) == 6


def test_true_boxes_are_among_the_regions():
    what = truth([[10, 10, 50, 60]])
    regions = sample_regions(Proposals(torch.tensor([[90.0, 90, 100, 100]]), torch.zeros(1)), what)
    assert regions.tolist() == [[10, 10, 50, 60], [90, 90, 100, 100]]
    assert match_regions(regions, what, 0.7)[0].tolist() == [True, False]


def test_perfect_proposals_cost_nothing():
    what = truth([[16, 16, 48, 48]])  # an anchor
    sides = [32 // 2**level for level in range(5)]
    anchors = torch.cat([level_anchors((side, side), level) for level, side in enumerate(sides)])
    labels, _ = label_anchors(what.boxes, anchors)
    parts = (40.0 * labels - 20).split([3 * side**2 for side in sides])
    logits = [part.reshape(1, side, side, 3).permute(0, 3, 1, 2) for part, side in zip(parts, sides, strict=True)]
    deltas = [torch.zeros(1, 12, side, side) for side in sides]
    assert torch.equal(flat(logits[1], 1)[0, :, 0], parts[1])
    losses = proposal_losses(logits, deltas, [what])
    assert float(losses["objectness"]) < 1e-6
    assert float(proposal_losses([-part for part in logits], deltas, [what])["objectness"]) > 10


def test_mask_targets_are_the_part_within_the_box():
    what = truth([[0, 0, 64, 64], [32, 32, 96, 128]])
    targets = mask_targets(what.masks, torch.tensor([1, 0]), torch.tensor([[0.0, 32, 64, 96], [0, 0, 64, 128]]))
    assert targets.shape == (2, 28, 28)
    assert targets[0, :, :14].sum() == 0
    assert targets[0, :, 14:].all()
    assert targets[1, :14].all()
    assert targets[1, 14:].sum() == 0


def test_every_parameter_learns_and_the_loss_falls():
    torch.manual_seed(0)
    model = Detector(CONFIG, HEAD)
    batch, what = images((128, 112), (96, 128)), [truth([[8, 8, 60, 50], [70, 20, 100, 90]], (128, 112)), truth([])]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    totals = []
    for _ in range(12):
        losses = detection_losses(model, batch, what, count=32)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert set(losses) == {
        "objectness", "proposals", "classes_1", "boxes_1", "classes_2", "boxes_2", "classes_3", "boxes_3", "masks"
    }  # fmt: skip
    assert totals[-1] < 0.7 * totals[0]
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not idle


def test_images_without_instances_teach_background_and_leave_no_parameter_out():
    torch.manual_seed(0)
    model = Detector(CONFIG, HEAD)
    losses = detection_losses(model, images((64, 64)), [truth([], (64, 64))], count=32)
    assert losses["boxes_1"] == losses["masks"] == losses["proposals"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_diverged_model_says_so():
    model = Detector(CONFIG, HEAD)
    with torch.no_grad():
        model.proposals.objectness.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        detection_losses(model, images((64, 64)), [truth([[1, 1, 30, 30]], (64, 64))], count=8)


def test_bfloat16_gives_about_the_same_losses():
    torch.manual_seed(0)
    model = Detector(CONFIG, HEAD)
    what = [truth([[8, 8, 60, 50], [70, 20, 100, 90]], (128, 112))]
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            parts = detection_losses(model, images((128, 112)), what, count=64)
        losses.append(parts)
    for name, exact in losses[0].items():
        assert losses[1][name].dtype == torch.float32
        assert float(losses[1][name]) == pytest.approx(float(exact), rel=0.15, abs=0.02), name
    torch.stack(list(losses[1].values())).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
