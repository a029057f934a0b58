"""Reads samples of modalities alone: what pretraining aligns and denoises, and what retrieval compares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepeace_lightning.data.batch import Example
from onepeace_lightning.data.readers.base import Reader, encoded
from onepeace_lightning.modalities.base import modality, text_modality
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
            for name in self.data_type.denoised_alone:
                example.masks[name] = self.modalities[name].mask(inputs[name], rng)
            if len(inputs) > 1:
                for name, array in inputs.items():
                    example.fused_masks[name] = self.modalities[name].fused_mask(array, example.masks.get(name), rng)
        return example

    def _caption(self, raw: Mapping[str, Any]) -> str:
        """The text where it is an input, or where several others have one."""
        text = text_modality()
        extensions = modality(text).extensions
        if text not in self.modalities and not any(extension in raw for extension in extensions):
            return ""
        caption = modality(text)().decode(encoded(raw, extensions, text))
        if len(self.items) > 1 or text in self.modalities:
            clean_caption(caption)
        return str(caption)
