"""Ending a run that was told to go, at the end of a step, in a way that loses nothing."""

import os
import signal
import subprocess
import threading
from types import FrameType

import lightning as L
from lightning.pytorch.utilities import rank_zero_info


class StopOnSignal(L.Callback):
    """On a signal, finishes the step, writes a checkpoint, ends the run, and has SLURM queue the job again.

    Lightning's own handler saves wherever the signal meets each process, in the middle of a step too, where the batch
    that is under way counts as seen already and other processes may be elsewhere. Here all processes save after the
    same step, so that the run goes on at the very next sample.

    Within a SLURM job, ``scontrol requeue`` puts it back in the queue (for ``sbatch --requeue``); the job's script
    starts the run with ``--ckpt_path last``. Elsewhere the run just ends, with exit code 0.

    Args:
        checkpoint: the file to write, best called ``last.ckpt`` in the folder of the other checkpoints.
        signals: names of the signals that mean this; whichever process gets one, all of them stop.
    """

    def __init__(self, checkpoint: str, signals: tuple[str, ...] = ("SIGUSR1", "SIGTERM")) -> None:
        if unknown := [name for name in signals if name not in signal.Signals.__members__]:
            raise ValueError(f"signals {unknown} are unknown; accepted are names such as SIGUSR1 or SIGTERM")
        self.checkpoint = checkpoint
        self.signals = signals
        self.told = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen; Lightning leaves SIGUSR1 to a handler that is there before its own."""
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            for name in self.signals:
                signal.signal(signal.Signals[name], self._tell)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen again: Lightning's handler of SIGTERM, which ends processes one by one, has come before this one."""
        self.setup(trainer, pl_module, "fit")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """Stop all processes after this step, if any was told to.

        Raises:
            SystemExit: with code 0.
        """
        if not trainer.strategy.reduce_boolean_decision(self.told, all=False):
            return
        trainer.save_checkpoint(self.checkpoint)
        for holder in (trainer.strategy, trainer.strategy.checkpoint_io):
            if (background := getattr(holder, "background", None)) is not None:
                background.wait()  # before the queue may end this job
        rank_zero_info(f"told to stop: step {trainer.global_step} is saved in {self.checkpoint}")
        if trainer.is_global_zero and (job := os.environ.get("SLURM_JOB_ID")):
            subprocess.run(["scontrol", "requeue", job], check=True)
        raise SystemExit(0)  # trainer.should_stop would still validate

    def _tell(self, signum: int, frame: FrameType | None) -> None:
        self.told = True
