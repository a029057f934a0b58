"""What reads the raw samples of any data type: bytes of a shard's fields to an ``Example``."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from onepeace_lightning.data.bad_samples import BadSample, NoRow
from onepeace_lightning.data.batch import Collate, Example
from onepeace_lightning.data.data_types import DataType, data_type
from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.modalities.tokenizers.base import parsed_json
from onepeace_lightning.models.adapter import SECOND

_MOST_DIGITS = sys.float_info.max_10_exp

Augmentation = bool | Mapping[str, Any] | None
"""What is done to training samples: None is the data type's default, False nothing, True the modalities' own
augmentation, and a mapping the settings of the data type's augmentation."""


@dataclass(frozen=True)
class Reader(ABC):
    """Turns raw samples of one data type into examples. It pickles, so spawned workers can have it.

    Attributes:
        data_type: what the samples are.
        modalities: those that the model takes in, with their settings.
        train: whether to augment.
        augment: use the modalities' own augmentation in training.
        augmentation: of the data type's ``augmentation_type``, in place of the modalities' own.
        about: what the manifest says of the data besides, such as the names of all classes.
    """

    data_type: DataType
    modalities: Mapping[str, Modality]
    train: bool = False
    augment: bool = True
    augmentation: Any = None
    about: Mapping[str, Any] | None = None

    augments: ClassVar[bool] = True
    """Whether the modalities' own augmentation is used where nothing is said."""
    may_augment: ClassVar[bool] = True
    """Whether it can be used: a box would not move with a crop that knows nothing of it."""
    augmentation_type: ClassVar[type | None] = None
    """An augmentation that is made for samples of this kind, with its settings; None: there is none."""
    default_augmentation: ClassVar[Any] = None
    """Of ``augmentation_type``, where nothing is said."""

    @classmethod
    def of(
        cls,
        kind: DataType | str,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        train: bool = False,
        augmentation: Augmentation = None,
        about: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """A reader of a data type.

        Args:
            kind: the data type.
            preprocessing: settings of the modalities.
            tokenizer: needed where the model reads text.
            train: whether to augment.
            augmentation: what is done to training samples.
            about: of the manifest.
            **options: of a subclass.

        Raises:
            ValueError: a tokenizer is missing, or the augmentation does not go with the data type.
        """
        kind = data_type(kind) if isinstance(kind, str) else kind
        settings = Preprocessing(preprocessing)
        modalities = {name: settings.modality(name, tokenizer) for name in kind.inputs}
        if tokenizer is None and any(modality.reads_text for modality in modalities.values()):
            raise ValueError(f"data type {kind} reads text and needs a tokenizer; give the folder of one")
        augment, own = cls._augmentation(kind, augmentation)
        return cls(kind, modalities, train, augment, own, about, **options)

    @classmethod
    def _augmentation(cls, kind: DataType, given: Augmentation) -> tuple[bool, Any]:
        if given is None:
            return cls.augments, cls.default_augmentation
        if given is False:
            return False, None
        if given is True and cls.may_augment:
            return True, None
        if given is True or cls.augmentation_type is None:
            own = f", or settings ({_names(cls.augmentation_type)})" if cls.augmentation_type else ""
            accepted = "true or false" if cls.may_augment else "false"
            raise ValueError(f"augmentation of {kind} is {given!r}; give {accepted}{own}")
        if not isinstance(given, Mapping):  # made already
            return False, given
        known = _names(cls.augmentation_type)
        if unknown := sorted(set(given) - set(known.split(", "))):
            raise ValueError(f"augmentation of {kind}: there is no {', '.join(unknown)}; there is {known}")
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return False, cls.augmentation_type(**lists)

    @abstractmethod
    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """Decode, transform, and read what is to be learned.

        Args:
            raw: ``__key__``, ``__shard__`` and encoded bytes by extension.
            rng: the only source of randomness.

        Raises:
            ValueError: the sample cannot be used, and why.
        """

    def __call__(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """``example``, with ``BadSample`` for what is wrong with the sample."""
        try:
            example = self.example(raw, rng)
        except (BadSample, NoRow):
            raise
        except ValueError as error:
            raise BadSample(str(error)) from error
        if not self.train:
            example.origin = origin(raw)
        return example

    @property
    def collate(self) -> Any:
        """What joins examples to a batch."""
        return Collate({**self.modalities, **{SECOND + name: one for name, one in self.modalities.items()}})

    @property
    def items(self) -> tuple[str, ...]:
        """The modalities of the sample itself, without the text that an answer brings."""
        return self.data_type.modalities

    def decoded(self, raw: Mapping[str, Any], name: str) -> Any:
        """The sample's item of a modality, decoded."""
        modality = self.modalities[name]
        return modality.decode(encoded(raw, modality.extensions, name))

    def array(self, name: str, item: Any, rng: np.random.Generator) -> Any:
        """A decoded item ready for a batch, augmented in training."""
        modality = self.modalities[name]
        return modality.augment(item, rng) if self.train and self.augment else modality.transform(item)

    def arrays(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The sample's items, ready for a batch."""
        return {name: self.array(name, self.decoded(raw, name), rng) for name in self.items}

    def text(self, raw: Mapping[str, Any]) -> str:
        """The sample's text."""
        text: str = self.decoded(raw, text_modality())
        return text

    def encoding(self, text: str) -> Any:
        """A text ready for a batch.

        Raises:
            ValueError: there is no word in it.
        """
        return self.modalities[text_modality()].transform(text)

    def with_text(self, text: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of a text beside others, in the order of the data type."""
        everything = {text_modality(): self.encoding(text), **arrays}
        return {name: everything[name] for name in self.data_type.inputs}


def _names(settings: type) -> str:
    return ", ".join(entry.name for entry in fields(settings))


def encoded(raw: Mapping[str, Any], extensions: Sequence[str], what: str) -> bytes:
    """A raw sample's only field with one of the extensions, still encoded.

    Raises:
        BadSample: there is none, or several.
    """
    present = [extension for extension in extensions if extension in raw]
    if len(present) != 1:
        found = sorted(name for name in raw if not name.startswith("__"))
        raise BadSample(f"expected one {what} field ({', '.join(extensions)}), found {len(present)} among {found}")
    data: bytes = raw[present[0]]
    return data


def read_json(raw: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """An entry of the sample's metadata.

    Raises:
        ValueError: there is no such entry, or it is of another kind.
    """
    try:
        content = _metadata(raw["json"])
    except KeyError:
        raise ValueError(f"no json field, which should hold {key!r}") from None
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise ValueError(f"its json holds {content!r}; {key!r} is missing or of another kind")
    return content[key]


def origin(raw: Mapping[str, Any]) -> str:
    """The files that a sample was made of, or where else its metadata say that it is from; "" where they do not."""
    try:
        about = _metadata(raw.get("json", b"{}"))
    except ValueError:
        return ""  # nobody has to have metadata; a reader that needs them refuses the sample
    if not isinstance(about, dict):
        return ""
    files = about.get("files")
    return ", ".join(map(str, files.values())) if isinstance(files, dict) else str(about.get("from", ""))


def _metadata(data: bytes) -> Any:
    try:
        return parsed_json(data, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its json cannot be read: {error}") from error


def _whole(digits: str) -> int:
    """A whole number that a float can hold too."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def read_labels(raw: Mapping[str, Any]) -> list[str]:
    """The sample's class names, at least one.

    Raises:
        ValueError: there are none.
    """
    labels = read_json(raw, "labels", list)
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"its labels are {labels!r}; give at least one class name")
    return labels


def size_of(item: Any) -> Tensor:
    """(2,) float32 width and height in pixels of a decoded image, in whose proportions answers are drawn."""
    return torch.tensor(item.size, dtype=torch.float32)
