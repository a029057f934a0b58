"""The typed batch that a data stream yields and a task takes."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

DATA_TYPES = ("image", "audio", "text", "image-text", "audio-text")
"""The five kinds of training data (paper section 3.4); ``audio-image`` exists for evaluation only."""


@dataclass
class Batch:
    """B samples of one data type.

    Attributes:
        keys: the samples' keys in their shards.
        inputs: modality name to what its adapter takes (``models.inputs``).
        masks: modality name to (B, P) bool, True where a token is hidden from the student that sees this modality
            alone. Column 0 is CLS; CLS, eos and padding are never masked. Empty in evaluation. Host data: all indices
            that a step needs are computed from them without waiting for the device.
        fused_masks: the same for the student that sees both modalities together. Empty unless a pair in training.
        captions: the raw text of each sample ("" where there is none); equal captions are one answer in retrieval.
        second: each sample's second picture (``models.inputs.Image``), where the task has two.
        targets: what a downstream task learns and is measured by, a tensor or a list with one entry per sample.
        sources: the name of each sample's source, where the stream mixes several.
        filler: in evaluation, that its sample is another rank's: it runs through the model, so that all ranks make the
            same collective calls, and is not measured.
    """

    keys: list[str]
    inputs: dict[str, Any]
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    fused_masks: dict[str, np.ndarray] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    second: Any = None
    targets: dict[str, Any] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    filler: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, *args: Any, **kwargs: Any) -> "Batch":
        """Move every tensor to a device (Lightning calls this); masks stay on the host."""
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
            second=None if self.second is None else move(self.second),
            targets=each(self.targets),
        )
