"""What classification of pictures, sounds and pairs of pictures shares: classes, losses, metrics and answers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.losses.answers import soft_score_bce
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.tasks.vocabulary import indices, likeliest, vocabulary
from onepeace_lightning.training.optimizer import Optimization


class ClassificationTask(FinetuneTask):
    """Samples in classes, one or several for each.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        classes: their names; None: those that the data list.
        num_classes: how many there are, where they have no names: they are then called "0", "1", ….
        multi_label: a sample may be in several classes; the loss is binary cross-entropy, the score mean average
            precision. Otherwise it is in one: cross-entropy and accuracy.
        label_smoothing: of the cross-entropy.
        **options: see ``FinetuneTask``.
    """

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        classes: list[str] | None = None,
        num_classes: int | None = None,
        multi_label: bool = False,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, optimization, **options)
        if classes is not None and num_classes is not None and len(classes) != num_classes:
            raise ValueError(f"num_classes is {num_classes}, but classes names {len(classes)}; leave one of them out")
        if not 0 <= label_smoothing < 1 or (multi_label and label_smoothing):
            raise ValueError(f"label_smoothing is {label_smoothing}; give 0 to 1, and 0 where there are several labels")
        if classes is None and num_classes is not None:
            classes = [str(number) for number in range(num_classes)]
        self.classes = None if classes is None else vocabulary(classes, None, "classes")
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing

    @property
    def score_name(self) -> str:  # type: ignore[override]
        """The metric to choose checkpoints by."""
        return "mAP" if self.multi_label else "accuracy"

    def settings(self) -> dict[str, Any]:
        """Classes and what an answer is."""
        return {"classes": self.classes, "multi_label": self.multi_label}

    def adopt(self, data: DataModule) -> None:
        """Take the data's class names, or check that they are the task's."""
        self.classes = vocabulary(self.classes, data.names("classes"), "classes")

    def build(self) -> ClassifyModel:
        """Attention pooling over the modality's tokens, and a classifier."""
        [modality] = self.modalities
        names = vocabulary(self.classes, None, "classes")
        return ClassifyModel(self.config, PoolingConfig(outputs=len(names), modality=modality))

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the samples' classes, binary for several labels (summed over classes)."""
        return self.loss_of(self.model(batch.inputs), self.targets(batch))

    def loss_of(self, logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
        """Loss of logits against shares of classes."""
        if self.multi_label:
            return soft_score_bce(logits_BC, targets_BC)
        return F.cross_entropy(logits_BC.float(), targets_BC, label_smoothing=self.label_smoothing)

    def targets(self, batch: Batch) -> Tensor:
        """(B, C) float32, 1 for the classes that a sample is in.

        Raises:
            ValueError: for an unknown class, or several of one sample where there should be one.
        """
        among = self._places
        targets_BC = torch.zeros(len(batch), len(among), device=self.device)
        for row, (key, labels) in enumerate(zip(batch.keys, batch.targets["labels"], strict=True)):
            if not self.multi_label and len(labels) != 1:
                raise ValueError(f"sample {key!r} has labels {labels}; one is expected unless multi_label is set")
            targets_BC[row, indices(labels, among, "class")] = 1.0
        return targets_BC

    def make_metrics(self) -> MetricCollection:
        """Accuracy of the first and of the best five answers, or mean average precision, in percent."""
        classes = len(vocabulary(self.classes, None, "classes"))
        metrics: dict[str, Metric | MetricCollection] = {"mAP": MultilabelAveragePrecision(classes)}
        if not self.multi_label:
            metrics = {"accuracy": MulticlassAccuracy(classes, average="micro")}
            if classes > 5:
                metrics["accuracy_top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        return MetricCollection(metrics)

    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Classify a batch.

        Returns:
            {"logits": (B, C)}.
        """
        logits_BC, targets_BC = self.model(batch.inputs).float(), self.targets(batch)
        metrics.update(logits_BC, targets_BC.long() if self.multi_label else targets_BC.argmax(1))
        return {"logits": logits_BC}

    def classify(self, items: Sequence[Any], top: int, batch_size: int) -> list[dict[str, float]]:
        """For each item the names of the likeliest classes, likeliest first, with their probabilities."""
        [modality] = self.modalities
        names = vocabulary(self.classes, None, "classes")
        answers = []
        with self.answering() as model:
            for first, [part] in batched(batch_size, **{modality: items}):
                logits_BC = model({modality: self.read(modality, part, first)}).float()
                answers += likeliest(self.probabilities(logits_BC), names, top)
        return answers

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """(B, C) probabilities of classes, which exclude one another unless there may be several labels."""
        return logits_BC.sigmoid() if self.multi_label else logits_BC.softmax(-1)

    @property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(vocabulary(self.classes, None, "classes"))}
