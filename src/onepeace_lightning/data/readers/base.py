"""What the data of all downstream tasks share: reading raw samples, and a data module with one training stream."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from onepeace_lightning.data.bad_samples import BadSample
from onepeace_lightning.data.datamodule import StreamConfig, StreamDataModule
from onepeace_lightning.data.decoding import decode_image, decode_text, load_waveform
from onepeace_lightning.data.prepare import Example, encoded
from onepeace_lightning.data.shards import Manifest, read_manifest
from onepeace_lightning.data.transforms import Preprocessing
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.modalities.tokenizers.base import whole_strings


@dataclass(frozen=True)
class Reader(ABC):
    """Turns raw samples of a downstream task into examples. It pickles, so spawned workers can have it.

    Attributes:
        preprocessing: sizes and lengths.
        tokenizer: encodes text; None where the task has none.
        train: whether to augment.
    """

    preprocessing: Preprocessing
    tokenizer: Tokenizer | None
    train: bool

    @abstractmethod
    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """Decode, transform, and read what is to be learned.

        Args:
            raw: ``__key__`` and encoded bytes by file name ending.
            rng: the only source of randomness.

        Raises:
            ValueError: the sample cannot be used, and why.
        """

    def __call__(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """``example``, with ``BadSample`` for what is wrong with the sample."""
        try:
            return self.example(raw, rng)
        except BadSample:
            raise
        except ValueError as error:
            raise BadSample(str(error)) from error

    def picture(self, raw: Mapping[str, Any]) -> Image.Image:
        """The sample's picture in RGB."""
        return decode_image(encoded(raw, "image"))

    def waveform(self, raw: Mapping[str, Any]) -> Tensor:
        """The sample's sound, as the model takes it: (N,)."""
        return self.preprocessing.waveform(load_waveform(encoded(raw, "audio")))

    def text(self, raw: Mapping[str, Any]) -> str:
        """The sample's text."""
        return decode_text(encoded(raw, "text"))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            ValueError: there is no word in it, or no tokenizer was given.
        """
        if self.tokenizer is None:
            raise ValueError("this task reads text and needs a tokenizer; give the data the folder of one")
        return self.tokenizer.encode(text).ids


@dataclass(frozen=True)
class CroppedReader(Reader):
    """A reader whose training pictures are cropped at random; there are no flips.

    Attributes:
        augment: crop training pictures (``Preprocessing.crop_scale``).
    """

    augment: bool = True

    def pixels(self, picture: Image.Image, rng: np.random.Generator) -> Tensor:
        """(3, S, S) uint8 pixels of a picture or of a part of it."""
        if self.train and self.augment:
            return self.preprocessing.augmented_image(picture, rng)
        return self.preprocessing.image(picture)


def read_json(raw: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """An entry of the sample's metadata.

    Raises:
        ValueError: there is no such entry, or it is of another kind.
    """
    try:
        content = whole_strings(json.loads(raw["json"]))
    except KeyError:
        raise ValueError(f"no json field, which should hold {key!r}") from None
    except ValueError as error:
        raise ValueError(f"its json cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise ValueError(f"its json holds {content!r}; {key!r} is missing or of another kind")
    return content[key]


def read_labels(raw: Mapping[str, Any]) -> list[str]:
    """The sample's class names, at least one.

    Raises:
        ValueError: there are none.
    """
    labels = read_json(raw, "labels", list)
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"its labels are {labels!r}; give at least one class name")
    return labels


class FinetuneDataModule(StreamDataModule):
    """One stream to train on, whose batches a step gets as they are, and any number to evaluate on.

    Args:
        train: the training stream.
        val: name to validation stream.
        test: name to test stream.
        tokenizer: folder of a saved tokenizer; None where the task has no text.
        preprocessing: sizes of pictures and lengths of sounds.
        num_workers: data worker processes per stream.
        seed: orders and augments the samples.
        steps_per_epoch: batches per epoch; one pass if None.
        shuffle_buffer: samples that each worker mixes; it reads one shard at a time for every 64 of them.
        max_bad_fraction: fraction of bad samples, over all ranks, beyond which training stops.
    """

    def __init__(
        self,
        train: StreamConfig | None = None,
        val: dict[str, StreamConfig] | None = None,
        test: dict[str, StreamConfig] | None = None,
        *,
        tokenizer: str | None = None,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 (frozen)
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        shuffle_buffer: int = 1000,
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__(
            None if train is None else {"train": train}, val, test, tokenizer=tokenizer, preprocessing=preprocessing,
            num_workers=num_workers, seed=seed, steps_per_epoch=steps_per_epoch, shuffle_buffer=shuffle_buffer,
            max_bad_fraction=max_bad_fraction,
        )  # fmt: skip

    @property
    def eval_types(self) -> tuple[str, ...]:
        """Data types that can be evaluated on: those that can be trained on, unless a subclass says otherwise."""
        return self.train_types

    def data_type(self, name: str, stream: StreamConfig) -> str:
        """What a stream's samples are: what its manifest says."""
        return stream.data_type or read_manifest(stream.path).data_type

    def train_dataloader(self) -> Any:
        """The training stream's batches."""
        return self.train_loader("train", self.steps_per_epoch)

    def manifests(self) -> dict[str, Manifest]:
        """Every configured stream's manifest, the training stream's first."""
        everything = {**self.train, **{f"val.{k}": v for k, v in self.val.items()},
                      **{f"test.{k}": v for k, v in self.test.items()}}  # fmt: skip
        return {name: read_manifest(stream.path) for name, stream in everything.items()}

    def vocabulary(self, kind: str) -> list[str] | None:
        """The class names or answers that the first folder's manifest lists (``about``); None where none does.

        Args:
            kind: "classes" or "answers".

        Raises:
            ValueError: two folders list other ones.
        """
        listed = {name: manifest.about[kind] for name, manifest in self.manifests().items() if kind in manifest.about}
        for name, names in listed.items():
            first = next(iter(listed))
            if names != listed[first]:
                raise ValueError(
                    f"data: {name} lists other {kind} ({len(names)}) than {first} ({len(listed[first])}): "
                    f"make both folders with the same list"
                )
        return next(iter(listed.values()), None)


class CroppedDataModule(FinetuneDataModule):
    """Data whose training pictures are cropped at random.

    Args:
        train: see ``FinetuneDataModule``, as all others.
        augment: crop training pictures at random (``Preprocessing.crop_scale``).
        **options: see ``FinetuneDataModule``.
    """

    def __init__(
        self,
        train: StreamConfig | None = None,
        val: dict[str, StreamConfig] | None = None,
        test: dict[str, StreamConfig] | None = None,
        *,
        augment: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(train, val, test, **options)
        self.augment = augment
