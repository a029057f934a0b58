"""Answers to users' own items: reading them, running the model on batches of them, drawing samples."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.items import batched, naming, read_batch
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.models.adapter import SECOND
from onepeace_lightning.reports.drawing import Shown, shown_item
from onepeace_lightning.tasks.training import TrainedModule


class PredictingModule(TrainedModule):
    """A task that answers to lists of users' items, as it answers to batches of its data.

    Attributes:
        modalities: what the model takes in.
        model: None before it is built.
    """

    modalities: tuple[str, ...]
    model: Any

    @property
    def read_modalities(self) -> tuple[str, ...]:
        """The modalities of the data that the task reads."""
        return self.modalities

    @contextmanager
    def answering(self) -> Iterator[Any]:
        """The model in evaluation mode without gradients; afterwards every module's mode is what it was.

        Raises:
            ValueError: the task has not been built yet.
        """
        model = self._built()
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            for module, training in modes.items():
                module.training = training

    @property
    def columns(self) -> dict[str, str | None]:
        """What ``predict`` takes, in order: its name, and the input that it becomes; None for plain values."""
        return {name: name for name in self.modalities}

    def batch_of(self, given: Mapping[str, Sequence[Any]], first: int) -> Batch:
        """Users' items as a batch without targets.

        Args:
            given: column to equally many items.
            first: the number of the first one, for messages.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        read = {
            kind: self.read(kind.removeprefix(SECOND), given[name], first)
            for name, kind in self.columns.items()
            if kind is not None
        }
        order = [*self.config.adapters, *(SECOND + name for name in self.config.adapters)]
        keys = [str(first + row) for row in range(len(next(iter(given.values()))))]
        return Batch(keys, {name: read[name] for name in order if name in read})

    def predicted(
        self, items: Sequence[Sequence[Any]], named: Mapping[str, Sequence[Any]], batch_size: int, **options: Any
    ) -> list[Any]:
        """``answers`` to users' items, read and answered in batches.

        Args:
            items: lists of equal length, in the order of ``columns``.
            named: those that are given by their column's name.
            batch_size: items of each list that run through the model together.
            **options: of ``answers``.

        Raises:
            ValueError: a list is missing, or naming an item that cannot be read.
        """
        given = self.given(items, named)
        answers: list[Any] = []
        with self.answering():
            for first, parts in batched(batch_size, **given):
                batch = self.batch_of(dict(zip(given, parts, strict=True)), first)
                answers += self.answers(self.forward(batch), batch, **options)
        return answers

    def given(self, items: Sequence[Sequence[Any]], named: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """The arguments of ``predict`` by column, in order.

        Raises:
            ValueError: one is missing, given twice or unknown.
        """
        columns = list(self.columns)
        by_order = dict(zip(columns, items, strict=False))
        given = {**by_order, **named}
        if len(items) > len(columns) or set(by_order) & set(named) or set(given) != set(columns):
            got = [*(f"argument {number}" for number, _ in enumerate(items, 1)), *named]
            raise ValueError(
                f"{type(self).__name__} predicts from {', '.join(columns)}: give a list for each, in this order or by"
                f" name; got {', '.join(got) or 'none'}"
            )
        return {name: given[name] for name in columns}

    def shown(self, batch: Batch, row: int) -> list[Shown]:
        """How a sample of a batch is shown in a report, its texts left out unless there is nothing else."""
        size = batch.targets["size"][row].cpu() if "size" in batch.targets else None
        names = [name for name in self.read_modalities if not modality(name).reads_text] or self.read_modalities
        made = [self.preprocessing.modality(name, self.tokenizer) for name in names]
        return [shown_item(one, batch.inputs[one.name], row, size if len(made) == 1 else None) for one in made]

    def read(self, modality: str, items: Sequence[Any], first: int) -> Any:
        """Users' items as one batch of a modality's input on the model's device.

        Args:
            modality: a modality's name.
            items: a batch of them.
            first: the number of the first one, for messages.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        return read_batch(self.preprocessing.modality(modality, self.tokenizer), items, first).to(self.device)

    def load(self, modality: str, items: Sequence[Any], first: int) -> list[Any]:
        """Users' items decoded, at their own size, for answers in their pixels; ``read`` takes them too.

        Args:
            modality: a modality's name.
            items: a batch of them.
            first: the number of the first one, for messages.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        one, loaded = self.preprocessing.modality(modality, self.tokenizer), []
        for number, item in enumerate(items, first):
            with naming(one, number, item):
                loaded.append(one.load(item))
        return loaded

    def _built(self) -> Any:
        if self.model is None:
            self.configure_model()
        return self.model
