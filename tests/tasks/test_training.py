from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torchmetrics import MetricCollection

from onepeace_lightning.tasks.training import TrainedModule
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.results import ResultsTable


class Falling(TrainedModule):
    """A step of gradient (3, 4, 0) at learning rate 1."""

    def __init__(self):
        super().__init__()
        self.optimization = Optimization()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def training_step(self, batch, batch_idx):
        return (self.weight * torch.tensor([3.0, 4.0, 0.0])).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize(
    ("limit", "algorithm", "moved"),
    [
        (None, None, [3.0, 4.0, 0.0]),
        (1.0, None, [0.6, 0.8, 0.0]),
        (1.0, "norm", [0.6, 0.8, 0.0]),
        (10.0, "norm", [3.0, 4.0, 0.0]),
        (3.5, "value", [3.0, 3.5, 0.0]),
    ],
)
def test_gradients_are_clipped_as_the_trainer_says(limit, algorithm, moved, trainer):
    task = Falling()
    trainer(max_steps=1, gradient_clip_val=limit, gradient_clip_algorithm=algorithm).fit(task, [0])
    assert (-task.weight).tolist() == pytest.approx(moved, abs=1e-5)


class Seven(L.LightningDataModule):
    """An epoch of seven batches."""

    steps_per_epoch = 7

    def train_dataloader(self):
        return [0] * 7


@pytest.mark.parametrize(
    ("accumulated", "limit", "steps"), [(1, 1.0, 14), (4, 1.0, 4), (3, 5, 4), (2, 0.5, 4), (1, 1, 2)]
)
def test_a_run_by_epochs_has_as_many_steps_as_the_schedule_is_told(accumulated, limit, steps, trainer):
    task = Falling()
    run = trainer(max_steps=-1, max_epochs=2, accumulate_grad_batches=accumulated, limit_train_batches=limit)
    run.fit(task, datamodule=Seven())
    assert (run.global_step, task.total_steps()) == (steps, steps)


class Said(Falling):
    def context(self):
        return ["a prompt"]


def test_lines_beside_scores_are_said_once_without_a_data_module_too():
    task = Said()
    for _ in range(2):
        task._trainer = SimpleNamespace(datamodule=None)
        task.setup("validate")
        task.score_context.append("of a subclass")
    assert task.score_context == ["a prompt", "of a subclass"]


class Unmeasured(Falling):
    """A model whose weights are random until it has been trained."""

    untrained = 3

    def validation_step(self, batch, batch_idx):
        self.log("val/weight", self.weight[0], batch_size=1)

    def gallery_metrics(self, kind):
        return MetricCollection({})

    def gallery_score(self, kind, values):
        return None


def test_a_model_is_measured_once_it_has_been_trained(trainer):
    task = Unmeasured()
    run = trainer(max_steps=2, callbacks=[ResultsTable()])
    with pytest.raises(ValueError, match="3 of the model's weights have their random initial values"):
        run.validate(task, [0], verbose=False)
    run.fit(task, [0, 0])
    [scores] = run.validate(task, [0], verbose=False)
    assert scores == {"val/weight": -6.0}
