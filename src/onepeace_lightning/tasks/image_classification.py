"""Image classification (ImageNet-1k and -21k)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

from timm.data.mixup import Mixup
from torch import Tensor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.image import Image, ImageItem
from onepeace_lightning.models.heads.classifier import ClassifyModel
from onepeace_lightning.models.vision.classifier import ImageClassifier
from onepeace_lightning.tasks.base import FINETUNING
from onepeace_lightning.tasks.classification import ClassificationTask
from onepeace_lightning.tasks.source import BackboneSource, with_own_positions
from onepeace_lightning.tasks.vocabulary import vocabulary
from onepeace_lightning.training.optimizer import Optimization

Pooling = Literal["mean", "attention"]
"""How an image's features become one vector."""


class ImageClassificationTask(ClassificationTask):
    """Images in classes; see ``ClassificationTask``.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        pooling: "mean" is the published classifier: the mean of the patches' features, without final norm, then
            LayerNorm and one linear layer; learned positions are resized to the images' grid once, and rates and decay
            follow its own rules. "attention" is the head of the other classification tasks.
        per_block_tables: see ``FinetuneTask``; the published classifier shares one table.
        mixup: strength α of mixing whole pictures in training (arXiv 1710.09412), 0 for none.
        cutmix: strength α of pasting parts of other pictures (arXiv 1905.04899), 0 for none; with both, each batch
            takes one of them. Batches must then have an even size.
        **options: see ``ClassificationTask``.
    """

    modalities = ("image",)
    published: ClassVar = {"ImageNet-1k": "top-1 89.8"}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        pooling: Pooling = "mean",
        per_block_tables: bool = False,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, optimization, per_block_tables=per_block_tables, **options)
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling is {pooling!r}; give one of {', '.join(get_args(Pooling))}")
        self.pooling: Pooling = pooling
        if pooling == "mean":
            self.config = with_own_positions(self.config, final_norm=False)
        if mixup < 0 or cutmix < 0 or ((mixup or cutmix) and self.multi_label):
            raise ValueError(f"mixup is {mixup} and cutmix {cutmix}; give 0 or more, and 0 with multi_label")
        self.mixup, self.cutmix = mixup, cutmix

    def settings(self) -> dict[str, Any]:
        """Classes and head."""
        return {**super().settings(), "pooling": self.pooling}

    def build(self) -> ImageClassifier | ClassifyModel:  # type: ignore[override]
        """The image branch and a head."""
        if self.pooling == "attention":
            return super().build()
        return ImageClassifier(self.config, len(vocabulary(self.classes, None, "classes")))

    def loss(self, batch: Batch) -> Tensor:
        """As ``ClassificationTask``, on mixed pictures where that is asked for."""
        if not (self.mixup or self.cutmix):
            return super().loss(batch)
        targets_BC = self.targets(batch)
        # The smoothing is the loss's, which mixed shares of classes are given to.
        mix = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=targets_BC.shape[1])
        pixels, mixed_BC = mix(batch.inputs["image"].normalised().clone(), targets_BC.argmax(1))
        return self.loss_of(self.model({"image": Image(pixels)}), mixed_BC)

    def predict(self, image: Sequence[ImageItem], *, top: int = 5, batch_size: int = 32) -> list[dict[str, float]]:
        """Classify pictures.

        Args:
            image: paths, PIL pictures, arrays or tensors.
            top: classes to name for each.
            batch_size: pictures that run through the model together.

        Returns:
            For each picture class names with probabilities, likeliest first.

        Raises:
            ValueError: naming a picture that cannot be read.
        """
        return self.classify(image, top, batch_size)
