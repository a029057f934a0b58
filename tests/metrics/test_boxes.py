import pytest
import torch
from torchvision.ops import box_iou

from onepeace_lightning.metrics import BoxAccuracy
from onepeace_lightning.metrics.boxes import overlap


def boxes(count, seed):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 50
    low, high = corners.amin(1), corners.amax(1) + 1
    return torch.cat([low, high], 1)


def score(*parts):
    metric = BoxAccuracy()
    for predicted, target in parts:
        metric.update(predicted, target)
    return {name: value.item() for name, value in metric.compute().items()}


def test_half_an_overlap_is_enough():
    target = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    predicted = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4.9], [0, 0, 10, 10]])
    scores = score((predicted, target))
    assert scores["accuracy@0.5"] == pytest.approx(2 / 3)
    assert scores["mean_IoU"] == pytest.approx((0.5 + 0.49 + 1) / 3)


def test_what_is_no_box_overlaps_nothing():
    target = torch.tensor([[0.0, 0, 10, 10]])
    for predicted in ([10.0, 0, 0, 10], [0, 10, 10, 0], [10, 10, 0, 0], [3, 3, 3, 3]):
        assert overlap(torch.tensor([predicted]), target).item() == 0


def test_each_box_is_compared_with_its_own_target():
    predicted, target = boxes(20, 0), boxes(20, 1)
    expected = [box_iou(one[None], other[None]).item() for one, other in zip(predicted, target, strict=True)]
    assert overlap(predicted, target).tolist() == pytest.approx(expected)
    # stretching both alike changes nothing: shares of a picture will do
    scale = torch.tensor([3.0, 0.5, 3.0, 0.5])
    assert overlap(predicted * scale, target * scale).tolist() == pytest.approx(expected, abs=1e-5)


def test_two_processes_score_what_one_does():
    predicted, target = boxes(31, 0), boxes(31, 0) + 4 * torch.rand(31, 4, generator=torch.Generator().manual_seed(2))
    halves = [BoxAccuracy(), BoxAccuracy()]
    for metric, rows in zip(halves, (slice(0, 9), slice(9, 31)), strict=True):
        metric.update(predicted[rows], target[rows])
    whole = BoxAccuracy()
    whole.update(predicted, target)
    merged = BoxAccuracy()
    merged.merge_state(halves[0])
    merged.merge_state(halves[1])
    assert 0 < whole.compute()["accuracy@0.5"] < 1
    for name, value in whole.compute().items():
        torch.testing.assert_close(merged.compute()[name], value)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"boxes \(2, 4\) for \(3, 4\)"):
        BoxAccuracy().update(boxes(2, 0), boxes(3, 0))
    with pytest.raises(ValueError, match="not finite"):
        BoxAccuracy().update(boxes(2, 0) * float("nan"), boxes(2, 0))
    with pytest.raises(ValueError, match="no box"):
        BoxAccuracy().compute()
