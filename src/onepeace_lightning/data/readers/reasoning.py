"""Data of visual reasoning over two images: ``image-pair`` shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from onepeace_lightning.data.decoding import decode_image
from onepeace_lightning.data.prepare import Example
from onepeace_lightning.data.readers.base import CroppedDataModule, CroppedReader, read_labels
from onepeace_lightning.data.shards import SECOND_IMAGE_EXTENSIONS


def second_picture(raw: Mapping[str, Any]) -> Image.Image:
    """The sample's second picture in RGB.

    Raises:
        ValueError: there is none, there are several, or it cannot be decoded.
    """
    endings = [ending for ending in SECOND_IMAGE_EXTENSIONS if ending in raw]
    if len(endings) != 1:
        raise ValueError(f"expected one second picture ({', '.join(SECOND_IMAGE_EXTENSIONS)}), found {len(endings)}")
    try:
        return decode_image(raw[endings[0]])
    except ValueError as error:
        raise ValueError(f"the second picture: {error}") from error


@dataclass(frozen=True)
class PairReader(CroppedReader):
    """Reads ``image-pair`` samples; each picture is cropped its own way."""

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """Both pictures and the statement; targets are its class names, and (2, 2) widths and heights in pixels."""
        pictures, statement = [self.picture(raw), second_picture(raw)], self.text(raw)
        first, second = (self.pixels(picture, rng) for picture in pictures)
        sizes = torch.tensor([picture.size for picture in pictures], dtype=torch.float32)
        return Example(
            raw["__key__"],
            {"text": self.ids(statement), "image": first},
            statement,
            second=second,
            targets={"labels": read_labels(raw), "sizes": sizes},
        )


class VisualReasoningDataModule(CroppedDataModule):
    """``image-pair`` shards."""

    train_types = ("image-pair",)

    def prepare(self, data_type: str, *, train: bool) -> PairReader:
        """What reads a sample."""
        return PairReader(self.preprocessing, self.tokenizer, train, self.augment)
