"""Classification of samples of one modality, or of several that are seen together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

from timm.data.mixup import Mixup
from torch import Tensor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.vision.classifier import MeanClassifier
from onepeace_lightning.tasks.base import FINETUNING, distinct
from onepeace_lightning.tasks.labels import LabelTask
from onepeace_lightning.tasks.source import BackboneSource, with_own_positions
from onepeace_lightning.training.optimizer import Optimization

Pooling = Literal["attention", "mean"]
"""How the tokens' features become one vector."""


class ClassificationTask(LabelTask):
    """Classes of samples, from ``image-label``, ``audio-label``, ``image-audio-label``, … data.

    Several modalities go through the encoder together, and one query pools the tokens of all of them.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        modalities: what is classified, such as ``["audio"]`` or ``["image", "audio"]``; any that is registered.
        pooling: "attention" is the head of published fine-tuning. "mean" is the published ImageNet classifier, for one
            modality: the mean of its tokens' features, without final norm, then LayerNorm and one linear layer; learned
            positions are resized to the input's grid once, and rates and decay follow its own rules. It shares one
            bias table (``per_block_tables=False``).
        mixup: strength α of mixing whole images in training (arXiv 1710.09412), 0 for none.
        cutmix: strength α of pasting parts of other images (arXiv 1905.04899), 0 for none; with both, each batch takes
            one of them. Batches must then have an even size.
        **options: see ``LabelTask``.

    Raises:
        ValueError: a setting is out of its range, or as ``FinetuneTask``.
    """

    published: ClassVar = {name: (name,) for name in ("ImageNet-1k", "FSD50K", "VGGSound", "VGGSound-AV")}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        modalities: Sequence[str],
        pooling: Pooling = "attention",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **options: Any,
    ) -> None:
        self.modalities = distinct(modalities)
        super().__init__(backbone, optimization, **options)
        if pooling not in get_args(Pooling) or (pooling == "mean" and len(self.modalities) > 1):
            raise ValueError(
                f"pooling is {pooling!r}; give one of {', '.join(get_args(Pooling))}, the last for one modality alone"
            )
        if mixup < 0 or cutmix < 0 or ((mixup or cutmix) and (self.multi_label or len(self.modalities) > 1)):
            raise ValueError(
                f"mixup is {mixup} and cutmix {cutmix}; give 0 or more, and 0 with multi_label or several modalities"
            )
        self.pooling: Pooling = pooling
        if pooling == "mean":
            self.config = with_own_positions(self.config, final_norm=False)
        self.mixup, self.cutmix = mixup, cutmix

    def settings(self) -> dict[str, Any]:
        """Modalities, classes and head."""
        return {"modalities": list(self.modalities), **super().settings(), "pooling": self.pooling}

    def build(self) -> MeanClassifier | ClassifyModel:
        """The modalities' branches and a head."""
        if self.pooling == "mean":
            return MeanClassifier(self.config, len(self.names))
        return ClassifyModel(self.config, PoolingConfig(outputs=len(self.names), pooled=self.modalities))

    def loss(self, batch: Batch) -> Tensor:
        """As ``LabelTask``, on mixed images where that is asked for."""
        if not (self.mixup or self.cutmix):
            return super().loss(batch)
        mixed, targets_BC = self.mix(batch)
        logits_BC = self.model(self.inputs(mixed))
        return self.loss_of(logits_BC, targets_BC)

    def mix(self, batch: Batch) -> tuple[Batch, Tensor]:
        """A batch of mixed images, and (B, C) their fractions of classes.

        Raises:
            ValueError: the modality has no pixels.
        """
        [name] = self.modalities
        inputs, targets_BC = batch.inputs[name], self.targets(batch)
        if not hasattr(inputs, "normalised"):
            raise ValueError(f"mixup is {self.mixup} and cutmix {self.cutmix}: {name} has no pixels to mix; give 0")
        # The smoothing is the loss's, which mixed fractions of classes are given to.
        mix = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=targets_BC.shape[1])
        pixels, mixed_BC = mix(inputs.normalised().clone(), targets_BC.argmax(1))
        return replace(batch, inputs={name: type(inputs)(pixels)}), mixed_BC
