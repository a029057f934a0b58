"""Semantic segmentation: a class for every pixel of images (ADE20K) or of other rasters, such as depth maps.

Trained on squares by mask classification (``models.vision.mask_decoder``); answers at any size come from sliding
windows (``models.vision.windows``).
"""

import colorsys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.losses.mask_classification import POINTS, mask_classification_loss
from onepeace_lightning.modalities.image import Image, RasterModality
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.models.vision.dense_adapter import DenseAdapterConfig
from onepeace_lightning.models.vision.light_segmentation import LightSegmentationModel
from onepeace_lightning.models.vision.segmentation import (
    UNLABELLED,
    MaskHeadConfig,
    SegmentationConfig,
    SegmentationModel,
    class_scores,
)
from onepeace_lightning.models.vision.windows import published_step, sliding_probabilities
from onepeace_lightning.reports.drawing import SIDE, Drawn, shown_image, shown_item
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask, distinct
from onepeace_lightning.tasks.class_names import adopted_names, known_names
from onepeace_lightning.tasks.lora import merged
from onepeace_lightning.tasks.source import BackboneSource, with_own_positions
from onepeace_lightning.training.optimizer import Optimization

Head = Literal["published", "light"]
"""The model beside the image branch: that of the released file, or one for small machines."""

RIGHT_FROM = 0.5
"""Mean IoU from which the gallery calls an answer right."""


