"""What a run does at a loss that is no number, and when it is told to go; whole runs are in ``tests/distributed``."""

import os
import signal
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.training.failures import FiniteLoss, LostProcess
from onepeace_lightning.training.preemption import StopOnSignal


def trainer_at(step: int, folder, **more) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, global_rank=1, default_root_dir=str(folder), **more)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_names_this_step_and_the_one_before(tmp_path, value):
    callback, module = FiniteLoss(), L.LightningModule()
    for step in (6, 7):
        batch = {"image-text": Batch([f"key {step}"], {})}
        callback.on_train_batch_end(trainer_at(step, tmp_path), module, {"loss": torch.tensor(1.0)}, batch, 0)
    callback.on_train_batch_end(trainer_at(7, tmp_path), module, {}, Batch(["skipped"], {}), 0)
    with pytest.raises(FloatingPointError, match=r"step 8 is (nan|inf); .*not_finite_rank1.json"):
        callback.on_train_batch_end(
            trainer_at(8, tmp_path), module, {"loss": torch.tensor(value)}, Batch(["key 8"], {}), 0
        )
    kept = (tmp_path / "not_finite_rank1.json").read_text()
    assert "key 7" in kept
    assert "key 8" in kept
    assert "key 6" not in kept


@pytest.mark.parametrize(
    ("error", "ranks", "said"),
    [
        (RuntimeError("Connection closed by peer"), 2, True),
        (RuntimeError("Connection closed by peer"), 1, False),
        (RuntimeError("shapes differ"), 2, False),
        (ValueError("Connection closed by peer"), 2, False),
    ],
)
def test_only_the_loss_of_a_process_is_called_so(capsys, tmp_path, error, ranks, said):
    LostProcess().on_exception(trainer_at(3, tmp_path, world_size=ranks), L.LightningModule(), error)
    assert ("another process of this run has ended" in capsys.readouterr().out) == said


def test_a_signal_stops_after_the_step_and_queues_the_job_again(tmp_path, monkeypatch):
    queue = tmp_path / "scontrol"
    queue.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    saved: list[str] = []
    trainer = trainer_at(
        5,
        tmp_path,
        is_global_zero=True,
        save_checkpoint=saved.append,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda told, all: told, checkpoint_io=None),
    )
    callback = StopOnSignal("last.ckpt", signals=("SIGUSR2",))
    before = signal.getsignal(signal.SIGUSR2)
    try:
        callback.setup(trainer, L.LightningModule(), "fit")
        callback.on_train_batch_end(trainer, L.LightningModule())
        assert not saved
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(SystemExit) as stop:
            callback.on_train_batch_end(trainer, L.LightningModule())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert stop.value.code == 0
    assert saved == ["last.ckpt"]
    assert (tmp_path / "asked").read_text() == "requeue 17\n"


def test_an_unknown_signal_is_named():
    with pytest.raises(ValueError, match="SIGNOTHING"):
        StopOnSignal("last.ckpt", signals=("SIGNOTHING",))
