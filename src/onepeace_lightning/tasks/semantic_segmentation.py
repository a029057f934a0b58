"""Semantic segmentation: a class for every pixel (ADE20K).

Trained on squares by mask classification (``models.mask_decoder``); answers for pictures of any size come from sliding
windows (``models.windows``).
"""

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.losses.mask_classification import POINTS, mask_classification_loss
from onepeace_lightning.modalities.image import Image, ImageItem
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.heads.mask_decoder import MaskHeadConfig
from onepeace_lightning.models.heads.segmentation import UNLABELLED, SegmentModel, class_scores
from onepeace_lightning.models.heads.windows import STEP, sliding_scores
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask
from onepeace_lightning.tasks.drawing import SIDE, Drawn
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.tasks.vocabulary import vocabulary
from onepeace_lightning.training.optimizer import Optimization

RIGHT_FROM = 0.5
"""Mean IoU from which the gallery calls a picture right."""


class SemanticSegmentationTask(FinetuneTask):
    """A class for every pixel.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        classes: their names; None: those that the data list.
        queries: the most masks in one picture.
        decoder_layers: of the transformer decoder.
        decoder_width: of the head; a multiple of 8.
        points: pixels that a predicted mask is compared at in training; all, where a picture has no more.
        scales: at which to read pictures in evaluation: the shorter side as a multiple of the model's.
        flip: read them mirrored too. Several scales with mirroring give the score called "multi-scale".
        windows: squares that run through the model together in evaluation.
        **options: see ``FinetuneTask``.

    Raises:
        ValueError: a setting is out of its range, or as ``FinetuneTask``.
    """

    modalities = ("image",)
    score_name = "mIoU"
    published: ClassVar = {"ADE20K": "mIoU 62.0, multi-scale 63.0"}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        classes: list[str] | None = None,
        queries: int = 100,
        decoder_layers: int = 9,
        decoder_width: int = 256,
        points: int = POINTS,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        windows: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(backbone, optimization, **options)
        if points < 1 or windows < 1 or not scales or any(not 0.1 <= scale <= 10 for scale in scales):
            raise ValueError(
                f"points is {points}, windows {windows}, scales {scales}; give 1 or more of each, scales of 0.1 to 10"
            )
        self.classes = None if classes is None else vocabulary(classes, None, "classes")
        self.queries, self.decoder_layers, self.decoder_width = queries, decoder_layers, decoder_width
        self.points = points
        self.scales, self.flip, self.windows = tuple(scales), flip, windows
        self._head(1)

    def _head(self, classes: int) -> MaskHeadConfig:
        return MaskHeadConfig(
            classes=classes, queries=self.queries, layers=self.decoder_layers, width=self.decoder_width
        )

    @property
    def side(self) -> int:
        """Side of the model's square in pixels."""
        return self.preprocessing["image"].size

    def settings(self) -> dict[str, Any]:
        """Classes and sizes of the head."""
        return {
            "classes": self.classes,
            "queries": self.queries,
            "decoder_layers": self.decoder_layers,
            "decoder_width": self.decoder_width,
        }

    def context(self) -> list[str]:
        """How pictures are read in evaluation."""
        scales = ", ".join(f"{scale:g}" for scale in self.scales) + (", also mirrored" if self.flip else "")
        return [
            f"pictures in their proportions, shorter side {self.side} × {scales}; windows of {self.side} pixels,"
            f" {STEP:.2f} of that apart; measured at the picture's own size"
        ]

    def adopt(self, data: DataModule) -> None:
        """Take the data's class names, or check that they are the task's."""
        self.classes = vocabulary(self.classes, data.names("classes"), "classes")

    def build(self) -> SegmentModel:
        """The image branch with pixel decoder and transformer decoder."""
        return SegmentModel(self.config, self._head(len(vocabulary(self.classes, None, "classes"))))

    def loss(self, batch: Batch) -> Tensor:
        """Classes, masks and overlap of what the queries say, after every layer."""
        losses = mask_classification_loss(
            self.model(batch.inputs["image"]), batch.targets["classes"], points=self.points
        )
        self.log_means({f"train/loss_{name}": loss for name, loss in losses.items()}, len(batch))
        return torch.stack(list(losses.values())).sum()

    def make_metrics(self) -> MetricCollection:
        """Mean over classes of intersection over union, and share of pixels; of the whole data set's pixels."""
        classes = len(vocabulary(self.classes, None, "classes"))
        # The reader has checked every index.
        options: dict[str, Any] = {"ignore_index": UNLABELLED, "validate_args": False}
        return MetricCollection(
            {
                "mIoU": MulticlassJaccardIndex(classes, **options),
                "pixel_accuracy": MulticlassAccuracy(classes, average="micro", **options),
            }
        )

    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Answer a batch of whole pictures.

        Returns:
            {"classes": for each picture (Y, X) int64 on the CPU}.
        """
        answers = []
        for classes_YX, truth in zip(self._answers(batch.targets["pixels"]), batch.targets["classes"], strict=True):
            metrics.update(classes_YX[None], torch.from_numpy(truth).to(classes_YX.device)[None].long())
            answers.append(classes_YX.cpu())
        return {"classes": answers}

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """The picture, its classes, and the model's, side by side."""
        names = vocabulary(self.classes, None, "classes")
        pixels, truth = batch.targets["pixels"][row], batch.targets["classes"][row]
        answer = outputs["classes"][row].numpy()
        known = truth != UNLABELLED
        overlaps = {
            names[index]: (known & (truth == index) & (answer == index)).sum()
            / (known & ((truth == index) | (answer == index))).sum()
            for index in np.union1d(truth[known], answer[known])
        }
        mean = float(np.mean(list(overlaps.values()))) if overlaps else 1.0
        said = ", ".join(f"{name} {overlap:.2f}" for name, overlap in overlaps.items())
        pictures = [shown(pixels), shown(painted(truth, len(names))), shown(painted(answer, len(names)))]
        return Drawn(pictures, "picture, truth, answer", f"mean IoU {mean:.2f}: {said}", "", mean >= RIGHT_FROM)

    def predict(self, image: Sequence[ImageItem], *, batch_size: int = 32) -> list[Tensor]:
        """Name each pixel's class.

        Args:
            image: paths, PIL pictures, arrays or tensors.
            batch_size: pictures that are read together.

        Returns:
            For each picture (Y, X) int64 indices into ``classes``, at its own size.

        Raises:
            ValueError: naming a picture that cannot be read.
        """
        answers: list[Tensor] = []
        with self.answering():
            for first, [items] in batched(batch_size, image=image):
                answers += self._answers(np.array(picture) for picture in self.load("image", items, first))
        return answers

    def _answers(self, pictures: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """(Y, X) int64 for each (Y, X, 3) uint8 picture."""

        def score(pixels: Tensor) -> Tensor:
            return class_scores(self.model(Image(pixels))[-1], self.side)

        pixels = (torch.from_numpy(picture).permute(2, 0, 1).to(self.device) for picture in pictures)
        for scores_KYX in sliding_scores(
            score, pixels, self.side, scales=self.scales, flip=self.flip, batch_size=self.windows
        ):
            yield scores_KYX.argmax(0)


def painted(classes_YX: np.ndarray, classes: int) -> np.ndarray:
    """(Y, X, 3) uint8: each class in a colour of its own, the first (often background) in grey, no class in black."""
    colours = np.zeros((UNLABELLED + 1, 3))
    for index in range(classes):
        # Hues a golden section apart are never close, however many there are.
        colours[index] = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75 * (index > 0), 0.9 - 0.1 * (index % 4))
    return (255 * colours).round().astype(np.uint8)[classes_YX]


def shown(pixels: np.ndarray) -> Pillow.Image:
    """A (Y, X, 3) picture for the gallery."""
    picture = Pillow.fromarray(pixels)
    factor = SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Pillow.Resampling.BICUBIC if factor < 1 else Pillow.Resampling.NEAREST)
