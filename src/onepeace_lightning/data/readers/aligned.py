"""Reads samples of modalities alone: what pretraining aligns and denoises, and what retrieval compares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepeace_lightning.data.bad_samples import EmptyCaption
from onepeace_lightning.data.batch import Example
from onepeace_lightning.data.readers.base import Reader, encoded
from onepeace_lightning.losses.denoising import denoised_alone
from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.modalities.registry import modality, text_modality
from onepeace_lightning.modalities.tokenizers.base import clean_caption, clean_text


@dataclass(frozen=True)
class AlignedReader(Reader):
    """Reads samples without an answer.

    Attributes:
        masks: draw the masks of the denoising objective in training.
    """

    masks: bool = False

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """Every modality; the target ``answer`` is the same for what is a right answer in retrieval.

        That is the caption, as the tokenizer reads it, or else the sample's own key.
        """
        caption = self._caption(raw)
        inputs = {
            name: self.encoding(caption) if one.reads_text else self.array(name, self.decoded(raw, name), rng)
            for name, one in self.modalities.items()
        }
        answer = clean_text(caption) or f"{raw['__shard__']}/{raw['__key__']}"
        example = Example(raw["__key__"], inputs, caption, targets={"answer": answer})
        if self.train and self.masks:
            example.masks, example.fused_masks = draw_masks(self.modalities, inputs, rng)
        return example

    def _caption(self, raw: Mapping[str, Any]) -> str:
        """The text where it is an input, or where several others have one."""
        text = text_modality()
        extensions = modality(text).extensions
        if text not in self.modalities and not any(extension in raw for extension in extensions):
            return ""
        caption = modality(text)().decode(encoded(raw, extensions, text))
        if len(self.items) > 1 or text in self.modalities:
            try:
                clean_caption(caption)
            except ValueError as error:
                raise EmptyCaption(str(error)) from error
        return str(caption)


def draw_masks(
    modalities: Mapping[str, Modality], arrays: Mapping[str, Any], rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All masks that one training sample needs.

    Args:
        modalities: name to modality, whose settings say how much is hidden.
        arrays: the sample.
        rng: the only source of randomness.

    Returns:
        The masks of the students that see one modality alone (of those that are denoised so), and those of the student
        that sees all together (empty where there is one).
    """
    alone = {name: modalities[name].mask(arrays[name], rng) for name in denoised_alone(list(arrays))}
    if len(arrays) < 2:
        return alone, {}
    return alone, {name: modalities[name].fused_mask(array, alone.get(name), rng) for name, array in arrays.items()}
