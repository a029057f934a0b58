"""Data of object detection: ``image-boxes`` shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepeace_lightning.data.datamodule import StreamConfig
from onepeace_lightning.data.instances import AnnotatedImage, ScaleJitter, fitted, read_annotations
from onepeace_lightning.data.prepare import Example
from onepeace_lightning.data.readers.base import FinetuneDataModule, Reader, read_json


@dataclass(frozen=True)
class ImageBoxesReader(Reader):
    """Reads ``image-boxes`` samples.

    Attributes:
        classes: class name to its index.
        augmentation: of training images.
    """

    classes: Mapping[str, int]
    augmentation: ScaleJitter

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The image and its instances: the target ``image``, an ``AnnotatedImage``. There is no other input."""
        picture = self.picture(raw)
        instances = read_json(raw, "instances", list)
        annotations = read_annotations(instances, self.classes, (picture.height, picture.width))
        side = self.preprocessing.image_size
        if self.train:
            image = self.augmentation(picture, annotations, side, rng)
        else:
            image = AnnotatedImage(fitted(picture, side), annotations)
        return Example(raw["__key__"], {}, targets={"image": image})


class ObjectDetectionDataModule(FinetuneDataModule):
    """``image-boxes`` shards; images keep their proportions, their longest side is the model's in evaluation.

    Args:
        train: see ``FinetuneDataModule``, as all others.
        augmentation: of training images.
        **options: see ``FinetuneDataModule``.
    """

    train_types = ("image-boxes",)

    def __init__(
        self,
        train: StreamConfig | None = None,
        val: dict[str, StreamConfig] | None = None,
        test: dict[str, StreamConfig] | None = None,
        *,
        augmentation: ScaleJitter = ScaleJitter(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        super().__init__(train, val, test, **options)
        self.augmentation = augmentation

    def prepare(self, data_type: str, *, train: bool) -> ImageBoxesReader:
        """What reads a sample.

        Raises:
            ValueError: no folder lists its classes.
        """
        classes = self.vocabulary("classes")
        if not classes:
            raise ValueError(
                "data: the manifests list no classes; name them in about.classes, in the order of the model's outputs"
            )
        indices = {name: index for index, name in enumerate(classes)}
        return ImageBoxesReader(self.preprocessing, None, train, indices, self.augmentation)
