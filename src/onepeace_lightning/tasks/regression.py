"""Regression: numbers of samples of one modality, or of several that are seen together."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.reports.drawing import Drawn
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask, distinct
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class RegressionTask(FinetuneTask):
    """Numbers of samples, from ``image-target``, ``audio-target``, … data (``onepeace shards … --target-col``).

    The model gives each number in standard deviations of the training data from their mean, and learns the squared
    error of that; answers are in the numbers' own units.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        modalities: what the numbers are of, such as ``["audio"]`` or ``["image", "audio"]``; any that is registered.
        targets: name of a number to ``{"mean", "std"}`` of its values; None: what the data's manifest says.
        **options: see ``FinetuneTask``.

    Raises:
        ValueError: a deviation is not above 0, or as ``FinetuneTask``.
    """

    to_percent = None
    learns = ("target",)
    score_name: ClassVar[str] = "R2"

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        modalities: Sequence[str],
        targets: Mapping[str, Mapping[str, float]] | None = None,
        **options: Any,
    ) -> None:
        self.modalities = distinct(modalities)
        super().__init__(backbone, optimization, **options)
        self.targets = None if targets is None else _checked(targets)

    @property
    def scales(self) -> dict[str, dict[str, float]]:
        """Each number's mean and standard deviation.

        Raises:
            ValueError: they are not known yet.
        """
        if self.targets is None:
            raise ValueError("targets: nobody says what numbers there are; give {name: {mean: …, std: …}}, or the data")
        return self.targets

    def settings(self) -> dict[str, Any]:
        """Modalities and numbers."""
        return {"modalities": list(self.modalities), "targets": self.targets}

    def adopt(self, data: DataModule) -> None:
        """Take the numbers' names and scales from the training data, or check that they are the task's."""
        listed = next((one.about["targets"] for one in data.manifests().values() if "targets" in one.about), None)
        if self.targets is None and listed is not None:
            self.targets = _checked(listed)
        elif listed is not None and list(listed) != list(self.scales):
            raise ValueError(f"the data's numbers are {', '.join(listed)}, the task's {', '.join(self.scales)}")

    def build(self) -> ClassifyModel:
        """The modalities' branches, attention pooling over their tokens, and an output for each number."""
        return ClassifyModel(self.config, PoolingConfig(outputs=len(self.scales), pooled=self.modalities))

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error in standard deviations."""
        outputs_BK = self.model(self.inputs(batch)).float()
        mean_K, std_K = self._scale()
        return F.mse_loss(outputs_BK, (self.values(batch) - mean_K) / std_K)

    def values(self, batch: Batch) -> Tensor:
        """(B, K) float32 right numbers.

        Raises:
            ValueError: naming a sample that lacks one.
        """
        rows = []
        for key, numbers in zip(batch.keys, batch.targets["targets"], strict=True):
            if lacking := [name for name in self.scales if name not in numbers]:
                raise ValueError(f"sample {key!r} has no {', '.join(lacking)}; it has {', '.join(numbers)}")
            rows.append([numbers[name] for name in self.scales])
        return torch.tensor(rows, device=self.device)

    def make_metrics(self) -> MetricCollection:
        """R², of which the mean would give 0, and mean absolute error in standard deviations, over all numbers."""
        return MetricCollection({"R2": R2Score(), "MAE/std": MeanAbsoluteError()})

    def score(self, values: Mapping[str, Tensor]) -> Tensor:
        """R²."""
        return values[self.score_name]

    def forward(self, batch: Batch) -> dict[str, Any]:
        """The numbers of a batch: {"values": (B, K)}."""
        mean_K, std_K = self._scale()
        return {"values": self.model(self.inputs(batch)).float() * std_K + mean_K}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Compare with the right numbers."""
        mean_K, std_K = self._scale()
        metrics.update((outputs["values"] - mean_K) / std_K, (self.values(batch) - mean_K) / std_K)

    def answers(self, outputs: dict[str, Any], batch: Batch) -> list[dict[str, float]]:
        """For each sample its numbers by name."""
        return [dict(zip(self.scales, row, strict=True)) for row in outputs["values"].tolist()]

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """The sample, the model's numbers and the right ones; right within half a standard deviation."""
        given, right = outputs["values"][row].tolist(), self.values(batch)[row].tolist()
        deviations = self._scale()[1].tolist()
        near = all(abs(x - y) <= 0.5 * std for x, y, std in zip(given, right, deviations, strict=True))
        return Drawn(self.shown(batch, row), "", self._written(given), self._written(right), near)

    def predict(self, *items: Sequence[Any], batch_size: int = 32, **named: Sequence[Any]) -> list[dict[str, float]]:
        """Numbers of samples.

        Args:
            *items: a list for each of the task's ``columns``, in this order: paths, or objects in memory.
            batch_size: samples that run through the model together.
            **named: lists by column, such as ``image=[…]``.

        Returns:
            For each sample its numbers by name.

        Raises:
            ValueError: naming an item that cannot be read, or a column that is missing.
        """
        return self.predicted(items, named, batch_size)

    def _scale(self) -> tuple[Tensor, Tensor]:
        """(K,) means and standard deviations."""
        rows = [[scale["mean"], scale["std"]] for scale in self.scales.values()]
        mean_K, std_K = torch.tensor(rows, device=self.device).unbind(1)
        return mean_K, std_K

    def _written(self, numbers: Sequence[float]) -> str:
        return ", ".join(f"{name} {number:.4g}" for name, number in zip(self.scales, numbers, strict=True))


def _checked(targets: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    found = {}
    for name, scale in targets.items():
        if set(scale) != {"mean", "std"} or not scale["std"] > 0:
            raise ValueError(f"target {name!r} is {dict(scale)}; give mean, and std above 0 (its values must differ)")
        found[name] = {key: float(value) for key, value in scale.items()}
    if not found:
        raise ValueError("targets names no number; give {name: {mean: …, std: …}}")
    return found
