"""Losses and counts of each source of a mixed stream: those of two processes are those of one."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.dataloader import TrainLoader
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.data.sources import Source
from onepeace_lightning.losses.pretraining import Objectives, pretraining_loss
from onepeace_lightning.training.source_losses import SourceLosses
from tests.tiny import batches, tiny_model
from tests.training.test_parallelize import part

STREAM, NAMES = "image-text", ("A", "B", "C")
ORIGINS = ["A", "B", "A", "A"]
"""Of four samples: the second process has none of B, and nobody has one of C."""


def learn(losses: SourceLosses, rows: slice, *, denoise: bool = True) -> None:
    """Compute the loss of some of four samples, and record it."""
    model = tiny_model()
    batch = part(batches(model, STREAM, count=4)[STREAM], rows)
    record = losses.recorder({STREAM: ORIGINS[rows]})
    with torch.no_grad():
        pretraining_loss(model, {STREAM: batch}, Objectives(denoise=denoise), record=record)


def loader(folders: dict[str, str], rank: int, ranks: int) -> TrainLoader:
    sources = [Source(folder, weight, name) for (name, folder), weight in zip(folders.items(), (3, 1), strict=True)]
    return TrainLoader(
        sources, 8 // ranks, lambda raw, rng: raw["__key__"], lambda rows: Batch(rows, {}), rank=rank, world_size=ranks,
        steps_per_epoch=5,
    )  # fmt: skip


def _rank(rank: int, store: str, folders: dict[str, str], results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    losses = SourceLosses({STREAM: NAMES})
    learn(losses, slice(2 * rank, 2 * rank + 2))
    mine = loader(folders, rank, 2)
    list(mine)
    results.put((rank, {k: v.item() for k, v in losses.means(DDPStrategy()).items()}, mine.counts.tolist()))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes logs, and the folders of their data."""
    place = tmp_path_factory.mktemp("two")
    folders = {name: str(place / name) for name in "AB"}
    for name, folder in folders.items():
        with ShardWriter(folder, "text", source="-", license="-", samples_per_shard=6) as writer:
            for index in range(20):
                writer.write(f"{name}{index:02d}", {"txt": b"a red cow"})
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, f"{place}/store", folders, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = sorted(results.get(timeout=100) for _ in ranks)
    for process in ranks:
        process.join()
    return [logged for _, *logged in found], folders


def test_losses_by_source_are_those_of_one_process(two):
    [[first, _], [second, _]], _ = two
    strategy = SingleDeviceStrategy("cpu")
    whole, halves = SourceLosses({STREAM: NAMES}), SourceLosses({STREAM: NAMES})
    learn(whole, slice(0, 4), denoise=False)  # contrasted with the samples of both
    for rows in (slice(0, 2), slice(2, 4)):  # denoised within a process
        learn(halves, rows)
    wanted = {**halves.means(strategy), **whole.means(strategy)}
    assert first.keys() == second.keys() == wanted.keys()
    for name, value in wanted.items():
        assert [first[name], second[name]] == pytest.approx([value.item()] * 2, rel=1e-4, nan_ok=True), name
        assert value.isfinite() == ("/C/" not in name), name
    assert {name.rpartition("/")[2] for name in wanted} >= {"contrast", "image", "text", "fused_image"}
    assert wanted[f"{STREAM}/A/contrast"] != wanted[f"{STREAM}/B/contrast"]


def test_counts_by_source_are_those_of_one_process(two):
    [[_, first], [_, second]], folders = two
    alone = loader(folders, 0, 1)
    list(alone)
    assert first == second == alone.counts.tolist()
    assert [seen for seen, *_ in first] == [30, 10]


def test_a_source_that_a_step_does_without_keeps_its_last_loss():
    losses, strategy = SourceLosses({STREAM: NAMES}), SingleDeviceStrategy("cpu")
    learn(losses, slice(0, 2))
    before = losses.means(strategy)
    learn(losses, slice(2, 4))
    after = losses.means(strategy)
    assert after[f"{STREAM}/B/text"] == before[f"{STREAM}/B/text"]
    assert after[f"{STREAM}/A/text"] != before[f"{STREAM}/A/text"]
