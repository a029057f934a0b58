"""Reads images with the instances in them (``image-boxes``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onepeace_lightning.data.batch import Example
from onepeace_lightning.data.instances import AnnotatedImage, ScaleJitter, fitted, read_annotations
from onepeace_lightning.data.readers.base import Reader, read_json


@dataclass(frozen=True)
class InstancesReader(Reader):
    """Reads samples with an image and its instances; images keep their proportions.

    In evaluation their longest side is the model's.
    """

    augments: ClassVar[bool] = False
    may_augment: ClassVar[bool] = False
    augmentation_type: ClassVar[type] = ScaleJitter
    default_augmentation: ClassVar[ScaleJitter] = ScaleJitter()

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(
                "data: the manifests list no classes; name them in about.classes, in the order of the model's outputs"
            )

    @property
    def classes(self) -> dict[str, int]:
        """Class name to its index."""
        return {name: index for index, name in enumerate((self.about or {}).get("classes") or [])}

    def example(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Example:
        """The image and its instances: the target ``annotated``, an ``AnnotatedImage``. There is no other input."""
        [name] = self.items
        image = self.decoded(raw, name)
        instances = read_json(raw, "instances", list)
        annotations = read_annotations(instances, self.classes, (image.height, image.width))
        side = self.modalities[name].settings.size
        if self.train and self.augmentation is not None:
            annotated = self.augmentation(image, annotations, side, rng)
        else:
            annotated = AnnotatedImage(fitted(image, side), annotations)
        return Example(raw["__key__"], {}, targets={"annotated": annotated})
