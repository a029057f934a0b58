"""One LightningModule per task, all on one backbone."""

from onepeace_lightning.optim.adamw import Optimization
from onepeace_lightning.tasks.audio_classification import AudioClassificationTask
from onepeace_lightning.tasks.base import FinetuneTask, load_task
from onepeace_lightning.tasks.image_classification import ImageClassificationTask
from onepeace_lightning.tasks.lora import Lora
from onepeace_lightning.tasks.pretrain import PretrainTask

__all__ = [
    "AudioClassificationTask", "FinetuneTask", "ImageClassificationTask", "Lora", "Optimization", "PretrainTask",
    "load_task",
]  # fmt: skip
