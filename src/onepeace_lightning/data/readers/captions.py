"""Reads items with several captions each (``image-captions``, ``audio-captions``): data of retrieval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepeace_lightning.data.bad_samples import NoRow
from onepeace_lightning.data.batch import Batch, Collate, Example
from onepeace_lightning.data.readers.base import Reader, read_json
from onepeace_lightning.data.shards import CAPTION
from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.modalities.registry import text_modality


@dataclass(frozen=True)
class CaptionsReader(Reader):
    """Reads an item with its captions; in a pass of training each caption is a row of its own."""

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """Its targets are the captions, their token ids, and the item's key: only its own captions are right."""
        captions = read_json(raw, "captions", list)
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"its captions are {captions!r}; give at least one text")
        if (number := raw.get(CAPTION)) is not None:
            if number >= len(captions):
                raise NoRow
            captions = [captions[number]]
        inputs = self.arrays(raw, rng)
        texts = [self.encoding(caption) for caption in captions]
        targets = {"captions": captions, "texts": texts, "answer": f"{raw['__shard__']}/{raw['__key__']}"}
        return Example(raw["__key__"], inputs, captions[0], targets=targets)

    @property
    def collate(self) -> "CollateTexts":
        """Joins items, and their captions to C ≥ B rows, item by item."""
        return CollateTexts(Collate(self.modalities), self.modalities[text_modality()])


@dataclass(frozen=True)
class CollateTexts:
    """Joins examples whose target ``texts`` is a list of texts each: rows of the text input, sample by sample.

    Attributes:
        collate: joins all else.
        text: the modality of the texts.
    """

    collate: Collate
    text: Modality

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A batch of at least one example."""
        batch = self.collate(examples)
        rows = [text for texts in batch.targets.pop("texts") for text in texts]
        batch.inputs = {self.text.name: self.text.collate(rows), **batch.inputs}
        return batch
