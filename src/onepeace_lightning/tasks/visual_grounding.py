"""Visual grounding: the box that a text points at (RefCOCO, RefCOCO+, RefCOCOg)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.answers import box_loss
from onepeace_lightning.metrics import BoxAccuracy
from onepeace_lightning.metrics.boxes import THRESHOLD, overlap
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.reports.drawing import GUESS, TRUE, Drawn, draw_box
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask, distinct
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class VisualGroundingTask(FinetuneTask):
    """A box in the image for each text, from ``image-box`` data.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        item: the modality that the box is in; its items are images.
        pooled: whose tokens of the fused pass the box is read from, the item's or "text"; published results pool the
            image for RefCOCO and RefCOCO+, the text for RefCOCOg. None: the item's.
        **options: see ``FinetuneTask``.

    Raises:
        ValueError: ``pooled`` is neither, or as ``FinetuneTask``.
    """

    learns = ("box",)
    score_name = "accuracy@0.5"
    published: ClassVar = {name: (name,) for name in ("RefCOCO", "RefCOCO+", "RefCOCOg")}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        item: str = "image",
        pooled: str | None = None,
        **options: Any,
    ) -> None:
        self.item = item
        self.modalities = distinct([text_modality(), item])
        super().__init__(backbone, optimization, **options)
        self.pooled = item if pooled is None else pooled
        if self.pooled not in self.modalities:
            raise ValueError(f"pooled is {pooled!r}; give {' or '.join(map(repr, self.modalities))}")

    @property
    def columns(self) -> dict[str, str | None]:
        """The images, and what to point at in each."""
        return {self.item: self.item, "text": text_modality()}

    def settings(self) -> dict[str, Any]:
        """The modality, and what is pooled."""
        return {"item": self.item, "pooled": self.pooled}

    def build(self) -> ClassifyModel:
        """Attention pooling, and four numbers."""
        return ClassifyModel(self.config, PoolingConfig(outputs=4, pooled=(self.pooled,)))

    def loss(self, batch: Batch) -> Tensor:
        """L1 and generalised IoU of the boxes."""
        logits_B4 = self.model(self.inputs(batch))
        return box_loss(logits_B4, batch.targets["box"])

    def make_metrics(self) -> MetricCollection:
        """Fraction of boxes found, and mean overlap."""
        return MetricCollection([BoxAccuracy()])

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Point in a batch: {"boxes": (B, 4) in pixels of the stored images}."""
        scale_B4 = batch.targets["size"].repeat(1, 2)
        return {"boxes": self.model(self.inputs(batch)).float().sigmoid() * scale_B4}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Compare with the right boxes; overlaps are those in pixels of the stored images."""
        metrics.update(outputs["boxes"], batch.targets["box"] * batch.targets["size"].repeat(1, 2))

    def answers(self, outputs: dict[str, Any], batch: Batch) -> list[list[float]]:
        """For each image a box x0, y0, x1, y1 in its pixels."""
        boxes: list[list[float]] = outputs["boxes"].tolist()
        return boxes

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """The image with the right box and the model's."""
        size, target = batch.targets["size"][row], batch.targets["box"][row]
        guess = outputs["boxes"][row] / size.repeat(2)
        [shown] = self.shown(batch, row)
        image = shown.image
        draw_box(image, target, TRUE)
        draw_box(image, guess, GUESS)
        shared = float(overlap(guess[None], target[None]))
        return Drawn([image], batch.captions[row], f"overlap {shared:.2f}", "", shared >= THRESHOLD)

    def batch_of(self, given: Mapping[str, Sequence[Any]], first: int) -> Batch:
        """As ``FinetuneTask.batch_of``, with the sizes of the images.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        loaded = self.load(self.item, given[self.item], first)
        batch = super().batch_of({**given, self.item: loaded}, first)
        batch.targets["size"] = torch.tensor([item.size for item in loaded], dtype=torch.float32, device=self.device)
        return batch

    def predict(self, *items: Sequence[Any], batch_size: int = 32, **named: Sequence[Any]) -> list[list[float]]:
        """Point at what texts say.

        Args:
            *items: a list of images (paths, PIL images, arrays or tensors), and one of what to point at in each.
            batch_size: images that run through the model together.
            **named: both by column, such as ``image=[…], text=[…]``.

        Returns:
            For each image a box x0, y0, x1, y1 in its pixels; a model that is not sure may give one without extent
            (x0 ≥ x1 or y0 ≥ y1).

        Raises:
            ValueError: naming an item that cannot be read, or where there are more or fewer texts than images.
        """
        return self.predicted(items, named, batch_size)
