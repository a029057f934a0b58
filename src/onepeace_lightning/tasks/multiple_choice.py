"""Multiple choice: the right one of several answers to a question about samples of any modalities (AVQA)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.readers.questions import with_choice
from onepeace_lightning.losses.answers import choice_hinge
from onepeace_lightning.metrics.chance import RandomChoice
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.reports.drawing import Drawn
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask, distinct
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class MultipleChoiceTask(FinetuneTask):
    """One of a question's own choices, from ``audio-choices``, ``image-audio-choices``, … data.

    The sample's items are seen with "question answer: choice" for each choice, whose score is read from the text's
    tokens.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        modalities: what is asked about, such as ``["audio"]`` or ``["image", "audio"]``; any that is registered.
        **options: see ``FinetuneTask``.
    """

    learns = ("choices",)
    score_name = "accuracy"
    published: ClassVar = {name: (name,) for name in ("AVQA", "AVQA-AV")}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        modalities: Sequence[str],
        **options: Any,
    ) -> None:
        self.items = distinct(modalities)
        self.modalities = distinct([text_modality(), *self.items])
        super().__init__(backbone, optimization, **options)

    @property
    def columns(self) -> dict[str, str | None]:
        """The items, and a question and its choices for each."""
        return {**{name: name for name in self.items}, "question": text_modality(), "choices": None}

    def settings(self) -> dict[str, Any]:
        """The modalities."""
        return {"modalities": list(self.items)}

    def build(self) -> ClassifyModel:
        """Attention pooling over the text's tokens, and one score."""
        return ClassifyModel(self.config, PoolingConfig(outputs=1, pooled=(text_modality(),)))

    def scores(self, inputs: Mapping[str, Any], samples: int) -> Tensor:
        """(B, choices) float32 scores of B samples' choices, whose rows of text follow one another."""
        choices = len(inputs[text_modality()]) // samples
        return self.model(inputs, choices=choices).float().view(samples, choices)

    def loss(self, batch: Batch) -> Tensor:
        """Hinge of every choice against the right one, summed over choices."""
        scores_BN = self.scores(self.inputs(batch), len(batch))
        return choice_hinge(scores_BN, batch.targets["answer"])

    def make_metrics(self) -> MetricCollection:
        """Fraction of questions answered right, beside that of choosing at random."""
        return MetricCollection({"accuracy": MeanMetric(nan_strategy="error"), "chance/accuracy": RandomChoice()})

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Judge a batch: {"scores": (B, choices)}."""
        return {"scores": self.scores(self.inputs(batch), len(batch))}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Whether the best choices are right."""
        right_B = outputs["scores"].argmax(1) == batch.targets["answer"]
        metrics.update(value=right_B.float(), scores_BN=outputs["scores"])

    def answers(self, outputs: dict[str, Any], batch: Batch) -> list[dict[str, float]]:
        """For each question its choices with their scores, best first."""
        rows = zip(batch.targets["choices"], outputs["scores"].tolist(), strict=True)
        return [dict(sorted(zip(*row, strict=True), key=lambda one: -one[1])) for row in rows]

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """What is asked about, the model's choice and the right one."""
        choices, right = batch.targets["choices"][row], int(batch.targets["answer"][row])
        best = int(outputs["scores"][row].argmax())
        return Drawn(self.shown(batch, row), batch.captions[row], choices[best], choices[right], best == right)

    def batch_of(self, given: Mapping[str, Sequence[Any]], first: int) -> Batch:
        """As ``FinetuneTask.batch_of``, with a row of text for every choice.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        offered = given["choices"]
        for asked in given["question"]:
            if not isinstance(asked, str):
                raise ValueError(f"question {asked!r} is no text; give a str for each sample")
        texts = [
            with_choice(asked, choice)
            for asked, choices in zip(given["question"], offered, strict=True)
            for choice in choices
        ]
        text = text_modality()
        read = {name: self.read(name, given[name], first) for name in self.items}
        read[text] = self.read(text, texts, first * len(offered[0]))
        keys = [str(first + row) for row in range(len(offered))]
        return Batch(keys, {name: read[name] for name in self.config.adapters}, targets={"choices": list(offered)})

    def predict(self, *items: Sequence[Any], batch_size: int = 32, **named: Sequence[Any]) -> list[dict[str, float]]:
        """Choose answers to questions.

        Args:
            *items: a list for each of the task's modalities (paths, or objects in memory), then the questions, then for
                each question its different possible answers, equally many for all.
            batch_size: questions that run through the model together.
            **named: lists by column, such as ``audio=[…]``, ``question=[…]`` and ``choices=[[…], …]``.

        Returns:
            For each question its choices with their scores, which have no unit, best first: the first is the answer.

        Raises:
            ValueError: naming an item that cannot be read or a list of choices that does not do, or where there are not
                equally many of each.
        """
        given = self.given(items, named)
        _check_choices(given["choices"])
        return self.predicted((), given, batch_size)


def _check_choices(choices: Sequence[Sequence[str]]) -> None:
    for number, some in enumerate(choices):
        if isinstance(some, str) or not all(isinstance(choice, str) for choice in some):
            raise ValueError(f"choices {number}: {some!r} is no list of texts")
        if len(some) < 2 or len(some) != len(choices[0]) or len(set(some)) < len(some):
            raise ValueError(
                f"choices {number}: {list(some)}; give 2 or more different ones, as many as for the first question"
                f" ({len(choices[0])})"
            )
