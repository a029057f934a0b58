"""What a modality is: everything particular to it in one class, registered by its name.

A modality of a user's own is a subclass of ``Modality`` with a ``register`` decorator, in a module that is imported or
named by an installed package's entry point of the group ``onepeace_lightning.modalities``.

B = samples, P = positions of a sample: CLS and its tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image as Pillow
from torch import Tensor

from onepeace_lightning.modalities.arrays import hide
from onepeace_lightning.modalities.rendering import REPORT_SIDE, image_html, text_card
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.models.config import AdapterConfig
from onepeace_lightning.models.inputs import TensorFields

_TRAINING_ONLY = "training_only"


def training_only(default: Any) -> Any:
    """A field of ``Settings`` that evaluation does not depend on, such as an augmentation's strength."""
    return dataclasses.field(default=default, metadata={_TRAINING_ONLY: True})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a modality's preprocessing; a modality adds its own as fields with defaults.

    Attributes:
        mask_ratio: fraction of the tokens that are hidden from the student that sees this modality alone.
        fused_mask_ratio: the same for the student that sees it beside others.
    """

    mask_ratio: float = training_only(0.5)
    fused_mask_ratio: float = training_only(0.4)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if isinstance(value := getattr(self, entry.name), list):  # YAML and JSON have no tuples
                object.__setattr__(self, entry.name, tuple(value))
        if problems := self.problems():
            raise ValueError("; ".join(problems))

    def problems(self) -> list[str]:
        """What is wrong with the values; subclasses add to it."""
        return [
            f"{name} is {value}; give a fraction from 0 to 1"
            for name in ("mask_ratio", "fused_mask_ratio")
            if not 0 <= (value := getattr(self, name)) <= 1
        ]


class Inputs(TensorFields):
    """What a modality's adapter takes in: a batch of B samples. Subclasses are dataclasses."""

    @property
    def token_lengths(self) -> list[int]:
        """Tokens of each sample, CLS included, known on the host without running the adapter."""
        raise NotImplementedError

    dynamic: ClassVar[Mapping[str, Mapping[int, str]]] = {}
    """Of the exported tensors the dimensions that vary, with a name for each; those of one name are equal."""

    def exported(self) -> dict[str, Tensor]:
        """The tensors that ``Adapter.padded`` takes, by the names that an exported model gives them."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.token_lengths)


class Modality:
    """A modality's class says what is particular to it; an instance also has settings and perhaps a tokenizer.

    Data go one way, whoever asks: bytes → ``decode``, or a user's object → ``load``; then ``transform`` (evaluation) or
    ``augment`` (training) → an array; arrays → ``collate`` → what the adapter takes. Instances pickle, for data
    workers.

    A subclass sets the class attributes and writes at least ``decode``, ``transform``, ``num_tokens``, ``collate`` and
    its config's ``build``.

    Args:
        settings: of the class's ``settings_type``, or a mapping of its fields; None: the defaults.
        tokenizer: for a modality that reads text.

    Raises:
        ValueError: for an unknown setting, or one out of its range.
    """

    name: ClassVar[str]
    """As users write it: a keyword of ``OnePeace.embed``, a part of a data type."""
    extensions: ClassVar[tuple[str, ...]]
    """Of its files on disk and of its fields in shards, lower case, without the dot."""
    config_type: ClassVar[type[AdapterConfig]]
    """Sizes of its adapter."""
    settings_type: ClassVar[type[Settings]] = Settings
    """Settings of its preprocessing."""
    agreed: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Settings that are sizes of the adapter too: pairs of the setting's name and the size's."""
    reads_text: ClassVar[bool] = False
    """Whether items are texts, which need the tokenizer and are kept beside embeddings and answers."""
    plural: ClassVar[str] = ""
    """What several items are called in a report; the name where it is empty."""
    prompts: ClassVar[tuple[str, ...]] = ("{label}",)
    """What is said of an item of a class in zero-shot classification; ``{label}`` is the class's name."""
    denoising_weight: ClassVar[float] = 1.0
    """Of its loss term where it is denoised alone."""
    order: ClassVar[int] = 100
    """Place among the others wherever several modalities are listed; equal ones stand in alphabetical order."""

    def __init__(
        self, settings: Settings | Mapping[str, Any] | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        self.settings: Any = read_settings(type(self), settings)
        self.tokenizer = tokenizer

    # From files and users' objects to arrays

    @classmethod
    def extension_of(cls, name: str) -> str | None:
        """The one of ``extensions`` that a file's name ends with, the longest; None where it ends with none."""
        found = [extension for extension in cls.extensions if name.lower().endswith(f".{extension}")]
        return max(found, key=len, default=None)

    @classmethod
    def field(cls, name: str) -> str:
        """The extension in a shard of a file that is said to be of this modality.

        ``scan.png`` is in the field ``depth.png`` of a modality that has this one and no ``png``.

        Raises:
            ValueError: no such file is accepted.
        """
        suffix = name.lower().rpartition(".")[2]
        own = [extension for extension in cls.extensions if extension.rpartition(".")[2] == suffix]
        found = cls.extension_of(name) or next(iter(own), None)
        if found is None:
            accepted = ", ".join(f"*.{extension}" for extension in cls.extensions)
            raise ValueError(f"{name}: as {cls.name} a file named {accepted} is accepted")
        return found

    def check(self, item: Any) -> None:
        """Raise ValueError where a decoded item cannot be used; nothing unless a modality says otherwise."""

    def decode(self, data: bytes) -> Any:
        """Decode the content of one file.

        Raises:
            ValueError: the bytes are not of the kind, saying what is wrong.
        """
        raise NotImplementedError

    def load(self, item: Any) -> Any:
        """What ``decode`` gives, from a path or from an object in memory.

        Raises:
            ValueError: the item is of no kind that is accepted, or cannot be decoded.
            OSError: the file cannot be opened.
        """
        if isinstance(item, (str, PathLike)):
            return self.decode(Path(item).read_bytes())
        return self.convert(item)

    def convert(self, item: Any) -> Any:
        """What ``decode`` gives, from an object in memory; such an object itself is accepted.

        Raises:
            ValueError: the item is of no kind that is accepted.
        """
        raise ValueError(f"a {type(item).__name__} is no {self.name}; give a path")

    def transform(self, item: Any) -> Any:
        """Prepare a decoded item for evaluation: an array that ``collate`` takes."""
        raise NotImplementedError

    def augment(self, item: Any, rng: np.random.Generator) -> Any:
        """Prepare a decoded item for training; ``rng`` is the only source of randomness."""
        return self.transform(item)

    def read(self, item: Any) -> Any:
        """A user's item ready for ``collate``, as in evaluation.

        Raises:
            ValueError: as ``load``.
            OSError: as ``load``.
        """
        return self.transform(self.load(item))

    # From arrays to batches

    def num_tokens(self, array: Any) -> int:
        """Tokens that the adapter makes of an array, without CLS."""
        raise NotImplementedError

    def collate(self, arrays: Sequence[Any]) -> Inputs:
        """Join at least one array to what the adapter takes."""
        raise NotImplementedError

    def mask(self, array: Any, rng: np.random.Generator) -> np.ndarray:
        """(P,) bool, True where a position is hidden from the student that sees this modality alone; never CLS."""
        return hide(self.num_tokens(array), self.settings.mask_ratio, rng)

    def fused_mask(self, array: Any, alone: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        """(P,) bool, the same for the student that sees this modality beside others.

        Args:
            array: one sample.
            alone: ``mask`` of the same sample, None where this modality is not denoised alone.
            rng: the only source of randomness.
        """
        visible = None if alone is None else ~alone[1:]
        return hide(self.num_tokens(array), self.settings.fused_mask_ratio, rng, first=visible)

    def random(self, config: AdapterConfig, batch: int, rng: np.random.Generator) -> Inputs:
        """A batch of meaningless inputs of different lengths, to try a model with.

        Raises:
            NotImplementedError: unless a modality says how.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what random inputs are: write its method random")

    # Sizes that the settings and the adapter must agree on

    def sizes(self) -> dict[str, Any]:
        """Sizes of the adapter that follow from the settings and the tokenizer."""
        return {size: getattr(self.settings, setting) for setting, size in self.agreed}

    @classmethod
    def settings_for(cls, settings: Any, config: AdapterConfig) -> Any:
        """The settings with what an adapter of these sizes needs."""
        return dataclasses.replace(settings, **{setting: getattr(config, size) for setting, size in cls.agreed})

    # In words and images

    def evaluation(self) -> dict[str, Any]:
        """All that evaluation depends on, as plain values."""
        return {
            entry.name: getattr(self.settings, entry.name)
            for entry in dataclasses.fields(self.settings)
            if _TRAINING_ONLY not in entry.metadata
        }

    def describe(self) -> str:
        """What evaluation does to its input, in a few words, to print beside scores; "" for nothing worth saying."""
        return ", ".join([self.name, *(f"{name} {value}" for name, value in self.evaluation().items())])

    def sample(self, inputs: Any, row: int) -> Any:
        """One sample of a batch as a decoded item again, for a report.

        Raises:
            NotImplementedError: unless a modality says how.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how a batch is shown: write its method sample")

    def html(self, item: Any, title: str = "") -> str:
        """A decoded item in a page that stands alone; ``title`` says what it is. By default its ``thumbnail``."""
        return image_html(self.thumbnail(item, REPORT_SIDE), title)

    def thumbnail(self, item: Any, side: int) -> Pillow.Image:
        """A decoded item as an RGB image of at most ``side`` pixels; by default a card with the modality's name."""
        return text_card(self.name, side)


def read_settings(cls: type[Modality], settings: Settings | Mapping[str, Any] | None) -> Any:
    """Settings of a modality from what a user wrote.

    Raises:
        ValueError: for an unknown name or a value out of its range.
    """
    if isinstance(settings, cls.settings_type):
        return settings
    given = {} if settings is None else settings
    if not isinstance(given, Mapping):
        raise ValueError(f"preprocessing of {cls.name}: {settings!r} is no mapping such as {{name: value}}")
    names = [entry.name for entry in dataclasses.fields(cls.settings_type)]
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"preprocessing of {cls.name}: there is no {', '.join(unknown)}; there is {', '.join(names)}")
    try:
        return cls.settings_type(**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"preprocessing of {cls.name}: {error}") from error
