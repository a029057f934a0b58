"""AdamW over parameter groups, its learning rate by step: what every task trains with (paper appendix A)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from onepeace_lightning.training.param_groups import parameter_groups
from onepeace_lightning.training.schedule import Shape, warmup_and_decay


@dataclass(frozen=True)
class Optimization:
    """AdamW with warm-up and decay by step (paper appendix A).

    Attributes:
        total_steps: optimizer steps of the whole run; a configuration links it to ``trainer.max_steps``. Downstream
            tasks also take None: then it follows from the trainer.
        lr: peak learning rate.
        min_lr: learning rate at both ends.
        warmup_steps: steps from ``min_lr`` to ``lr``; below 1 it is a fraction of ``total_steps``.
        weight_decay: for matrices, convolutions and bias tables.
        layer_decay: factor of the learning rate from one block to the one before.
        betas: of AdamW.
        eps: of AdamW.
        schedule: what follows warm-up: "cosine" to ``min_lr``; "linear" to ``min_lr``, a line that would have begun at
            step 0; "steps", a tenth at each of ``milestones``.
        warmup_from: the first learning rate as a fraction of ``lr``; None: ``min_lr``.
        milestones: steps of the schedule "steps".
        max_skipped_steps: steps in a row whose gradient is not finite and that are therefore left out
            (``finite.SkippedSteps``); so many end the run.
    """

    total_steps: int | None = None
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_steps: int | float = 3000
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    schedule: Shape = "cosine"
    warmup_from: float | None = None
    milestones: tuple[int, ...] = ()
    max_skipped_steps: int = 10


class ShardAdamW(torch.optim.AdamW):
    """AdamW that updates each process's own shards as plain tensors.

    DTensor keeps a plan of every operation by its numbers, and AdamW's step sizes are new ones each step: memory would
    grow without end (pytorch/pytorch#178276).
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        return has_complex


def adamw(module: nn.Module, settings: Optimization, total_steps: int | None = None) -> dict[str, Any]:
    """Optimizer and schedule of a module's trainable parameters, as ``configure_optimizers`` returns them.

    Args:
        module: with a ``backbone``, whose parameter names the groups go by.
        settings: learning rates and decays.
        total_steps: where ``settings`` has none.

    Raises:
        ValueError: where nobody says how many steps there are, or a setting is out of its range.
    """
    total = settings.total_steps if settings.total_steps is not None else total_steps
    if total is None:
        raise ValueError("optimization: total_steps is None; give the run's number of optimizer steps")
    warmup = round(settings.warmup_steps * total) if 0 < settings.warmup_steps < 1 else int(settings.warmup_steps)
    groups = parameter_groups(
        module, lr=settings.lr, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay
    )
    optimizer = ShardAdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    schedule = warmup_and_decay(
        optimizer, total_steps=total, warmup_steps=warmup, min_lr=settings.min_lr, start=settings.warmup_from,
        shape=settings.schedule, milestones=settings.milestones,
    )  # fmt: skip
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
