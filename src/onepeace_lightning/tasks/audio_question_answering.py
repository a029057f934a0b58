"""Audio question answering: the right one of several answers to a question about a sound (AVQA, by sound alone)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.readers.questions import with_choice
from onepeace_lightning.losses.answers import choice_hinge
from onepeace_lightning.modalities.audio import AudioItem
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.tasks.base import FinetuneTask


class AudioQuestionAnsweringTask(FinetuneTask):
    """One of a question's own choices; see ``FinetuneTask``.

    The sound is seen with "question answer: choice" for each choice, whose score is read from the text's tokens.
    """

    modalities = ("text", "audio")
    score_name = "accuracy"
    published: ClassVar = {"AVQA": "accuracy 86.2 (audio only)"}

    def build(self) -> ClassifyModel:
        """Attention pooling over the text's tokens, and one score."""
        return ClassifyModel(self.config, PoolingConfig(outputs=1, modality="text"))

    def scores(self, inputs: Mapping[str, Any], sounds: int) -> Tensor:
        """(B, choices) float32 scores of B sounds' choices, whose rows of text follow one another."""
        choices = len(inputs["text"]) // sounds
        return self.model(inputs, choices=choices).float().view(sounds, choices)

    def loss(self, batch: Batch) -> Tensor:
        """Hinge of every choice against the right one, summed over choices."""
        return choice_hinge(self.scores(batch.inputs, len(batch)), batch.targets["answer"])

    def make_metrics(self) -> MetricCollection:
        """Share of questions answered right."""
        return MetricCollection({"accuracy": MeanMetric(nan_strategy="error")})

    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Answer a batch.

        Returns:
            {"scores": (B, choices)}.
        """
        scores_BN = self.scores(batch.inputs, len(batch))
        metrics.update((scores_BN.argmax(1) == batch.targets["answer"]).float())
        return {"scores": scores_BN}

    def predict(
        self,
        audio: Sequence[AudioItem],
        question: Sequence[str],
        choices: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
    ) -> list[dict[str, float]]:
        """Choose answers to questions about sounds.

        Args:
            audio: paths, or tuples (waveform, sample_rate).
            question: one for each sound.
            choices: for each question its different possible answers, equally many for all.
            batch_size: sounds that run through the model together.

        Returns:
            For each question its choices with their scores, which have no unit, best first: the first is the answer.

        Raises:
            ValueError: naming an item that cannot be read or a list of choices that does not do, or where there are not
                equally many of each.
        """
        count = _check_choices(choices)
        if strangers := [asked for asked in question if not isinstance(asked, str)]:
            raise ValueError(f"question {strangers[0]!r} is no text; give a str for each sound")
        answers = []
        with self.answering():
            for first, [sounds, questions, offered] in batched(
                batch_size, audio=audio, question=question, choices=choices
            ):
                pairs = zip(questions, offered, strict=True)
                texts = [with_choice(asked, choice) for asked, some in pairs for choice in some]
                inputs = {"text": self.read("text", texts, first * count), "audio": self.read("audio", sounds, first)}
                for some, scores in zip(offered, self.scores(inputs, len(sounds)).tolist(), strict=True):
                    answers.append(dict(sorted(zip(some, scores, strict=True), key=lambda one: -one[1])))
        return answers


def _check_choices(choices: Sequence[Sequence[str]]) -> int:
    """How many there are for each question."""
    for number, some in enumerate(choices):
        if isinstance(some, str) or not all(isinstance(choice, str) for choice in some):
            raise ValueError(f"choices {number}: {some!r} is no list of texts")
        if len(some) < 2 or len(some) != len(choices[0]) or len(set(some)) < len(some):
            raise ValueError(
                f"choices {number}: {list(some)}; give 2 or more different ones, as many as for the first question"
                f" ({len(choices[0])})"
            )
    return len(choices[0]) if len(choices) else 0
