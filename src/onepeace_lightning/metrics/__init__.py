"""Metrics that torchmetrics lacks."""

from onepeace_lightning.metrics.boxes import BoxAccuracy
from onepeace_lightning.metrics.recall import CrossModalRecall, caption_ids

__all__ = ["BoxAccuracy", "CrossModalRecall", "caption_ids"]
