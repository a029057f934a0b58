"""One LightningModule per task, all on one backbone."""

from onepeace_lightning.tasks.pretrain import Optimization, PretrainTask

__all__ = ["Optimization", "PretrainTask"]