class SemanticSegmentationTask(FinetuneTask):
    """A class for every pixel, from ``image-mask``, ``depth-mask``, … data.

    Args:
        backbone: see ``FinetuneTask``.
        optimization: see ``FinetuneTask``.
        modalities: the one whose pixels are classified: ``["image"]``, or another raster such as ``["depth"]``.
        classes: their names, in the order of the masks' indices; None: those that the data list.
        num_classes: how many there are, to have the data checked.
        head: "published" is the model of the released file, an adapter trunk with deformable attention: the default,
            since only its scores compare with the paper's. "light" has convolutions in their place, which take about a
            quarter of the time and two thirds of the memory of a training step of a small model on a CPU.
        queries: the most masks in one image.
        decoder_layers: of the mask decoder.
        decoder_width: of the head; a multiple of 32.
        decoder_heads: of its attention.
        decoder_inner: width of its feed-forward networks.
        pixel_layers: of the published pixel decoder.
        adapter_channels: of the published trunk's first convolutions.
        adapter_heads: of the published trunk's deformable attention; None: the backbone's.
        points: at which a predicted mask is compared in training.
        scales: at which to read images in evaluation: the shorter side as a multiple of the model's.
        flip: read them mirrored too. Several scales with mirroring give the score called "multi-scale".
        step: distance between windows in pixels; None: 4/7 of their side, as published.
        windows: squares that run through the model together in evaluation.
        **options: see ``FinetuneTask``.

    Raises:
        ValueError: a setting is out of its range, or as ``FinetuneTask``.
    """

    learns = ("mask",)
    score_name = "mIoU"
    published: ClassVar = {"ADE20K": ("ADE20K",)}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        modalities: Sequence[str] = ("image",),
        classes: list[str] | None = None,
        num_classes: int | None = None,
        head: Head = "published",
        queries: int = 200,
        decoder_layers: int = 9,
        decoder_width: int = 1024,
        decoder_heads: int = 32,
        decoder_inner: int = 4096,
        pixel_layers: int = 6,
        adapter_channels: int = 64,
        adapter_heads: int | None = None,
        points: int = POINTS,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        step: int | None = None,
        windows: int = 16,
        **options: Any,
    ) -> None:
        self.modalities = distinct(modalities)
        if len(self.modalities) > 1 or not issubclass(modality(self.modalities[0]), RasterModality):
            raise ValueError(f"modalities is {list(modalities)}; give one whose items are rasters, such as ['image']")
        super().__init__(backbone, optimization, **options)
        if points < 1 or windows < 1 or not scales or any(not 0.1 <= scale <= 10 for scale in scales):
            raise ValueError(
                f"points is {points}, windows {windows}, scales {scales}; give 1 or more of each, scales of 0.1 to 10"
            )
        self.classes = None if classes is None else known_names(classes, None, "classes")
        self.num_classes = num_classes
        if head not in get_args(Head) or (step is not None and not 1 <= step <= self.side):
            raise ValueError(
                f"head is {head!r} and step {step}; give {' or '.join(get_args(Head))}, and a step of 1 to {self.side}"
            )
        self.head: Head = head
        if head == "published":
            self.config = with_own_positions(self.config)
        self.queries, self.decoder_layers, self.decoder_width = queries, decoder_layers, decoder_width
        self.decoder_heads, self.decoder_inner, self.pixel_layers = decoder_heads, decoder_inner, pixel_layers
        self.adapter_channels, self.adapter_heads = adapter_channels, adapter_heads
        self.points = points
        self.scales, self.flip, self.windows = tuple(scales), flip, windows
        self.step = published_step(self.side) if step is None else step
        self.sizes(1)

    def sizes(self, classes: int) -> SegmentationConfig:
        """Sizes of all beside the modality's branch.

        Raises:
            ValueError: one of them is impossible.
        """
        encoder = self.config.encoder
        return SegmentationConfig(
            head=MaskHeadConfig(
                classes=classes, queries=self.queries, layers=self.decoder_layers, width=self.decoder_width,
                heads=self.decoder_heads, inner=self.decoder_inner, pixel_layers=self.pixel_layers,
            ),
            adapter=DenseAdapterConfig(
                channels=self.adapter_channels, heads=self.adapter_heads or encoder.heads, drop_path=encoder.drop_path
            ),
        )  # fmt: skip

    @property
    def input_modality(self) -> RasterModality:
        """The modality whose pixels are classified, with its settings."""
        return cast(RasterModality, self.preprocessing.modality(self.modalities[0]))

    @property
    def side(self) -> int:
        """Side of the model's square in pixels."""
        size: int = self.input_modality.settings.size
        return size

    def settings(self) -> dict[str, Any]:
        """Modality, classes and sizes of the head."""
        names = ("classes", "head", "queries", "decoder_layers", "decoder_width", "decoder_heads", "decoder_inner",
                 "pixel_layers", "adapter_channels", "adapter_heads")  # fmt: skip
        return {"modalities": list(self.modalities), **{name: getattr(self, name) for name in names}}

    def context(self) -> list[str]:
        """How they are read in evaluation."""
        scales = ", ".join(f"{scale:g}" for scale in self.scales) + (", also mirrored" if self.flip else "")
        return [
            f"{self.input_modality.plural or self.input_modality.name} in their proportions, shorter side {self.side} ×"
            f" {scales}; windows of {self.side} pixels, {self.step} apart; measured at their own size"
        ]

    def adopt(self, data: DataModule) -> None:
        """Take the data's class names, or check that they are the task's."""
        listed = data.names("classes")
        self.classes = adopted_names(self.classes, self.num_classes, listed, "classes", ordered=True)

    @property
    def names(self) -> list[str]:
        """The classes.

        Raises:
            ValueError: they are not known yet.
        """
        return adopted_names(self.classes, self.num_classes, None, "classes")

    @property
    def backbone(self) -> OnePeace:
        """A copy of the modality's branch; of the published head without final norm.

        Raises:
            ValueError: the task has not been built yet.
        """
        if self.head == "light":
            return super().backbone
        branch = merged(self._built().backbone.as_backbone())
        return OnePeace(branch, tokenizer=self.tokenizer, preprocessing=self.preprocessing)

    def build(self) -> SegmentationModel | LightSegmentationModel:
        """The modality's branch with pixel decoder and mask decoder."""
        sizes = self.sizes(len(self.names))
        if self.head == "light":
            return LightSegmentationModel(self.config, sizes.head)
        return SegmentationModel(self.config, sizes)

    def loss(self, batch: Batch) -> Tensor:
        """Classes, masks and overlap of what the queries say, after every layer."""
        layers = self.model(batch.inputs[self.input_modality.name])
        losses = mask_classification_loss(layers, batch.targets["classes"], points=self.points)
        self.log_means({f"train/loss_{name}": loss for name, loss in losses.items()}, len(batch))
        return torch.stack(list(losses.values())).sum()

    def make_metrics(self) -> MetricCollection:
        """Mean over classes of intersection over union, and share of pixels; of the whole data set's pixels."""
        classes = len(self.names)
        # The reader has checked every index.
        options: dict[str, Any] = {"ignore_index": UNLABELLED, "validate_args": False}
        return MetricCollection(
            {
                "mIoU": MulticlassJaccardIndex(classes, **options),
                "pixel_accuracy": MulticlassAccuracy(classes, average="micro", **options),
            }
        )

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Answer a batch of whole rasters: {"classes": for each (Y, X) int64 on the CPU}."""
        return {"classes": [classes_YX.cpu() for classes_YX in self._read(batch.targets["pixels"])]}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Compare with the masks."""
        for classes_YX, truth in zip(outputs["classes"], batch.targets["classes"], strict=True):
            metrics.update(classes_YX[None].to(self.device), torch.from_numpy(truth).to(self.device)[None].long())

    def answers(self, outputs: dict[str, Any], batch: Batch) -> list[Tensor]:
        """For each item (Y, X) int64 indices into ``names``, at its own size."""
        classes: list[Tensor] = outputs["classes"]
        return classes

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """The item, its classes, and the model's, side by side."""
        names = self.names
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
        one, extent = self.input_modality, torch.tensor(truth.shape[::-1])
        items = [
            shown_item(one, one.collate([torch.from_numpy(pixels)]), 0, extent, title=one.name),
            shown_image(shown(painted(truth, len(names))), "truth"),
            shown_image(shown(painted(answer, len(names))), "answer"),
        ]
        present = {name: f"rgb{tuple(painted(np.array(names.index(name)), len(names)).tolist())}" for name in overlaps}
        return Drawn(items, "", f"mean IoU {mean:.2f}: {said}", "", mean >= RIGHT_FROM, present)

    def batch_of(self, given: Mapping[str, Sequence[Any]], first: int) -> Batch:
        """Whole items, at their own size.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        one = self.input_modality
        pixels = [one.raster(item).numpy() for item in self.load(one.name, given[one.name], first)]
        return Batch([str(first + row) for row in range(len(pixels))], {}, targets={"pixels": pixels})

    def predict(self, *items: Sequence[Any], batch_size: int = 32, **named: Sequence[Any]) -> list[Tensor]:
        """Name each pixel's class.

        Args:
            *items: one list of paths, or of objects in memory that the modality accepts, such as PIL images.
            batch_size: items that are read together.
            **named: the list by the modality's name, ``image=[…]``.

        Returns:
            For each item (Y, X) int64 indices into ``names``, at its own size.

        Raises:
            ValueError: naming an item that cannot be read.
        """
        return self.predicted(items, named, batch_size)

    def _read(self, rasters: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """(Y, X) int64 for each (C, Y, X)."""

        def score(pixels: Tensor) -> Tensor:
            return class_scores(self.model(Image(pixels))[-1], self.side)

        pixels = (torch.from_numpy(raster).to(self.device) for raster in rasters)
        for probabilities_KYX in sliding_probabilities(
            score, pixels, self.side, step=self.step, scales=self.scales, flip=self.flip, batch_size=self.windows
        ):
            yield probabilities_KYX.argmax(0)


def painted(classes_YX: np.ndarray, classes: int) -> np.ndarray:
    """(Y, X, 3) uint8: each class in a colour of its own, the first (often background) in grey, no class in black."""
    colours = np.zeros((UNLABELLED + 1, 3))
    for index in range(classes):
        # Hues a golden section apart are never close, however many there are.
        colours[index] = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75 * (index > 0), 0.9 - 0.1 * (index % 4))
    return (255 * colours).round().astype(np.uint8)[classes_YX]


def shown(pixels: np.ndarray) -> Pillow.Image:
    """A (Y, X, 3) uint8 image for the gallery."""
    image = Pillow.fromarray(pixels)
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Pillow.Resampling.BICUBIC if factor < 1 else Pillow.Resampling.NEAREST)
