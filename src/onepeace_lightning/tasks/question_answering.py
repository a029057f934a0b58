"""Question answering: the best of many learned answers to a question about samples of any modalities (VQAv2)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.losses.answers import soft_score_bce
from onepeace_lightning.metrics.chance import CommonestAnswer
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.reports.drawing import Drawn
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask, distinct
from onepeace_lightning.tasks.class_names import adopted_names, known_names, likeliest
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class QuestionAnsweringTask(FinetuneTask):
    """Learned answers, each right to some degree, from ``image-question``, ``image-audio-question``, … data.

    The question is seen with the sample's items, and the answer is read from its tokens.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        modalities: what is asked about, such as ``["image"]`` or ``["image", "audio"]``; any that is registered.
        answers: those that are learned, in the order of the model's outputs; None: those that the data list. Samples
            may have other answers, which count for nothing.
        num_answers: how many there are, to have the data checked; where nobody names them, they are called "0", "1", ….
        **options: see ``FinetuneTask``.
    """

    learns = ("question",)
    score_name = "accuracy"
    published: ClassVar = {"VQAv2": ("VQAv2",)}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        modalities: Sequence[str],
        answers: list[str] | None = None,
        num_answers: int | None = None,
        **options: Any,
    ) -> None:
        self.items = distinct(modalities)
        self.modalities = distinct([text_modality(), *self.items])
        super().__init__(backbone, optimization, **options)
        self.learned = None if answers is None else known_names(answers, None, "answers")
        self.num_answers = num_answers

    @property
    def names(self) -> list[str]:
        """The learned answers.

        Raises:
            ValueError: they are not known yet.
        """
        return adopted_names(self.learned, self.num_answers, None, "answers")

    @property
    def columns(self) -> dict[str, str | None]:
        """The items, and a question for each."""
        return {**{name: name for name in self.items}, "question": text_modality()}

    def settings(self) -> dict[str, Any]:
        """The modalities and the answers."""
        known = self.learned is not None or self.num_answers is not None
        return {"modalities": list(self.items), "answers": self.names if known else None}

    def adopt(self, data: DataModule) -> None:
        """Take the data's answers, or check that the task knows them."""
        self.learned = adopted_names(self.learned, self.num_answers, data.names("answers"), "answers")

    def build(self) -> ClassifyModel:
        """Attention pooling over the text's tokens with a pooler, and a score for each answer."""
        head = PoolingConfig(outputs=len(self.names), pooled=(text_modality(),), pooler=True)
        return ClassifyModel(self.config, head)

    def loss(self, batch: Batch) -> Tensor:
        """Binary cross-entropy against how right each answer is, summed over answers."""
        logits_BC = self.model(self.inputs(batch))
        return soft_score_bce(logits_BC, self.scores(batch))

    def scores(self, batch: Batch) -> Tensor:
        """(B, answers) float32, how right each learned answer is."""
        indices = {name: index for index, name in enumerate(self.names)}
        scores_BC = torch.zeros(len(batch), len(indices))
        for row, answers in enumerate(batch.targets["answers"]):
            for name, score in answers.items():
                if name in indices:
                    scores_BC[row, indices[name]] = score
        return scores_BC.to(self.device)

    def make_metrics(self) -> MetricCollection:
        """VQA accuracy (arXiv 1505.00468): how right answers are, on average; beside always giving the commonest."""
        accuracy = MeanMetric(nan_strategy="error")
        return MetricCollection({"accuracy": accuracy, "chance/accuracy": CommonestAnswer(len(self.names))})

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Answer a batch: {"logits": (B, answers)}."""
        return {"logits": self.model(self.inputs(batch)).float()}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """How right the likeliest answers are."""
        scores_BC, logits_BC = self.scores(batch), outputs["logits"]
        value = scores_BC.gather(1, logits_BC.argmax(1, keepdim=True))
        metrics.update(value=value, preds=logits_BC, target=scores_BC)

    def answers(self, outputs: dict[str, Any], batch: Batch, top: int = 5) -> list[dict[str, float]]:
        """For each question its likeliest answers with their probabilities, likeliest first."""
        return likeliest(outputs["logits"].sigmoid(), self.names, top)

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """What is asked about, the model's best answer and the right ones."""
        [answer] = self.answers({"logits": outputs["logits"][row : row + 1]}, batch, 1)
        [(name, probability)] = answer.items()
        right = batch.targets["answers"][row]
        expected = ", ".join(f"{each} ({score:g})" for each, score in sorted(right.items(), key=lambda one: -one[1]))
        shown = self.shown(batch, row)
        return Drawn(shown, batch.captions[row], f"{name} ({probability:.0%})", expected, name in right)

    def predict(
        self, *items: Sequence[Any], top: int = 5, batch_size: int = 32, **named: Sequence[Any]
    ) -> list[dict[str, float]]:
        """Answer questions.

        Args:
            *items: a list for each of the task's modalities (paths, or objects in memory), then the questions.
            top: answers to give to each.
            batch_size: questions that run through the model together.
            **named: lists by column, such as ``image=[…]`` and ``question=[…]``.

        Returns:
            For each question answers with probabilities, likeliest first.

        Raises:
            ValueError: naming an item that cannot be read, or where there are not equally many of each.
        """
        return self.predicted(items, named, batch_size, top=top)
