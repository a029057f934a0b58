"""What pretraining and downstream tasks have in common under Lightning's trainer."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from onepeace_lightning.models.heads.contrastive import ContrastiveHeads
from onepeace_lightning.training.clipping import gradient_norm, scale_gradients
from onepeace_lightning.training.finite import SkippedSteps, refuse_non_finite
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.seeding import seed_step


class TrainedModule(L.LightningModule):
    """Steps that draw the same random numbers wherever a run was started, and leave weights finite.

    Attributes:
        optimization: learning rates, decays and how many non-finite steps are borne.
    """

    optimization: Optimization
    untrained: int = 0
    """Numbers of the built model that have random initial values; a checkpoint is needed to measure it."""

    def monitor(self, data: Any) -> str | None:
        """The logged score to choose checkpoints by, more is better; None where the data give none."""
        return "val/score" if getattr(data, "val", None) else None

    def total_steps(self) -> int | None:
        """Optimizer steps of the run: as configured, or what the trainer's settings amount to; nothing is loaded."""
        if self.optimization.total_steps is not None:
            return self.optimization.total_steps
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps
        steps = getattr(getattr(trainer, "datamodule", None), "steps_per_epoch", None)
        if steps is None or trainer.max_epochs is None or trainer.max_epochs < 0:
            return None
        return max(1, trainer.max_epochs * steps // trainer.accumulate_grad_batches)

    def configure_callbacks(self) -> list[L.Callback]:
        """Count steps that are skipped."""
        self.skipped = SkippedSteps(self.optimization.max_skipped_steps)
        return [self.skipped]

    def on_fit_start(self) -> None:
        """Remember the run's seed, which every step's random numbers are derived from."""
        self.seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Give the step random numbers that do not depend on where the run was started; bound the temperature."""
        seed_step(self.seed, self.current_epoch, batch_idx, self.global_rank)
        for module in self.modules():
            if isinstance(module, ContrastiveHeads):  # where it is sharded, only here is it the parameter itself
                module.bound_temperature()

    def log_means(self, values: Mapping[str, Tensor], batch_size: int = 1) -> None:
        """Log scalars averaged over all ranks, by one collective call; ``train/loss`` is shown in the progress bar.

        Args:
            values: the same names in the same order on every rank.
            batch_size: for averages over an epoch.
        """
        if self._trainer is None:
            return
        means = self.trainer.strategy.reduce(torch.stack([v.detach().float() for v in values.values()]))
        for name, mean in zip(values, means.unbind(), strict=True):
            self.log(name, mean, prog_bar=name == "train/loss", batch_size=batch_size)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the gradient's norm, leave the step out where it is not finite, else clip as the trainer says.

        Without gradients the optimizer changes nothing: no weight, no moment, no count of steps.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = gradient_norm(parameters)
        if self.skipped.judge(self.trainer, norm):
            for parameter in parameters:
                parameter.grad = None
        elif gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            scale_gradients(parameters, (gradient_clip_val / (norm + 1e-6)).clamp(max=1.0))
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.log("train/gradient_norm", norm, batch_size=1)
        self.log("train/skipped_steps", float(self.skipped.total), batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write what is not finite.

        Raises:
            FloatingPointError: on every rank, naming the tensors.
        """
        if self._trainer is not None:
            refuse_non_finite(self.trainer, checkpoint)
