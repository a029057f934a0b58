"""The moving average of weights in one process; sharded and replicated ones are in ``tests/distributed``."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from onepeace_lightning.tasks.training import TrainedModule
from onepeace_lightning.training.averaging import WeightAverage
from onepeace_lightning.training.optimizer import Optimization


class Falling(TrainedModule):
    """Each step takes 1 off the weight; validation notes what it sees."""

    def __init__(self):
        super().__init__()
        self.optimization = Optimization()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.seen: list[float] = []

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.weight[0].item())

    def gallery_metrics(self, kind):
        return MetricCollection({})

    def gallery_score(self, kind, values):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=1.0)


def trainer(folder, steps, *callbacks, **options):
    return L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, enable_checkpointing=False, val_check_interval=1, num_sanity_val_steps=0,
        check_val_every_n_epoch=None, callbacks=[*callbacks], **options,
    )  # fmt: skip


def data(count=8):
    return DataLoader(torch.zeros(count), batch_size=1), DataLoader(torch.zeros(1), batch_size=1)


def averages(steps, decay):
    average, out = 0.0, []
    for step in range(1, steps + 1):
        factor = min(decay, (1 + step) / (10 + step))
        average = factor * average + (1 - factor) * -step
        out.append(average)
    return out


@pytest.mark.parametrize(("evaluate", "wanted"), [(True, averages(4, 0.25)), (False, [-1, -2, -3, -4])])
def test_validation_sees_the_average_if_asked_for_and_training_does_not(tmp_path, evaluate, wanted):
    task = Falling()
    trainer(tmp_path, 4, WeightAverage(0.25, evaluate=evaluate)).fit(task, *data())
    assert task.seen == pytest.approx(wanted, abs=1e-6)
    assert task.weight.tolist() == [-4, -4]


def test_an_accumulated_step_counts_once(tmp_path):
    task = Falling()
    average = WeightAverage(0.5)
    fitting = trainer(tmp_path, 2, average, accumulate_grad_batches=2)
    fitting.fit(task, *data())
    assert average.steps == 2


def test_a_checkpoint_holds_the_average_and_goes_on_from_the_weights(tmp_path):
    first = trainer(tmp_path, 3, WeightAverage(0.25))
    first.fit(Falling(), *data())
    first.save_checkpoint(tmp_path / "three.ckpt")
    content = torch.load(tmp_path / "three.ckpt", weights_only=True)
    assert content["state_dict"]["weight"][0].item() == pytest.approx(averages(3, 0.25)[-1])
    assert content["state_dict"]["frozen"].tolist() == [1, 1]
    assert {name: tensor.tolist() for name, tensor in content["current_model_state"].items()} == {"weight": [-3, -3]}

    task = Falling()
    trainer(tmp_path, 5, WeightAverage(0.25)).fit(task, *data(), ckpt_path=tmp_path / "three.ckpt")
    assert task.weight.tolist() == [-5, -5]
    assert task.seen == pytest.approx(averages(5, 0.25)[3:], abs=1e-6)

    measured = Falling()
    trainer(tmp_path, 5, WeightAverage(0.25)).validate(measured, data()[1], ckpt_path=tmp_path / "three.ckpt")
    assert measured.seen == pytest.approx(averages(3, 0.25)[-1:], abs=1e-6)


def test_a_checkpoint_without_an_average_begins_one(tmp_path):
    first = trainer(tmp_path, 3)
    first.fit(Falling(), *data())
    first.save_checkpoint(tmp_path / "three.ckpt")
    average = WeightAverage(0.5)
    task = Falling()
    trainer(tmp_path, 4, average).fit(task, *data(), ckpt_path=tmp_path / "three.ckpt")
    assert task.seen == pytest.approx([2 / 11 * -3 + 9 / 11 * -4])


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match="decay is 1"):
        WeightAverage(1.0)
