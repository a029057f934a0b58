"""What tasks with class names share: classes, losses, metrics and answers."""

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
from onepeace_lightning.metrics.chance import CommonestAnswer, RandomScores
from onepeace_lightning.reports.drawing import Drawn
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask
from onepeace_lightning.tasks.class_names import adopted_names, indices, known_names, likeliest
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class LabelTask(FinetuneTask):
    """Samples in classes, one or several for each; a subclass builds the model and draws its samples.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        classes: their names, in the order of the model's outputs; None: those that the data list.
        num_classes: how many there are, to have the data checked; where nobody names them, they are called "0", "1", ….
        multi_label: a sample may be in several classes; the loss is binary cross-entropy, the score mean average
            precision. Otherwise it is in one: cross-entropy and accuracy.
        label_smoothing: of the cross-entropy.
        **options: see ``FinetuneTask``.
    """

    learns = ("label",)

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
        self.classes = None if classes is None else known_names(classes, None, "classes")
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing

    @property
    def names(self) -> list[str]:
        """The classes.

        Raises:
            ValueError: they are not known yet.
        """
        return adopted_names(self.classes, self.num_classes, None, "classes")

    @property
    def score_name(self) -> str:  # type: ignore[override]
        """The metric to choose checkpoints by."""
        return "mAP" if self.multi_label else "accuracy"

    def settings(self) -> dict[str, Any]:
        """Classes and what an answer is."""
        known = self.classes is not None or self.num_classes is not None
        return {"classes": self.names if known else None, "multi_label": self.multi_label}

    def adopt(self, data: DataModule) -> None:
        """Take the data's class names, or check that the task knows them."""
        self.classes = adopted_names(self.classes, self.num_classes, data.names("classes"), "classes")

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the samples' classes, binary for several labels (summed over classes)."""
        logits_BC = self.model(self.inputs(batch))
        return self.loss_of(logits_BC, self.targets(batch))

    def loss_of(self, logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
        """Loss of logits against fractions of classes."""
        if self.multi_label:
            return soft_score_bce(logits_BC, targets_BC)
        return F.cross_entropy(logits_BC.float(), targets_BC, label_smoothing=self.label_smoothing)

    def targets(self, batch: Batch) -> Tensor:
        """(B, C) float32, 1 for the classes that a sample is in.

        Raises:
            ValueError: for an unknown class, or several of one sample where there should be one.
        """
        among = {name: index for index, name in enumerate(self.names)}
        targets_BC = torch.zeros(len(batch), len(among), device=self.device)
        for row, (key, labels) in enumerate(zip(batch.keys, batch.targets["labels"], strict=True)):
            if not self.multi_label and len(labels) != 1:
                raise ValueError(f"sample {key!r} has labels {labels}; one is expected unless multi_label is set")
            targets_BC[row, indices(labels, among, "class")] = 1.0
        return targets_BC

    def make_metrics(self) -> MetricCollection:
        """Accuracy of the first answer and of the best five, or mean AP; beside what one has without an input."""
        classes = len(self.names)
        metrics: dict[str, Metric | MetricCollection] = {
            "mAP": MultilabelAveragePrecision(classes),
            "chance/mAP": RandomScores(classes),
        }
        if not self.multi_label:
            metrics = {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "chance/accuracy": CommonestAnswer(classes),
            }
            if classes > 5:
                metrics["accuracy_top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        return MetricCollection(metrics)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Classify a batch: {"logits": (B, C)}."""
        return {"logits": self.model(self.inputs(batch)).float()}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Compare with the samples' classes."""
        targets_BC = self.targets(batch)
        metrics.update(outputs["logits"], targets_BC.long() if self.multi_label else targets_BC.argmax(1))

    def answers(self, outputs: dict[str, Any], batch: Batch, top: int = 5) -> list[dict[str, float]]:
        """For each sample its likeliest classes with their probabilities, likeliest first."""
        return likeliest(self.probabilities(outputs["logits"]), self.names, top)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """(B, C) probabilities of classes, which exclude one another unless there may be several labels."""
        return logits_BC.sigmoid() if self.multi_label else logits_BC.softmax(-1)

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """The sample, the model's likeliest class and the right ones."""
        [answer] = self.answers({"logits": outputs["logits"][row : row + 1]}, batch, 1)
        [(name, probability)] = answer.items()
        right = batch.targets["labels"][row]
        asked = batch.captions[row] if row < len(batch.captions) else ""
        return Drawn(self.shown(batch, row), asked, f"{name} ({probability:.0%})", ", ".join(right), name in right)

    def predict(
        self, *items: Sequence[Any], top: int = 5, batch_size: int = 32, **named: Sequence[Any]
    ) -> list[dict[str, float]]:
        """Classify.

        Args:
            *items: a list for each of the task's ``columns``, in this order: paths, or objects in memory.
            top: classes to name for each.
            batch_size: samples that run through the model together.
            **named: lists by column, such as ``image=[…]``.

        Returns:
            For each sample class names with probabilities, likeliest first.

        Raises:
            ValueError: naming an item that cannot be read, or a column that is missing.
        """
        return self.predicted(items, named, batch_size, top=top)
