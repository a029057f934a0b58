"""Visual reasoning: whether a statement about two images is true (NLVR2)."""

from typing import Any, ClassVar

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.models.adapter import SECOND
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.reports.drawing import Shown, shown_item
from onepeace_lightning.tasks.base import FINETUNING, distinct
from onepeace_lightning.tasks.labels import LabelTask
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class VisualReasoningTask(LabelTask):
    """Classes, such as "True" and "False", of a text about two items of one modality, from ``image-pair`` data.

    The text is seen with each item; learned vectors tell text, first and second item apart.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        item: the modality of both items.
        **options: see ``LabelTask``.
    """

    learns = ("pair",)
    type_embedding = True
    published: ClassVar = {"NLVR2": ("NLVR2",)}

    def __init__(
        self, backbone: BackboneSource, optimization: Optimization = FINETUNING, *, item: str = "image", **options: Any
    ) -> None:
        self.item = item
        self.modalities = distinct([text_modality(), item])
        super().__init__(backbone, optimization, **options)

    @property
    def columns(self) -> dict[str, str | None]:
        """The first items, the second items, and a statement for each pair."""
        return {"first": self.item, "second": SECOND + self.item, "text": text_modality()}

    def settings(self) -> dict[str, Any]:
        """The modality and the classes."""
        return {"item": self.item, **super().settings()}

    def build(self) -> ClassifyModel:
        """Attention pooling over the text's tokens of both passes, and a classifier of both together."""
        return ClassifyModel(self.config, PoolingConfig(outputs=len(self.names), pooled=(text_modality(),), images=2))

    def shown(self, batch: Batch, row: int) -> list[Shown]:
        """Both items."""
        one = self.preprocessing.modality(self.item, self.tokenizer)
        sizes = batch.targets["sizes"][row] if "sizes" in batch.targets else (None, None)
        inputs = (batch.inputs[self.item], batch.inputs[SECOND + self.item])
        return [shown_item(one, part, row, size) for part, size in zip(inputs, sizes, strict=True)]
