"""ImageNet classifiers (onepeace_ft_21kto1k_384.pth, _512.pth)."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from onepeace_lightning.checkpoints.released.base import Kind, Opened, ReleasedFile, class_names
from onepeace_lightning.checkpoints.released.vision_names import to_ours
from onepeace_lightning.checkpoints.released.vision_sizes import image_branch
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.models.config import ModelConfig


class ImageNet(Kind):
    """Mean over patches, LayerNorm, Linear."""

    name = "imagenet"
    title = "an ImageNet classifier (onepeace_ft_21kto1k_384.pth, onepeace_ft_21kto1k_512.pth)"
    answers = "the classes of an image"
    task = "ClassificationTask"
    takes_labels = True

    def recognise(self, file: ReleasedFile) -> bool:
        """The image branch, a norm and a linear layer."""
        return all(file.has(prefix) for prefix in ("image_adapter.", "encoder.layers.", "fc_norm.", "head."))

    def open(self, file: ReleasedFile, labels: Sequence[str] | None) -> Opened:
        """Classes are in the order of ImageNet's folder names."""
        config = image_branch(file, "")
        classes = class_names(labels, self.outputs(file), file.path)
        settings = {"modalities": ["image"], "classes": classes, "pooling": "mean"}
        return Opened(config, to_ours("imagenet", file.tensors), settings, self.preprocessing(file, config))

    def preprocessing(self, file: ReleasedFile, config: ModelConfig) -> Mapping[str, Mapping[str, Any]]:
        """The shorter side resized, then the middle: 224/256 of it up to 224 pixels, all of it above."""
        return {"image": {"size": cast(ImageConfig, config.adapters["image"]).image_size, "resize": "crop"}}

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """Of both files."""
        return ["ImageNet-1k"]

    def outputs(self, file: ReleasedFile) -> int:
        """Of the classifier."""
        return file.shape("head.weight")[0]

    def describe(self, file: ReleasedFile) -> Sequence[str]:
        """Side and classes."""
        config = image_branch(file, "")
        side = cast(ImageConfig, config.adapters["image"]).image_size
        return [f"{side} pixels, {file.shape('head.weight')[0]} classes in sorted order of ImageNet's folder names"]
