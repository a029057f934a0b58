"""Zero-shot classification over two processes scores as one process does, sharded or not."""

import multiprocessing
from pathlib import Path

import lightning as L
import pytest
import torch

from onepeace_lightning import OnePeace
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.tasks import ZeroShotClassificationTask
from onepeace_lightning.training.strategy import FullyShardedStrategy
from tests.distributed.runs import free_port, in_group
from tests.samples import labelled_images
from tests.tiny import IMAGE_SIZE, randomised, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, and galleries of five samples and of one."""
    folder = tmp_path_factory.mktemp("zero_shot")
    tokenizer = SentencePieceTokenizer.train(["a photo of a red green blue square"], 280)
    adapters = tiny_config().adapters | {"text": TextConfig(vocab_size=tokenizer.vocab_size, positions=32, buckets=8)}
    torch.manual_seed(0)
    model = randomised(PretrainModel(tiny_config(adapters=adapters)))
    sizes = Preprocessing({"image": {"size": IMAGE_SIZE}})
    OnePeace(model, tokenizer=tokenizer, preprocessing=sizes).save_pretrained(folder / "model")
    labelled_images(folder / "five", 5)
    labelled_images(folder / "one", 1)
    return folder


def score(folder: Path, strategy: str, devices: int) -> None:
    """Validate, and leave every rank's scores and class vectors."""
    torch.set_num_threads(1)
    task = ZeroShotClassificationTask(str(folder / "model"), item="image")
    val = {name: StreamConfig(str(folder / name), 2) for name in ("five", "one")}
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=FullyShardedStrategy() if strategy == "fsdp" else strategy,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    data = DataModule(None, val, preprocessing={"image": {"size": IMAGE_SIZE}})
    trainer.validate(task, data, verbose=False)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    torch.save({"scores": scores, "vectors": task.class_vectors}, folder / f"{strategy}{trainer.global_rank}.pt")


@pytest.fixture(scope="module")
def single(folder) -> dict:
    score(folder, "auto", 1)
    return torch.load(folder / "auto0.pt")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_score_as_one_does(folder, single, strategy):
    assert {"val/five/accuracy", "val/one/accuracy", "val/score"} <= set(single["scores"])
    port, context = free_port(), multiprocessing.get_context("fork")
    processes = [
        context.Process(target=in_group, args=(score, 2, port, rank, folder, strategy, 2)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0]
    for rank in range(2):  # the second has no sample of the gallery of one
        found = torch.load(folder / f"{strategy}{rank}.pt")
        assert found["scores"] == pytest.approx(single["scores"])
        torch.testing.assert_close(found["vectors"], single["vectors"], atol=1e-5, rtol=1e-4)
