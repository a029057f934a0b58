"""Data of visual question answering: ``image-question`` shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from onepeace_lightning.data.prepare import Example
from onepeace_lightning.data.readers.base import CroppedDataModule, CroppedReader, read_json


def read_answers(raw: Mapping[str, Any]) -> dict[str, float]:
    """The sample's right answers, each with how right it is.

    Raises:
        ValueError: there is none, or a score is not above 0 and at most 1.
    """
    answers = read_json(raw, "answers", dict)
    wrong = {name: score for name, score in answers.items() if not isinstance(score, int | float) or not 0 < score <= 1}
    if wrong or not answers:
        raise ValueError(f"its answers are {answers!r}; give at least one, with a score above 0 and at most 1")
    return {name: float(score) for name, score in answers.items()}


@dataclass(frozen=True)
class QuestionReader(CroppedReader):
    """Reads ``image-question`` samples."""

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The picture and the question; targets are the answers, and the picture's width and height in pixels."""
        picture, question = self.picture(raw), self.text(raw)
        targets = {"answers": read_answers(raw), "size": torch.tensor(picture.size, dtype=torch.float32)}
        inputs = {"text": self.ids(question), "image": self.pixels(picture, rng)}
        return Example(raw["__key__"], inputs, question, targets=targets)


class VisualQuestionAnsweringDataModule(CroppedDataModule):
    """``image-question`` shards."""

    train_types = ("image-question",)

    def prepare(self, data_type: str, *, train: bool) -> QuestionReader:
        """What reads a sample."""
        return QuestionReader(self.preprocessing, self.tokenizer, train, self.augment)
