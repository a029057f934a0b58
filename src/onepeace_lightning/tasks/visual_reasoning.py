"""Visual reasoning: whether a statement about two pictures is true (NLVR2)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.image import ImageItem
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.reports.drawing import Drawn, picture_of
from onepeace_lightning.tasks.classification import ClassificationTask
from onepeace_lightning.tasks.vocabulary import likeliest, vocabulary


class VisualReasoningTask(ClassificationTask):
    """Classes, such as "True" and "False", of a text about two pictures; see ``ClassificationTask``.

    The text is seen with each picture; learned vectors tell text, first and second picture apart.
    """

    modalities = ("text", "image")
    type_embedding = True
    published: ClassVar = {"NLVR2": "accuracy dev 87.8, test-P 88.3"}

    def build(self) -> ClassifyModel:
        """Attention pooling over the text's tokens of both passes, and a classifier of both together."""
        names = vocabulary(self.classes, None, "classes")
        return ClassifyModel(self.config, PoolingConfig(outputs=len(names), modality="text", images=2))

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """Both pictures, the model's class and the right one."""
        sizes = batch.targets["sizes"][row]
        pictures = [
            picture_of(images, row, size)
            for images, size in zip((batch.inputs["image"], batch.inputs["second_image"]), sizes, strict=True)
        ]
        names = vocabulary(self.classes, None, "classes")
        [(answer, share)] = likeliest(self.probabilities(outputs["logits"][row : row + 1]), names, 1)[0].items()
        right = batch.targets["labels"][row]
        return Drawn(pictures, batch.captions[row], f"{answer} ({share:.0%})", ", ".join(right), answer in right)

    def predict(
        self, first: Sequence[ImageItem], second: Sequence[ImageItem], text: Sequence[str], *, batch_size: int = 32
    ) -> list[dict[str, float]]:
        """Judge statements about two pictures.

        Args:
            first: paths, PIL pictures, arrays or tensors; the left pictures.
            second: the right pictures, one for each.
            text: a statement for each pair.
            batch_size: pairs that run through the model together.

        Returns:
            For each pair class names with probabilities, likeliest first.

        Raises:
            ValueError: naming an item that cannot be read, or where there are not equally many of each.
        """
        names = vocabulary(self.classes, None, "classes")
        answers = []
        with self.answering() as model:
            for number, [left, right, texts] in batched(batch_size, first=first, second=second, text=text):
                images = {"image": self.read("image", left, number), "second_image": self.read("image", right, number)}
                logits_BC = model({"text": self.read("text", texts, number), **images}).float()
                answers += likeliest(self.probabilities(logits_BC), names, len(names))
        return answers
