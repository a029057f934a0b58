"""Reads questions with answers (``image-question``), with choices (``audio-choices``), and statements about two items.

A statement's label says whether it is true of both items together (``image-pair``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL.Image import Image

from onepeace_lightning.data.batch import Batch, Collate, Example
from onepeace_lightning.data.data_types import second_extensions
from onepeace_lightning.data.readers.augmentation import PairAugmentation
from onepeace_lightning.data.readers.base import Reader, encoded, read_json, read_labels, size_of
from onepeace_lightning.data.readers.captions import CollateTexts
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.models.adapter import SECOND


@dataclass(frozen=True)
class QuestionReader(Reader):
    """Reads samples with a question and its right answers."""

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The items and the question; targets are the answers, and an image's width and height in pixels."""
        question = self.text(raw)
        targets: dict[str, Any] = {"answers": read_answers(raw)}
        arrays = {}
        for name in self.items:
            item = self.decoded(raw, name)
            arrays[name] = self.array(name, item, rng)
            if isinstance(item, Image):
                targets["size"] = size_of(item)
        return Example(raw["__key__"], self.with_text(question, arrays), question, targets=targets)


def read_answers(raw: Mapping[str, Any]) -> dict[str, Any]:
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
class PairReader(Reader):
    """Reads samples with two items of one modality and a statement about both; each item is augmented its own way."""

    augmentation_type: ClassVar[type] = PairAugmentation

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """Both items and the statement; targets are its class names, and (2, 2) widths and heights of images."""
        statement, first = self.text(raw), self.data_type.first
        modality = self.modalities[first]
        items = [self.decoded(raw, first)]
        try:
            items.append(modality.decode(encoded(raw, second_extensions(first), f"second {first}")))
        except ValueError as error:
            raise ValueError(f"the second {first}: {error}") from error
        arrays = {name: self.array(name, item, rng) for name, item in zip((first, SECOND + first), items, strict=True)}
        targets: dict[str, Any] = {"labels": read_labels(raw)}
        if isinstance(items[0], Image):
            targets["sizes"] = torch.stack([size_of(item) for item in items])
        return Example(raw["__key__"], {**self.with_text(statement, arrays), **arrays}, statement, targets=targets)

    def array(self, name: str, item: Any, rng: np.random.Generator) -> Any:
        """As ``Reader.array``, for the second item too; with ``PairAugmentation`` where that is asked for."""
        name = name.removeprefix(SECOND)
        if not self.train or self.augmentation is None:
            return super().array(name, item, rng)
        if not isinstance(item, Image):
            raise ValueError(f"augmentation: settings of pairs are for images, not for {name}; give true or false")
        modality = self.modalities[name]
        return modality.transform(self.augmentation(item, modality.settings.size, rng))


def with_choice(question: str, choice: str) -> str:
    """The text by which a choice is judged."""
    return f"{question} answer: {choice}"


@dataclass(frozen=True)
class ChoicesReader(Reader):
    """Reads samples with a question and the choices for its answer."""

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The items; targets are the question with each choice in token ids, the choices, and the right one's index."""
        question = self.text(raw)
        choices, answer = read_choices(raw)
        texts = [self.encoding(with_choice(question, choice)) for choice in choices]
        targets = {"texts": texts, "choices": choices, "answer": torch.tensor(answer)}
        return Example(raw["__key__"], self.arrays(raw, rng), question, targets=targets)

    @property
    def collate(self) -> "CollateChoices":
        """Joins items, and their questions to a row for every choice, item by item."""
        return CollateChoices(Collate(self.modalities), self.modalities[text_modality()])


@dataclass(frozen=True)
class CollateChoices(CollateTexts):
    """Joins examples that have equally many choices."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A batch of at least one example.

        Raises:
            ValueError: samples have different numbers of choices.
        """
        counts = {example.key: len(example.targets["choices"]) for example in examples}
        if len(set(counts.values())) > 1:
            raise ValueError(f"samples have {counts} choices; give equally many to all questions of a folder")
        return super().__call__(examples)


def read_choices(raw: Mapping[str, Any]) -> tuple[list[str], int]:
    """The sample's choices and the index of the right one.

    Raises:
        ValueError: there are fewer than two, or none of them is said to be right.
    """
    choices, answer = read_json(raw, "choices", list), read_json(raw, "answer", int)
    if len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"its choices are {choices!r}; at least two texts are expected")
    if not 0 <= answer < len(choices) or isinstance(answer, bool):
        raise ValueError(f"its answer is {answer!r}; give the index of the right one of {len(choices)} choices, from 0")
    return choices, answer
