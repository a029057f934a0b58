"""Data of audio question answering: ``audio-choices`` shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import StreamConfig
from onepeace_lightning.data.prepare import Example, collate
from onepeace_lightning.data.readers.base import FinetuneDataModule, Reader, read_json
from onepeace_lightning.models.inputs import Text


def with_choice(question: str, choice: str) -> str:
    """The text by which a choice is judged."""
    return f"{question} answer: {choice}"


def read_choices(raw: Mapping[str, Any], count: int) -> tuple[list[str], int]:
    """The sample's choices and the place of the right one.

    Raises:
        ValueError: there are more or fewer than ``count``, or none of them is said to be right.
    """
    choices, answer = read_json(raw, "choices", list), read_json(raw, "answer", int)
    if len(choices) != count or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"its choices are {choices!r}; {count} texts are expected")
    if not 0 <= answer < count or isinstance(answer, bool):
        raise ValueError(f"its answer is {answer!r}; give the place of the right one of {count} choices, from 0")
    return choices, answer


@dataclass(frozen=True)
class ChoicesReader(Reader):
    """Reads ``audio-choices`` samples.

    Attributes:
        choices: of every question.
    """

    choices: int = 4

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The sound; targets are the question with each choice in token ids, the choices, and the right one's place."""
        question = self.text(raw)
        choices, answer = read_choices(raw, self.choices)
        ids = [self.ids(with_choice(question, choice)) for choice in choices]
        targets = {"ids": ids, "choices": choices, "answer": torch.tensor(answer)}
        return Example(raw["__key__"], {"audio": self.waveform(raw)}, question, targets=targets)


def collate_choices(examples: Sequence[Example]) -> Batch:
    """Join B sounds and their questions: ``inputs["text"]`` has a row for every choice, sound by sound."""
    batch = collate(examples)
    rows = [ids for choices in batch.targets.pop("ids") for ids in choices]
    batch.inputs = {"text": Text.pad(rows), **batch.inputs}
    return batch


class AudioQuestionAnsweringDataModule(FinetuneDataModule):
    """``audio-choices`` shards.

    Args:
        train: see ``FinetuneDataModule``, as all others.
        choices: of every question.
        **options: see ``FinetuneDataModule``.
    """

    train_types = ("audio-choices",)
    collate = staticmethod(collate_choices)

    def __init__(
        self,
        train: StreamConfig | None = None,
        val: dict[str, StreamConfig] | None = None,
        test: dict[str, StreamConfig] | None = None,
        *,
        choices: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(train, val, test, **options)
        self.choices = choices

    def problems(self) -> list[str]:
        """What is wrong with the settings themselves."""
        wrong = [] if self.choices > 1 else [f"choices is {self.choices}; a question has 2 or more"]
        return super().problems() + wrong

    def prepare(self, data_type: str, *, train: bool) -> ChoicesReader:
        """What reads a sample."""
        return ChoicesReader(self.preprocessing, self.tokenizer, train, self.choices)
