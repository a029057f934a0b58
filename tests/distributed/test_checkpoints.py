"""Checkpoints of two processes: in the background, at a URL, with a moving average, and when the disk is full."""

from pathlib import Path

import pytest
import torch

from onepeace_lightning.checkpoints.loading import read_checkpoint
from onepeace_lightning.training.checkpoints import RecentCheckpoints, recent
from tests.distributed.runs import RUN, callback, checkout, output, run, streams

STRATEGIES = {"ddp": ["--trainer.strategy=ddp"], "fsdp": ["--config=configs/trainer/fsdp.yaml"]}


def command(strategy: str, folder: str, steps: int, *, asynchronous: bool) -> list[str]:
    written = {"dirpath": folder, "every_n_train_steps": 2, "keep": 2, "asynchronous": str(asynchronous).lower()}
    return [
        *RUN[:2], *STRATEGIES[strategy], *RUN[2:], f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=0",
        "--data.init_args.num_workers=0", "--data.init_args.preprocessing={image: {size: 32}}", streams("image-text"),
        "--trainer.default_root_dir=.", f"--trainer.callbacks={RecentCheckpoints.__module__}.RecentCheckpoints",
        *(f"--trainer.callbacks.{name}={value}" for name, value in written.items()),
        "--trainer.callbacks+=onepeace_lightning.training.averaging.WeightAverage", "--trainer.callbacks.decay=0.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "folder", "asynchronous"),
    [("ddp", "{}/kept", True), ("fsdp", "{}/kept", True), ("fsdp", "local://{}/bucket", False)],
)
def test_checkpoints_hold_the_average_and_both_go_on(strategy, folder, asynchronous, toy_root, tmp_path):
    place = checkout(tmp_path / strategy, toy_root)
    kept = folder.format(place)
    words = command(strategy, kept, 5, asynchronous=asynchronous)
    assert run(place, *words, *callback("FollowAverage", decay=0.2), ranks=2) == [0, 0]
    assert [Path(path).name for path in recent(kept)] == ["step=5.ckpt", "step=4.ckpt"]
    if "://" not in kept:
        assert (Path(kept) / "last.ckpt").readlink().name == "step=5.ckpt"
        assert not [path.name for path in Path(kept).iterdir() if path.name.startswith(".")]
    followed = torch.load(place / "followed.pt", weights_only=True)
    state = read_checkpoint(recent(kept)[0])["state_dict"]
    moved = 0
    for name, average in followed["average"].items():
        torch.testing.assert_close(state[name], average, atol=1e-6, rtol=0, msg=name)
        moved += not torch.equal(average, followed["weights"][name])
    assert moved > 100

    last = {"last": Path(kept) / "last.ckpt", "url": recent(kept)[1]}["url" if "://" in kept else "last"]
    steps = 6 if "://" not in kept else 5  # from step 5 on to 6, or step 5 again from 4
    resumed = [*command(strategy, kept, steps, asynchronous=asynchronous), f"--ckpt_path={last}"]
    assert run(place, *resumed, *callback("Dump"), ranks=2) == [0, 0]
    if "://" in kept:
        again = read_checkpoint(recent(kept)[0])["state_dict"]
        ended = torch.load(place / "ended.pt", weights_only=True)["weights"]
        for name, average in followed["average"].items():
            torch.testing.assert_close(again[name], average, atol=1e-6, rtol=0, msg=name)
            torch.testing.assert_close(ended[name], followed["weights"][name], atol=1e-6, rtol=0, msg=name)
    else:
        started = torch.load(place / "started.pt", weights_only=True)["weights"]
        for name, weight in followed["weights"].items():
            torch.testing.assert_close(started[name], weight, atol=0, rtol=0, msg=name)
        assert [Path(path).name for path in recent(kept)] == ["step=6.ckpt", "step=5.ckpt"]


def test_a_full_disk_in_the_background_ends_the_run_and_last_is_whole(toy_root, tmp_path):
    place = checkout(tmp_path / "full", toy_root)
    words = command("fsdp", f"{place}/kept", 8, asynchronous=True)
    codes = run(place, *words, *callback("FullDisk", step=6, rank=1), ranks=2)
    assert all(code not in (0, None) for code in codes)
    for rank in range(2):
        assert "could not be written" in output(place, rank)
    step = read_checkpoint(place / "kept/last.ckpt")["global_step"]
    assert step in (2, 4)  # the fourth may have been under way
    assert (place / "kept/last.ckpt").readlink().name == f"step={step}.ckpt"
