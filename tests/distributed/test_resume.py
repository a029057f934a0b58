"""A run that is killed anywhere and started again sees, computes and learns what it would have without it."""

import signal

import pytest
import torch

from tests.distributed.runs import ALL_STREAMS, EVERY_3_STEPS, RUN, callback, checkout, lines, run, streams
from tests.distributed.soak import Bucket, soak

STEPS = 10
RESUMED = [
    *RUN,
    f"--trainer.max_steps={STEPS}",
    "--trainer.val_check_interval=4",
    "--model.init_args.drop_path=0.3",
    "--data.init_args.steps_per_epoch=7",  # no multiple of anything else here
]
AT_VALIDATION = [  # what the shipped configurations do
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.dirpath=runs/toy/checkpoints",
    "--trainer.callbacks.filename=best",
    "--trainer.callbacks.monitor=val/score",
    "--trainer.callbacks.mode=max",
    "--trainer.callbacks.enable_version_counter=false",
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.dirpath=runs/toy/checkpoints",
    "--trainer.callbacks.filename=last",
    "--trainer.callbacks.enable_version_counter=false",
]
CASES = {
    "at validation": (
        [*AT_VALIDATION, *callback("Record"), "--data.init_args.num_workers=1", streams(*ALL_STREAMS)],
        [{"step": 2}, {"step": 9, "where": "on_before_optimizer_step"}],  # before there is a checkpoint, and after two
    ),
    "every 3 steps": (
        [*EVERY_3_STEPS, *callback("Record"), streams("image-text", "audio")],
        [{"step": 6}, {"step": 8, "where": "on_validation_batch_end"}],
    ),
}


CASES["told to stop"] = (
    [
        *CASES["every 3 steps"][0],
        "--trainer.callbacks+=onepeace_lightning.training.preemption.StopOnSignal",
        "--trainer.callbacks.checkpoint=runs/toy/checkpoints/last.ckpt",
    ],
    [
        {"step": 4, "where": "on_before_optimizer_step", "signal": "SIGUSR1"},
        {"step": 7, "where": "on_train_batch_start", "signal": "SIGTERM"},
    ],
)


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_again_and_again_is_the_uninterrupted_one(toy_root, tmp_path, case):
    options, stops = CASES[case]
    command = [*RESUMED, *options, "--ckpt_path=last"]
    whole, folder = (checkout(tmp_path / name, toy_root) for name in ("whole", "killed"))
    assert run(whole, *command, *callback("Dump")) == [0]
    for stop in stops:
        told = "signal" in stop
        assert run(folder, *command, *callback("Kill", **stop)) == [0 if told else -signal.SIGKILL]
    assert run(folder, *command, *callback("Dump")) == [0]
    wanted = {line["step"]: line for line in lines(whole)}
    got = lines(folder)
    assert list(wanted) == list(range(1, STEPS + 1))
    assert {line["step"] for line in got} == set(wanted)
    # It went on, it did not start anew; told to stop, it lost no step at all.
    assert len(got) < 2 * STEPS
    assert case != "told to stop" or len(got) == STEPS
    for line in got:
        step = line["step"]
        assert line["keys"] == wanted[step]["keys"], step
        assert line["lr"] == wanted[step]["lr"], step
        assert line["loss"] == pytest.approx(wanted[step]["loss"], abs=1e-5), step
    assert len({line["lr"] for line in got}) > 5
    ends = [torch.load(path / "ended.pt", weights_only=True) for path in (whole, folder)]
    for part in ("weights", "moments"):
        for name, tensor in ends[0][part].items():
            torch.testing.assert_close(ends[1][part][name], tensor, atol=1e-6, rtol=0, msg=f"{part} of {name}")


def test_the_first_process_says_for_all_whether_there_is_a_checkpoint(toy_root, tmp_path):
    folder = checkout(tmp_path / "blind", toy_root)
    command = [
        *RUN, "--trainer.limit_val_batches=0", "--model.init_args.optimization.warmup_steps=1",
        "--data.init_args.num_workers=0", streams("text"), *EVERY_3_STEPS,
        *callback("Record"),
    ]  # fmt: skip
    last = ["--ckpt_path=last", "--trainer.strategy=ddp"]
    assert run(folder, *command, "--trainer.max_steps=3") == [0]
    (folder / "rank0.jsonl").unlink()
    assert run(folder, *command, "--trainer.max_steps=5", *last, *callback("Blind", but=0), ranks=2) == [0, 0]
    assert [[line["step"] for line in lines(folder, rank)] for rank in range(2)] == [[4, 5], [4, 5]]


@pytest.mark.timeout(600)
def test_a_kill_over_a_bad_network_loses_and_doubles_no_sample(toy_root, tmp_path):
    """The short form of ``tests.distributed.soak --s3_errors 0.02``."""
    pytest.importorskip("moto", reason="the bucket is moto's server: pip install moto[server]")
    pytest.importorskip("s3fs", reason="buckets are an extra: pip install onepeace-lightning[cloud]")
    folder, names = checkout(tmp_path / "soak", toy_root), ("image-text", "audio")
    bucket = Bucket(folder, names, 0.02)
    try:
        found = soak(folder, 4, 1, undisturbed=2, names=names, remote=bucket.remote)
    finally:
        requests = bucket.close()
    assert found.steps == 6
    assert found.resumed == 1
    assert found.topologies == 2
    assert max(found.passes.values()) > 1
    assert requests["errors"] + requests["cuts"] > 0
