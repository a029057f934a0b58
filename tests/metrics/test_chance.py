import pytest
import torch

from onepeace_lightning.metrics.chance import CommonestClass


def test_the_commonest_class_over_all_batches():
    metric = CommonestClass(4)
    metric.update(torch.randn(3, 4), torch.tensor([1, 1, 0]))
    metric.update(torch.randn(2, 4), torch.tensor([3, 3]))
    metric.update(torch.randn(1, 4), torch.tensor([3]))
    assert metric.compute().item() == pytest.approx(3 / 6)
    metric.reset()
    metric.update(torch.randn(1, 4), torch.tensor([2]))
    assert metric.compute().item() == 1.0
