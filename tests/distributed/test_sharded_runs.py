"""Sharded runs of the command: checkpoints for any number of processes, and failures that leave the last one whole."""

import json
import os
import shutil
import signal

import pytest
import torch

from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from tests.distributed.runs import EVERY_3_STEPS, RUN, callback, checkout, lines, output, run, streams

SMALL = [
    *RUN,
    "--trainer.max_steps=6",
    "--trainer.limit_val_batches=0",
    "--data.init_args.num_workers=0",
    "--data.init_args.preprocessing={image: {size: 32}}",
    streams("image-text", "audio"),
    *EVERY_3_STEPS,
    *callback("Record"),
]
SHARDED = [SMALL[0], SMALL[1], "--config=configs/trainer/fsdp.yaml", *SMALL[2:]]


@pytest.fixture(scope="module")
def two(toy_root, tmp_path_factory):
    """Two processes train six steps and save after three and six."""
    folder = checkout(tmp_path_factory.mktemp("runs") / "two", toy_root)
    assert run(folder, *SHARDED, *callback("Dump"), ranks=2) == [0, 0]
    return folder


def tensors(path) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("ranks", "replicas"), [(1, 1), (4, 2)])
def test_any_number_of_processes_takes_over_weights_and_optimizer(two, toy_root, tmp_path, ranks, replicas):
    folder = checkout(tmp_path / "other", toy_root)
    go_on = [f"--ckpt_path={two}/runs/toy/checkpoints/last.ckpt", f"--trainer.strategy.init_args.replicas={replicas}"]
    assert run(folder, *SHARDED, *callback("Dump"), "--trainer.max_steps=7", *go_on, ranks=ranks) == [0] * ranks
    wanted, got = tensors(two / "ended.pt"), tensors(folder / "started.pt")
    assert len(wanted["moments"]) > 100
    for part in ("weights", "moments"):
        assert wanted[part].keys() == got[part].keys()
        for name, tensor in wanted[part].items():
            assert torch.equal(got[part][name], tensor), f"{part} of {name}"
    assert [line["step"] for line in lines(folder)] == [7]


def test_a_sharded_checkpoint_opens_as_a_model_and_converts(two, tmp_path, capsys):
    folder = two / "runs/toy/checkpoints/last.ckpt"
    wanted = tensors(two / "ended.pt")["weights"]
    opened = OnePeace.from_pretrained(folder)
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(tensor, wanted[f"model.{name}"]), name
    main(["convert", str(folder), "--out", str(tmp_path / "model")])
    again = OnePeace.from_pretrained(tmp_path / "model")
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    torch.testing.assert_close(again.embed(text=["a red square"]), opened.embed(text=["a red square"]))


def test_one_process_s_file_goes_on_sharded_and_stage_2_starts_from_shards(two, toy_root, tmp_path, monkeypatch):
    folder = checkout(tmp_path / "whole", toy_root)
    stage2 = [f"--model.init_args.init_from={two}/runs/toy/checkpoints/last.ckpt",
              "--model.init_args.trainable=[audio]",
              "--trainer.max_steps=3", streams("audio-text"),
              "--model.init_args.optimization.warmup_steps=1"]  # fmt: skip
    assert run(folder, *SMALL, *callback("Dump"), *stage2) == [0]
    plain = tensors(folder / "started.pt")["weights"]
    trained = tensors(two / "ended.pt")["weights"]
    for name, tensor in plain.items():
        if "logit_scale" not in name:
            assert torch.equal(tensor, trained[name]), name
    assert plain["model.heads.logit_scale"] == pytest.approx(2.6593, abs=1e-4)

    sharded = checkout(tmp_path / "sharded", toy_root)
    command = [*SHARDED, *callback("Dump"), *stage2]
    assert run(sharded, *command, ranks=2) == [0, 0]
    for name, tensor in tensors(sharded / "started.pt")["weights"].items():
        assert torch.equal(tensor, plain[name]), name
    ended = tensors(sharded / "ended.pt")["weights"]
    assert torch.equal(ended["model.backbone.adapters.text.embedding.weight"],
                       plain["model.backbone.adapters.text.embedding.weight"])  # fmt: skip
    assert not torch.equal(ended["model.backbone.adapters.audio.project.weight"],
                           plain["model.backbone.adapters.audio.project.weight"])  # fmt: skip

    (sharded / "started.pt").unlink()
    go_on = [f"--ckpt_path={folder}/runs/toy/checkpoints/last.ckpt", "--trainer.max_steps=4"]
    assert run(sharded, *command, *go_on, ranks=2) == [0, 0]
    wanted, got = tensors(folder / "ended.pt"), tensors(sharded / "started.pt")
    for part in ("weights", "moments"):
        for name, tensor in wanted[part].items():
            assert torch.equal(got[part][name], tensor), f"{part} of {name}"

    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match="a sharded checkpoint"):
        main([*SMALL, f"--ckpt_path={two}/runs/toy/checkpoints/last.ckpt"])


