"""Two processes train as one process does with the doubled batch."""

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import Objectives
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.modalities.tokenizers.base import EOS, PAD
from onepeace_lightning.tasks import Optimization, PretrainTask

STEPS = 5
GLOBAL_BATCH = 8


def global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(4, 200, (GLOBAL_BATCH, 9), generator=generator)
    ids[:, -1] = EOS
    ids[::2, 6:] = torch.tensor([EOS, PAD, PAD])  # uneven lengths
    return ids, torch.randn(GLOBAL_BATCH, 3, 32, 32, generator=generator)


class RankSlices:
    """Each rank's equal share of the same global batches."""

    def __len__(self) -> int:
        return STEPS

    def __iter__(self):
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        share = GLOBAL_BATCH // world
        rows = slice(rank * share, (rank + 1) * share)
        for step in range(STEPS):
            ids, pixels = global_batch(step)
            yield {"image-text": Batch([""] * share, {"image": Image(pixels[rows]), "text": Text(ids[rows])})}


class Record(L.Callback):
    """Writes every rank's losses and final weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer, pl_module):
        weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        torch.save({"losses": self.losses, "weights": weights}, self.folder / f"rank{trainer.global_rank}.pt")


def train(folder: Path, tokenizer: Path, devices: int) -> list[dict]:
    L.seed_everything(0, verbose=False)
    task = PretrainTask(
        str(tokenizer),
        Optimization(total_steps=STEPS, lr=1e-3, warmup_steps=1),
        data_types=["image-text"],
        modalities=["text", "image"],
        preprocessing={"image": {"size": 32}},
        objectives=Objectives(denoise=False),
    )
    folder.mkdir()
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp_spawn" if devices > 1 else "auto", max_steps=STEPS,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Record(folder)],
    )  # fmt: skip
    trainer.fit(task, RankSlices())
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(devices)]


@pytest.mark.timeout(120)
def test_two_processes_follow_the_loss_of_one_with_the_doubled_batch(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    SentencePieceTokenizer.train(["a few words to learn from"], 300).save(tokenizer)
    (single,) = train(tmp_path / "one", tokenizer, 1)
    ranks = train(tmp_path / "two", tokenizer, 2)
    for step in range(STEPS):
        mean = sum(rank["losses"][step] for rank in ranks) / 2
        assert mean == pytest.approx(single["losses"][step], abs=1e-5)
    assert single["losses"][-1] != single["losses"][0]
    for name, wanted in single["weights"].items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), name
        torch.testing.assert_close(ranks[0]["weights"][name], wanted, atol=2e-5, rtol=1e-4)
