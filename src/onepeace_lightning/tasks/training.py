"""What pretraining and downstream tasks have in common under Lightning's trainer."""

from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from onepeace_lightning.training.clipping import clip_gradients
from onepeace_lightning.training.seeding import seed_step


class TrainedModule(L.LightningModule):
    """Steps that draw the same random numbers wherever a run was started, and clipping that knows of shards."""

    def on_fit_start(self) -> None:
        """Remember the run's seed, which every step's random numbers are derived from."""
        self.seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Give the step random numbers (stochastic depth) that do not depend on where the run was started."""
        seed_step(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as ``trainer.gradient_clip_val`` and ``trainer.gradient_clip_algorithm`` say."""
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            clip_gradients((p for group in optimizer.param_groups for p in group["params"]), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
