"""One LightningModule per task, all on one backbone."""

from onepeace_lightning.optim.adamw import Optimization
from onepeace_lightning.tasks.pretrain import PretrainTask

__all__ = ["Optimization", "PretrainTask"]
