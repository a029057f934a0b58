import pytest
import torch
from torchmetrics import MeanMetric, MetricCollection

from onepeace_lightning.metrics.chance import CommonestAnswer, RandomChoice, RandomScores


def test_the_commonest_class_over_all_batches():
    metric = CommonestAnswer(4)
    metric.update(torch.randn(3, 4), torch.tensor([1, 1, 0]))
    metric.update(torch.randn(2, 4), torch.tensor([3, 3]))
    metric.update(torch.randn(1, 4), torch.tensor([3]))
    assert metric.compute().item() == pytest.approx(3 / 6)
    metric.reset()
    metric.update(torch.randn(1, 4), torch.tensor([2]))
    assert metric.compute().item() == 1.0


def test_the_answer_that_is_the_rightest_where_answers_are_right_to_some_degree():
    metric = CommonestAnswer(3)
    metric.update(torch.randn(2, 3), torch.tensor([[1.0, 0.3, 0], [0, 0.6, 1.0]]))
    metric.update(torch.randn(2, 3), torch.tensor([[0, 0.6, 0], [0.0, 0, 0]]))  # of the last, no answer is learned
    assert metric.compute().item() == pytest.approx(1.5 / 4)


def test_random_scores_find_classes_as_often_as_they_are():
    metric = RandomScores(3)
    metric.update(torch.randn(3, 3), torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0]]))
    metric.update(torch.randn(1, 3), torch.tensor([[0, 0, 0]]))
    assert metric.compute().item() == pytest.approx((1 / 4 + 3 / 4) / 2)  # the third class has no sample


def test_random_choice_stays_itself_beside_an_accuracy_that_begins_alike():
    metrics = MetricCollection({"accuracy": MeanMetric(), "chance": RandomChoice()})
    metrics.update(value=torch.tensor([1.0, 0, 0, 0]), scores_BN=torch.randn(4, 4))
    metrics.update(value=torch.tensor([1.0, 1]), scores_BN=torch.randn(2, 2))
    values = metrics.compute()
    assert values["accuracy"].item() == pytest.approx(3 / 6)
    assert values["chance"].item() == pytest.approx((4 / 4 + 2 / 2) / 6)
