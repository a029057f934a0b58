"""One sample ready for a batch, and the typed batch that a data stream yields and a task takes.

P = positions of a modality (CLS and its tokens).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.models.inputs import TokenMask


@dataclass
class Example:
    """One sample, ready to be put in a batch.

    Attributes:
        key: the sample's key in its shard.
        inputs: name of an input to an array of its modality.
        caption: the raw text, "" where there is none.
        masks: modality to (P,) bool, for the student that sees this modality alone.
        fused_masks: the same for the student that sees all together.
        targets: what a downstream task learns, a tensor (of the same shape in every sample) or anything else.
        origin: where it comes from, as its metadata say, to be named in reports; "" in training.
    """

    key: str
    inputs: dict[str, Any]
    caption: str = ""
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    fused_masks: dict[str, np.ndarray] = field(default_factory=dict)
    targets: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass
class Batch:
    """B samples of one data type.

    Attributes:
        keys: the samples' keys in their shards.
        inputs: name of an input to what the modality's adapter takes. A name is a modality's; ``second_`` before it
            means the second of two items.
        masks: modality name to the tokens that are hidden from the student that sees this modality alone; never CLS
            or eos. Empty in evaluation.
        fused_masks: the same for the student that sees all modalities together. Empty unless several in training.
        captions: the raw text of each sample ("" where there is none).
        targets: what a downstream task learns and is measured by, a tensor or a list with one entry per sample.
        sources: the name of each sample's source, where the stream mixes several.
        origins: where each sample comes from ("" where nothing says so).
        filler: in evaluation, that its sample is another rank's: it runs through the model, so that all ranks make the
            same collective calls, and is not measured.
    """

    keys: list[str]
    inputs: dict[str, Any]
    masks: dict[str, TokenMask] = field(default_factory=dict)
    fused_masks: dict[str, TokenMask] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    targets: dict[str, Any] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    filler: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    def named(self, row: int) -> str:
        """What a person finds a sample by: where it comes from, and its key."""
        origin = self.origins[row] if self.origins else ""
        return f"{origin}, key {self.keys[row]}" if origin else f"key {self.keys[row]}"

    def to(self, *args: Any, **kwargs: Any) -> "Batch":
        """Move every tensor to a device (Lightning calls this)."""
        return self._map(lambda value: value.to(*args, **kwargs))

    def pin_memory(self) -> "Batch":
        """Copy every tensor to page-locked memory (the DataLoader calls this)."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, move: Any) -> "Batch":
        def each(part: dict[str, Any]) -> dict[str, Any]:
            return {name: value if isinstance(value, list) else move(value) for name, value in part.items()}

        return replace(
            self,
            inputs=each(self.inputs),
            masks=each(self.masks),
            fused_masks=each(self.fused_masks),
            targets=each(self.targets),
        )


@dataclass(frozen=True)
class Collate:
    """Joins examples of one data type to a batch.

    Attributes:
        modalities: name of an input to its modality.
    """

    modalities: Mapping[str, Modality]

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A batch of at least one example."""
        first = examples[0]
        return Batch(
            keys=[example.key for example in examples],
            inputs={
                name: self.modalities[name].collate([example.inputs[name] for example in examples])
                for name in first.inputs
            },
            masks={name: TokenMask.of([example.masks[name] for example in examples]) for name in first.masks},
            fused_masks={
                name: TokenMask.of([example.fused_masks[name] for example in examples]) for name in first.fused_masks
            },
            captions=[example.caption for example in examples],
            targets={name: _join([example.targets[name] for example in examples]) for name in first.targets},
            origins=[example.origin for example in examples],
        )


def _join(targets: list[Any]) -> Any:
    """Stack tensors; anything else stays a list."""
    return torch.stack(targets) if isinstance(targets[0], Tensor) else targets
