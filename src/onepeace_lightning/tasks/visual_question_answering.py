"""Visual question answering: the best of many learned answers to a question about a picture (VQAv2)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.losses.answers import soft_score_bce
from onepeace_lightning.modalities.image import ImageItem
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.reports.drawing import Drawn, picture_of
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.tasks.vocabulary import likeliest, vocabulary
from onepeace_lightning.training.optimizer import Optimization


class VisualQuestionAnsweringTask(FinetuneTask):
    """Answers out of a vocabulary; each is right to some degree.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        answers: those that are learned; None: those that the data list. Samples may have other answers, which count for
            nothing.
        **options: see ``FinetuneTask``.
    """

    modalities = ("text", "image")
    score_name = "accuracy"
    published: ClassVar = {"VQAv2": "VQA accuracy test-dev 82.6, test-std 82.5"}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        answers: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, optimization, **options)
        self.answers = None if answers is None else vocabulary(answers, None, "answers")

    def settings(self) -> dict[str, Any]:
        """The answers."""
        return {"answers": self.answers}

    def adopt(self, data: DataModule) -> None:
        """Take the data's answers, or check that they are the task's."""
        self.answers = vocabulary(self.answers, data.names("answers"), "answers")

    def build(self) -> ClassifyModel:
        """Attention pooling over the text's tokens with a pooler, and a score for each answer."""
        names = vocabulary(self.answers, None, "answers")
        return ClassifyModel(self.config, PoolingConfig(outputs=len(names), modality="text", pooler=True))

    def loss(self, batch: Batch) -> Tensor:
        """Binary cross-entropy against how right each answer is, summed over answers."""
        return soft_score_bce(self.model(batch.inputs), self.scores(batch))

    def scores(self, batch: Batch) -> Tensor:
        """(B, answers) float32, how right each learned answer is."""
        places = {name: place for place, name in enumerate(vocabulary(self.answers, None, "answers"))}
        scores_BC = torch.zeros(len(batch), len(places))
        for row, answers in enumerate(batch.targets["answers"]):
            for name, score in answers.items():
                if name in places:
                    scores_BC[row, places[name]] = score
        return scores_BC.to(self.device)

    def make_metrics(self) -> MetricCollection:
        """VQA accuracy: how right the given answers are, on average (arXiv 1505.00468)."""
        return MetricCollection({"accuracy": MeanMetric(nan_strategy="error")})

    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Answer a batch.

        Returns:
            {"logits": (B, answers)}.
        """
        logits_BC = self.model(batch.inputs).float()
        metrics.update(self.scores(batch).gather(1, logits_BC.argmax(1, keepdim=True)))
        return {"logits": logits_BC}

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """The picture, the model's best answer and the right ones."""
        picture = picture_of(batch.inputs["image"], row, batch.targets["size"][row])
        names = vocabulary(self.answers, None, "answers")
        [(answer, share)] = likeliest(outputs["logits"][row : row + 1].sigmoid(), names, 1)[0].items()
        right = batch.targets["answers"][row]
        expected = ", ".join(f"{name} ({score:g})" for name, score in sorted(right.items(), key=lambda one: -one[1]))
        return Drawn([picture], batch.captions[row], f"{answer} ({share:.0%})", expected, answer in right)

    def predict(
        self, image: Sequence[ImageItem], question: Sequence[str], *, top: int = 5, batch_size: int = 32
    ) -> list[dict[str, float]]:
        """Answer questions about pictures.

        Args:
            image: paths, PIL pictures, arrays or tensors.
            question: one for each picture.
            top: answers to give to each.
            batch_size: pictures that run through the model together.

        Returns:
            For each question answers with probabilities, likeliest first.

        Raises:
            ValueError: naming an item that cannot be read, or where there are more or fewer questions than pictures.
        """
        names = vocabulary(self.answers, None, "answers")
        answers = []
        with self.answering() as model:
            for first, [pictures, questions] in batched(batch_size, image=image, question=question):
                inputs = {"text": self.read("text", questions, first), "image": self.read("image", pictures, first)}
                answers += likeliest(model(inputs).float().sigmoid(), names, top)
        return answers
