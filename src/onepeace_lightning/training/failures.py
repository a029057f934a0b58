"""What a run leaves behind when it cannot go on."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist

from onepeace_lightning.training.finite import keys_of

_LOST = (
    "closed by peer",
    "connection reset",
    "timed out",
    "timeout",
    "broken pipe",
    "connection refused",
    "nccl",
    "gloo",
)
"""How the collectives of PyTorch say that another process does not answer."""


class FiniteLoss(L.Callback):
    """Stops training at a loss that is no number, before a checkpoint of it is written, and keeps what caused it.

    ``<folder>/not_finite_rank<r>.json`` names the samples of the step, and of the one before, whose update may have
    done the damage: ``{"rank": r, "steps": [{"step": n, "loss": …, "keys": {stream: [key, …]}}, …]}``.

    Args:
        folder: where the file goes; the trainer's ``default_root_dir`` if None.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._before: dict[str, Any] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss.

        Raises:
            FloatingPointError: it is infinite or not a number.
        """
        loss = outputs.get("loss")
        if loss is None:  # the step was skipped
            return
        current = {"step": trainer.global_step, "loss": str(float(loss)), "keys": keys_of(batch)}
        if loss.isfinite().all():
            self._before = current
            return
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"not_finite_rank{trainer.global_rank}.json"
        steps = [step for step in (self._before, current) if step is not None]
        path.write_text(json.dumps({"rank": trainer.global_rank, "steps": steps}, indent=1) + "\n", encoding="utf-8")
        raise FloatingPointError(
            f"the loss of step {trainer.global_step} is {float(loss)}; the samples of this step and the one before are"
            f" listed in {path}. Look at them, lower the learning rate or clip the gradient norm"
            " (trainer.gradient_clip_val), and go on from the last checkpoint with --ckpt_path last"
        )


class LostProcess(L.Callback):
    """Says in one line when a run ends because another of its processes has ended or does not answer."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Print the line on every rank, whose own traceback would point anywhere."""
        reason = str(exception).strip().partition("\n")[0]
        if trainer.world_size > 1 and isinstance(exception, RuntimeError) and is_lost(exception):
            print(
                f"rank {trainer.global_rank} of {trainer.world_size} stops at step {trainer.global_step}: another"
                f" process of this run has ended or does not answer ({reason}). Its own output says why; then start"
                " all of them again with --ckpt_path last",
                flush=True,
            )


def is_lost(error: RuntimeError) -> bool:
    """Whether an error means that a collective call found another process gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or any(sign in text for sign in _LOST)
