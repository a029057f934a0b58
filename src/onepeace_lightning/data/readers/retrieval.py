"""Data of retrieval: pictures or sounds with one caption (``image-text``) or several (``image-captions``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.prepare import Example, collate
from onepeace_lightning.data.readers.base import CroppedDataModule, CroppedReader, read_json
from onepeace_lightning.modalities.tokenizers.base import clean_text
from onepeace_lightning.models.inputs import Text


@dataclass(frozen=True)
class CaptionsReader(CroppedReader):
    """Reads a picture or sound with its captions; in training one caption is drawn.

    Attributes:
        data_type: which of the module's data types.
    """

    data_type: str = "image-text"

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """Its targets are the captions, their token ids, and the name by which right answers are told."""
        modality, kind = self.data_type.split("-")
        captions = [self.text(raw)] if kind == "text" else read_json(raw, "captions", list)
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"its captions are {captions!r}; give at least one text")
        # One caption says by itself what is a right answer; of several only the item's own count, as is published.
        answer = clean_text(captions[0]) if kind == "text" else f"{raw['__shard__']}/{raw['__key__']}"
        if self.train:
            captions = [captions[rng.integers(len(captions))]]
        item = self.waveform(raw) if modality == "audio" else self.pixels(self.picture(raw), rng)
        ids = [self.ids(caption) for caption in captions]
        targets = {"captions": captions, "ids": ids, "answer": answer}
        return Example(raw["__key__"], {modality: item}, captions[0], targets=targets)


def collate_captions(examples: Sequence[Example]) -> Batch:
    """Join B items and their captions: ``inputs["text"]`` has C ≥ B rows, item by item."""
    batch = collate(examples)
    rows = [ids for captions in batch.targets.pop("ids") for ids in captions]
    batch.inputs = {"text": Text.pad(rows), **batch.inputs}
    return batch


class RetrievalDataModule(CroppedDataModule):
    """Pictures or sounds with captions."""

    train_types = ("image-text", "image-captions", "audio-text", "audio-captions")
    collate = staticmethod(collate_captions)

    def prepare(self, data_type: str, *, train: bool) -> CaptionsReader:
        """What reads a sample."""
        return CaptionsReader(self.preprocessing, self.tokenizer, train, self.augment, data_type)
