import pytest
import torch

from onepeace_lightning.metrics.detection import CocoAP


def masks(*boxes):
    filled = torch.zeros(len(boxes), 200, 200, dtype=torch.bool)
    for each, (x0, y0, x1, y1) in zip(filled, boxes, strict=True):
        each[y0:y1, x0:x1] = True
    return filled


def instances(boxes, labels, scores=None, **more):
    content = {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64),
               "masks": masks(*boxes), **more}  # fmt: skip
    return content if scores is None else {**content, "scores": torch.tensor(scores)}


@pytest.mark.parametrize("what", ["box", "mask"])
def test_half_of_the_classes_found_is_half_of_the_precision(what):
    metric = CocoAP(what)
    truth = instances([(0, 0, 50, 50), (100, 100, 120, 120)], [0, 1])
    metric.update([instances([(0, 0, 50, 50)], [0], [0.9])], [truth])
    metric.update([instances([], [], [])], [instances([], [])])
    values = metric.compute()
    assert float(values[f"{what}_AP"]) == pytest.approx(0.5)
    assert float(values[f"{what}_AP_small"]) == 0
    assert float(values[f"{what}_AP_medium"]) == 1
    assert f"{what}_AP_large" not in values


def test_a_crowd_hides_what_overlaps_it_and_is_never_missed():
    metric = CocoAP("box")
    truth = instances(
        [(0, 0, 50, 50), (60, 60, 190, 190)], [0, 0], iscrowd=torch.tensor([0, 1]), area=torch.tensor([2500.0, 16900])
    )
    metric.update([instances([(60, 60, 90, 90), (0, 0, 50, 50)], [0, 0], [0.9, 0.8])], [truth])
    assert float(metric.compute()["box_AP"]) == pytest.approx(1)
