"""One LightningModule per task, all on one backbone."""

from .pretrain import Optimization, PretrainTask

__all__ = ["Optimization", "PretrainTask"]
