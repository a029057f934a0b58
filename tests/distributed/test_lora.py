"""Low-rank updates train over two processes as in one, beside full weights, which are sharded, or 8-bit ones, which are
not; their checkpoint opens as a whole task."""

import multiprocessing
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.distributed.tensor import DTensor

from onepeace_lightning import OnePeace
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.tasks import ClassificationTask, Lora, load_task
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.parallelize import ParallelConfig
from onepeace_lightning.training.strategy import FullyShardedStrategy
from tests.distributed.runs import free_port, in_group
from tests.samples import COLOURS, labelled_images
from tests.tiny import IMAGE_SIZE, tiny_model

pytest.importorskip("peft", reason="low-rank updates are an extra: pip install onepeace-lightning[lora]")

STEPS = 2
CHECKPOINT = "last.ckpt"


class Losses(L.Callback):
    """Keeps each step's own loss and the logged one."""

    def __init__(self) -> None:
        self.own, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.own.append(float(outputs["loss"]))
        self.logged.append(float(trainer.callback_metrics["train/loss"]))


def sharding(ranks: int) -> dict:
    return {
        "accelerator": "cpu", "devices": ranks, "strategy": FullyShardedStrategy() if ranks > 1 else "auto",
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip


def data(folder: Path, ranks: int) -> DataModule:
    return DataModule(
        StreamConfig(str(folder / "train"), 4 // ranks),
        augmentation=False,
        preprocessing={"image": {"size": IMAGE_SIZE, "resize": "crop"}},
    )


def whole(tensors: dict) -> dict:
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in tensors.items()}


def train(folder: Path, ranks: int, weights: str) -> None:
    """Two steps on the same four samples, then one more of the task that the checkpoint holds."""
    torch.set_num_threads(1)
    task = ClassificationTask(
        OnePeace(tiny_model()), Optimization(lr=1e-2, total_steps=STEPS, warmup_steps=0), modalities=["image"],
        pooling="mean", classes=list(COLOURS),
        lora=Lora(rank=3, targets=("query", "value", "gate", "down"), weights=weights),
        parallel=ParallelConfig(checkpoint_activations=ranks > 1),
    )  # fmt: skip
    losses = Losses()
    L.seed_everything(0)  # which Lightning does where there are several ranks
    trainer = L.Trainer(max_steps=STEPS, callbacks=losses, default_root_dir=folder, **sharding(ranks))
    trainer.fit(task, data(folder, ranks))
    named = dict(task.model.named_parameters())
    assert all(isinstance(parameter, DTensor) == (ranks > 1) for parameter in named.values())
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    assert {name for name in trained if name.startswith("backbone.")} == {n for n in named if ".lora_" in n}
    place = folder / str(ranks)
    trainer.save_checkpoint(place / CHECKPOINT)
    state = whole(task.model.state_dict())

    opened = load_task(place / CHECKPOINT, optimization=Optimization(lr=1e-2, total_steps=1, warmup_steps=0))
    again = Losses()
    L.Trainer(max_steps=1, callbacks=again, default_root_dir=folder, **sharding(ranks)).fit(opened, data(folder, ranks))
    found = {"own": losses.own, "logged": losses.logged, "again": again.logged, "weights": state}
    torch.save(found, place / f"rank{trainer.global_rank}.pt")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("weights", ["full", "int8"])
def test_two_processes_train_low_rank_updates_as_one_does(tmp_path, weights):
    if weights != "full":
        pytest.importorskip("torchao", reason="quantised weights are an extra: pip install onepeace-lightning[lora]")
    labelled_images(tmp_path / "train", 4)  # the batch of a step, whoever reads it
    port, context = free_port(), multiprocessing.get_context("fork")
    processes = [
        context.Process(target=in_group, args=(train, 2, port, rank, tmp_path, 2, weights)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    train(tmp_path, 1, weights)

    one, first, second = (torch.load(tmp_path / name) for name in ("1/rank0.pt", "2/rank0.pt", "2/rank1.pt"))
    assert first["own"] != second["own"]  # each has its own samples
    for rank in (first, second):
        assert rank["logged"] == pytest.approx(one["logged"], abs=1e-5)
        assert rank["again"] == pytest.approx(one["again"], abs=1e-4)
    means = [(a + b) / 2 for a, b in zip(first["own"], second["own"], strict=True)]
    assert first["logged"] == pytest.approx(means, abs=1e-6)

    torch.manual_seed(0)
    image = [torch.rand(3, 50, 60)]
    opened = [load_task(tmp_path / ranks / CHECKPOINT) for ranks in ("1", "2")]
    assert opened[1].model.state_dict().keys() == first["weights"].keys()
    for name, tensor in opened[1].model.state_dict().items():
        torch.testing.assert_close(tensor, first["weights"][name], rtol=0, atol=0, msg=name)
    assert any(float(tensor.abs().max()) > 0 for name, tensor in first["weights"].items() if ".lora_B." in name)
    answers = [dict(task.predict(image, top=3)[0]) for task in opened]
    assert answers[1] == pytest.approx(answers[0], abs=1e-3)