def test_a_process_that_dies_ends_the_others_and_both_go_on_to_the_sample(two, toy_root, tmp_path):
    folder = checkout(tmp_path / "dies", toy_root)
    codes = run(folder, *SHARDED, *callback("Kill", step=4, rank=1), ranks=2)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None)
    assert "rank 0 of 2 stops at step 4: another process of this run has ended" in output(folder)
    assert "--ckpt_path last" in output(folder)
    for rank in range(2):
        (folder / f"rank{rank}.jsonl").unlink()
    assert run(folder, *SHARDED, *callback("Dump"), "--ckpt_path=last", ranks=2) == [0, 0]
    for rank in range(2):
        wanted, got = lines(two, rank), lines(folder, rank)
        assert [line["step"] for line in got] == [4, 5, 6]
        for line, expected in zip(got, wanted[3:], strict=True):
            assert (line["keys"], line["lr"]) == (expected["keys"], expected["lr"])
            assert line["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    wanted, got = tensors(two / "ended.pt"), tensors(folder / "ended.pt")
    for name, tensor in wanted["weights"].items():
        torch.testing.assert_close(got["weights"][name], tensor, atol=1e-6, rtol=0, msg=name)


def test_a_process_that_hangs_is_given_up_after_the_timeout(toy_root, tmp_path):
    folder = checkout(tmp_path / "hangs", toy_root)
    short = "--trainer.strategy.init_args.timeout_seconds=12"
    codes = run(folder, *SHARDED, short, *callback("Kill", step=4, rank=1, signal="SIGSTOP"), ranks=2, grace=1)
    assert codes[0] not in (0, None)
    assert codes[1] is None
    assert "another process of this run has ended or does not answer" in output(folder)


def test_a_full_disk_leaves_the_last_checkpoint(toy_root, tmp_path):
    folder = checkout(tmp_path / "full", toy_root)
    codes = run(folder, *SHARDED, *callback("FullDisk", step=6, rank=1), ranks=2)
    assert all(code not in (0, None) for code in codes)
    for rank in range(2):
        assert "could not be written" in output(folder, rank)
        assert "the one written before it is unharmed" in output(folder, rank)
        (folder / f"rank{rank}.jsonl").unlink()
    assert not [name for name in os.listdir(folder / "runs/toy/checkpoints") if "partial" in name or "old" in name]
    assert run(folder, *SHARDED, "--ckpt_path=last", ranks=2) == [0, 0]
    assert [line["step"] for line in lines(folder)] == [4, 5, 6]


def test_a_shard_that_disappears_ends_the_run_and_is_named(toy_root, tmp_path):
    folder = checkout(tmp_path / "gone", toy_root)
    (folder / "data").unlink()
    shutil.copytree(toy_root / "data", folder / "data")
    removed = callback(
        "RemoveShards", step=2, folder="data/toy/train/audio"
    )  # noticed by the next pass that opens them
    assert run(folder, *SMALL, *removed, "--trainer.max_steps=60") == [1]
    assert "data/toy/train/audio/00000.tar: listed, but there is no such file" in output(folder)


def test_a_loss_that_is_no_number_ends_the_run_and_its_samples_are_kept(toy_root, tmp_path):
    folder = checkout(tmp_path / "nan", toy_root)
    assert run(folder, *SMALL, *callback("Spoil", step=2)) == [1]
    assert "the loss of step 3 is nan" in output(folder)
    (kept,) = folder.rglob("not_finite_rank0.json")
    steps = json.loads(kept.read_text())["steps"]
    assert [step["step"] for step in steps] == [2, 3]
    assert [len(keys) for keys in steps[1]["keys"].values()] == [3, 3]
    assert steps[0]["keys"] == lines(folder)[1]["keys"]
    assert not (folder / "runs/toy/checkpoints/last.ckpt").exists()
