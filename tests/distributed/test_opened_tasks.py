"""A released file that was opened as a task trains sharded over two processes as it does in one."""

import multiprocessing
import os
import socket
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.distributed.tensor import DTensor

from onepeace_lightning.checkpoints.released.writing import released_content, save_released
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.tasks import ClassificationTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.strategy import FullyShardedStrategy
from tests.samples import COLOURS, as_json, png, write
from tests.tiny import IMAGE_SIZE, randomised, tiny_config

NAMES = list(COLOURS)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A released ImageNet classifier of three classes, its labels and shards."""
    config = tiny_config(adapters={"image": tiny_config().adapters["image"]})
    task = ClassificationTask(config, modalities=["image"], classes=NAMES, pooling="mean", per_block_tables=False)
    task.configure_model()
    save_released(released_content(randomised(task.model)), tmp_path / "onepeace_ft_21kto1k_384.pth")
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    samples = [{"png": png(name, seed=i), "json": as_json(labels=[name])} for i, name in enumerate(NAMES[:2] * 2)]
    write(tmp_path / "train", "image-label", samples, about={"classes": NAMES})
    return tmp_path


def train(folder: Path, rank: int, ranks: int, port: int) -> None:
    """Two steps on the same four samples a step; rank zero keeps the weights."""
    if ranks > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
    L.seed_everything(0)
    optimization = Optimization(lr=1e-2, total_steps=2, warmup_steps=0)
    task = load_task(
        folder / "onepeace_ft_21kto1k_384.pth", labels=folder / "labels.txt", optimization=optimization, drop_path=0.0
    )
    data = DataModule(
        StreamConfig(str(folder / "train"), 4 // ranks), augmentation=False,
        preprocessing={"image": {"size": IMAGE_SIZE, "resize": "crop"}},
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=ranks, strategy=FullyShardedStrategy() if ranks > 1 else "auto", max_steps=2,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, gradient_clip_val=None,
    )  # fmt: skip
    trainer.fit(task, data)
    assert all(isinstance(parameter, DTensor) == (ranks > 1) for parameter in task.model.parameters())
    weights = {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in task.model.state_dict().items()
    }
    if rank == 0:
        torch.save(weights, folder / f"after{ranks}.pt")


def test_two_processes_train_an_opened_file_as_one_does(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train, args=(folder, rank, 2, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    train(folder, 0, 1, 0)
    one, two = (torch.load(folder / f"after{ranks}.pt", weights_only=True) for ranks in (1, 2))
    before = load_task(folder / "onepeace_ft_21kto1k_384.pth").model.state_dict()
    assert one.keys() == two.keys() == before.keys()
    # AdamW's steps are as long for small gradients as for large ones, and so are the roundings of small ones.
    for name, tensor in one.items():
        gap, moved = (float((tensor - other[name]).abs().max()) for other in (two, before))
        assert gap < 0.02 * moved, f"{name}: {gap} apart, {moved} moved"
