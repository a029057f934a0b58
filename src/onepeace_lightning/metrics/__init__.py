"""Metrics that torchmetrics lacks."""

from onepeace_lightning.metrics.recall import CrossModalRecall, caption_ids

__all__ = ["CrossModalRecall", "caption_ids"]
