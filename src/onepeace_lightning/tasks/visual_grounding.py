"""Visual grounding: the box that a text points at (RefCOCO, RefCOCO+, RefCOCOg)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.answers import box_loss
from onepeace_lightning.metrics import BoxAccuracy
from onepeace_lightning.metrics.boxes import THRESHOLD, overlap
from onepeace_lightning.modalities.image import ImageItem
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.reports.drawing import GUESS, TRUE, Drawn, draw_box, picture_of
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class VisualGroundingTask(FinetuneTask):
    """A box in the picture for each text.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        pooled: whose tokens of the fused pass the box is read from; published results pool the image for RefCOCO and
            RefCOCO+, the text for RefCOCOg.
        **options: see ``FinetuneTask``.

    Raises:
        ValueError: ``pooled`` is neither, or as ``FinetuneTask``.
    """

    modalities = ("text", "image")
    score_name = "accuracy@0.5"
    published: ClassVar = {
        "RefCOCO": "accuracy@0.5 val 92.58, testA 94.18, testB 89.26",
        "RefCOCO+": "accuracy@0.5 val 88.77, testA 92.21, testB 83.23",
        "RefCOCOg": "accuracy@0.5 val 89.22, test 89.27",
    }

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        pooled: Literal["image", "text"] = "image",
        **options: Any,
    ) -> None:
        super().__init__(backbone, optimization, **options)
        if pooled not in self.modalities:
            raise ValueError(f"pooled is {pooled!r}; give 'image' or 'text'")
        self.pooled = pooled

    def settings(self) -> dict[str, Any]:
        """What is pooled."""
        return {"pooled": self.pooled}

    def build(self) -> ClassifyModel:
        """Attention pooling, and four numbers."""
        return ClassifyModel(self.config, PoolingConfig(outputs=4, modality=self.pooled))

    def loss(self, batch: Batch) -> Tensor:
        """L1 and generalised IoU of the boxes."""
        return box_loss(self.model(batch.inputs), batch.targets["box"])

    def make_metrics(self) -> MetricCollection:
        """Share of boxes found, and mean overlap."""
        return MetricCollection([BoxAccuracy()])

    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Point in a batch; overlaps are those in pixels of the stored pictures.

        Returns:
            {"boxes": (B, 4) in pixels of the stored pictures}.
        """
        scale_B4 = batch.targets["size"].repeat(1, 2)
        boxes_B4 = self.model(batch.inputs).float().sigmoid() * scale_B4
        metrics.update(boxes_B4, batch.targets["box"] * scale_B4)
        return {"boxes": boxes_B4}

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """The picture with the right box and the model's."""
        size, target = batch.targets["size"][row], batch.targets["box"][row]
        guess = outputs["boxes"][row] / size.repeat(2)
        picture = picture_of(batch.inputs["image"], row, size)
        draw_box(picture, target, TRUE)
        draw_box(picture, guess, GUESS)
        shared = float(overlap(guess[None], target[None]))
        return Drawn([picture], batch.captions[row], f"overlap {shared:.2f}", "", shared >= THRESHOLD)

    def predict(self, image: Sequence[ImageItem], text: Sequence[str], *, batch_size: int = 32) -> list[list[float]]:
        """Point at what texts say.

        Args:
            image: paths, PIL pictures, arrays or tensors.
            text: what to point at, one for each picture.
            batch_size: pictures that run through the model together.

        Returns:
            For each picture a box x0, y0, x1, y1 in its pixels; a model that is not sure may give one without extent
            (x0 ≥ x1 or y0 ≥ y1).

        Raises:
            ValueError: naming an item that cannot be read, or where there are more or fewer texts than pictures.
        """
        boxes: list[list[float]] = []
        with self.answering() as model:
            for first, [items, texts] in batched(batch_size, image=image, text=text):
                pictures = self.load("image", items, first)
                inputs = {"text": self.read("text", texts, first), "image": self.read("image", pictures, first)}
                sizes_B4 = torch.tensor([picture.size * 2 for picture in pictures])
                boxes += (model(inputs).float().sigmoid().cpu() * sizes_B4).tolist()
        return boxes
