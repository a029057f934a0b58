"""Object detection and instance segmentation: boxes and masks of things, with their classes (COCO)."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchmetrics import MetricCollection
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import to_pil_image

from onepeace_lightning.checkpoints.detection import load_trunk
from onepeace_lightning.checkpoints.loading import LoadReport
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.data.instances import AnnotatedImage, Annotations, Rle, encode_mask, fitted, read_annotations
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.losses.detection import REGIONS, detection_losses
from onepeace_lightning.metrics.detection import CocoAP
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.models.vision.detector import Detector, DetectorConfig, Instances
from onepeace_lightning.reports.drawing import GUESS, SIDE, TRUE, Drawn, draw_box, shown_image
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask
from onepeace_lightning.tasks.class_names import adopted_names, known_names
from onepeace_lightning.tasks.source import BackboneSource, with_own_positions
from onepeace_lightning.training.optimizer import Optimization

RIGHT_FROM = 0.5
"""Overlap and score from which the gallery calls an instance found."""


class ObjectDetectionTask(FinetuneTask):
    """Boxes, masks and classes of the things in an image, by a Cascade Mask R-CNN on the image branch.

    It takes images alone: the published model, its window attention and its training are those of RGB images. For other
    rasters there is ``SemanticSegmentationTask``.

    Args:
        backbone: see ``FinetuneTask``; the pretrained model, whose relative position table all blocks share.
        optimization: see ``FinetuneTask``.
        classes: their names, in the order of the model's outputs; None: those that the data list.
        num_classes: how many there are, to have the data checked.
        window: side of the attention windows in patches; None: the backbone's grid, for which its relative positions
            were trained.
        global_blocks: blocks that attend to the whole image; None: every fourth.
        channels: of the pyramid.
        hidden: features of a region.
        regions: regions of an image that count in training.
        **options: see ``FinetuneTask``; the image size of ``preprocessing`` is the longest side, a multiple of
            the window's 16 ``window`` pixels.

    Raises:
        ValueError: a setting is out of its range, or as ``FinetuneTask``.
    """

    modalities = ("image",)
    learns = ("boxes",)
    score_name = "box_AP"
    published: ClassVar = {"COCO": ("COCO detection",)}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        classes: list[str] | None = None,
        num_classes: int | None = None,
        window: int | None = None,
        global_blocks: Sequence[int] | None = None,
        channels: int = 256,
        hidden: int = 1024,
        regions: int = REGIONS,
        **options: Any,
    ) -> None:
        super().__init__(backbone, optimization, **options)
        if regions < 4:
            raise ValueError(f"regions is {regions}; give at least 4, of which one may show an instance")
        source = self.source.config.adapters["image"]
        assert isinstance(source, ImageConfig)
        self.config = replace(with_own_positions(self.config), per_block_tables=False)
        self.classes = None if classes is None else known_names(classes, None, "classes")
        self.num_classes = num_classes
        self.regions = regions
        self.head = DetectorConfig(
            classes=1 if self.classes is None else len(self.classes),
            window=source.grid if window is None else window,
            global_blocks=None if global_blocks is None else tuple(global_blocks),
            channels=channels,
            hidden=hidden,
        )

    @property
    def side(self) -> int:
        """Side of the model's square in pixels."""
        return self.preprocessing["image"].size

    def settings(self) -> dict[str, Any]:
        """Classes and sizes of the detector."""
        blocks = self.head.global_blocks
        return {
            "classes": self.classes,
            "window": self.head.window,
            "global_blocks": None if blocks is None else list(blocks),
            "channels": self.head.channels,
            "hidden": self.head.hidden,
        }

    def context(self) -> list[str]:
        """How images are read in evaluation."""
        return [
            f"images in their proportions, longest side {self.side} pixels; box AP by the score of the class, mask AP"
            " by that times the mean of the mask; measured at the image's own size"
        ]

    def adopt(self, data: DataModule) -> None:
        """Take the data's class names, or check that they are the task's."""
        listed = data.names("classes")  # the reader gives indices among these
        self.classes = adopted_names(self.classes, self.num_classes, listed, "classes", ordered=True)

    @property
    def names(self) -> list[str]:
        """The classes.

        Raises:
            ValueError: they are not known yet.
        """
        return adopted_names(self.classes, self.num_classes, None, "classes")

    def build(self) -> Detector:
        """Trunk, pyramid, proposals, cascade and mask head."""
        return Detector(self.config, replace(self.head, classes=len(self.names)))

    def load_source(self) -> LoadReport:
        """Fill the trunk; CLS, final norms and contrastive heads are left behind, the detector's own parts are new."""
        return load_trunk(self.model, self.source.weights, self.source.name)

    @property
    def backbone(self) -> OnePeace:
        """None: blocks that attend within windows make no general backbone.

        Raises:
            ValueError: always.
        """
        raise ValueError("a detector's trunk attends within windows: it is no backbone for another task or for encode")

    def loss(self, batch: Batch) -> Tensor:
        """Of proposals, of each stage's classes and boxes, and of masks."""
        images: list[AnnotatedImage] = batch.targets["annotated"]
        losses = detection_losses(
            self.model,
            [image.pixels.to(self.device, non_blocking=True) for image in images],
            [image.annotations.truth(self.device) for image in images],
            count=self.regions,
        )
        self.log_dict({f"train/loss_{name}": loss.detach() for name, loss in losses.items()}, batch_size=len(batch))
        return torch.stack(list(losses.values())).sum()

    def make_metrics(self) -> MetricCollection:
        """COCO's average precision of boxes and of masks."""
        return MetricCollection({"box": CocoAP("box"), "mask": CocoAP("mask")}, compute_groups=False)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Detect in a batch: {"instances": for each image ``Instances`` in the pixels of the stored image}."""
        images: list[AnnotatedImage] = batch.targets["annotated"]
        return {"instances": self._detect([i.pixels for i in images], [i.annotations.size for i in images])}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Compare with the annotations."""
        images: list[AnnotatedImage] = batch.targets["annotated"]
        for instances, image in zip(outputs["instances"], images, strict=True):
            truth = image.annotations
            masks, classes = instances.pasted(truth.size).cpu(), instances.classes.cpu()
            target = {
                "boxes": truth.boxes, "labels": truth.classes, "masks": truth.masks, "iscrowd": truth.crowd.int(),
                "area": truth.areas,
            }  # fmt: skip
            for name, scores in (("box", instances.scores), ("mask", instances.mask_scores)):
                answer = {"boxes": instances.boxes.cpu(), "labels": classes, "masks": masks, "scores": scores.cpu()}
                metrics[name].update([answer], [target])

    def answers(self, outputs: dict[str, Any], batch: Batch, threshold: float = 0.05) -> list[list[dict[str, Any]]]:
        """For each image its instances of at least this score in plain containers, best first."""
        images: list[AnnotatedImage] = batch.targets["annotated"]
        return [
            described(instances, image.annotations.size, self.names, threshold)
            for instances, image in zip(outputs["instances"], images, strict=True)
        ]

    def draw(self, batch: Batch, outputs: dict[str, Any], row: int) -> Drawn:
        """The image with the right boxes, and with those that the model is sure of and their masks."""
        names = self.names
        annotated: AnnotatedImage = batch.targets["annotated"][row]
        truth, found = annotated.annotations, outputs["instances"][row]
        found = found.where(found.scores >= RIGHT_FROM)
        image = to_pil_image(annotated.pixels)
        scale = SIDE / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        right, said = image.copy(), painted(image, found, truth.size)
        extent = torch.tensor([truth.size[1], truth.size[0]] * 2)
        for box in truth.boxes:
            draw_box(right, box / extent, TRUE)
        for box in found.boxes.cpu():
            draw_box(said, box / extent, GUESS)
        score = found_fraction(found, truth)
        words = ", ".join(
            f"{names[label]} {value:.2f}"
            for label, value in zip(found.classes.tolist(), found.scores.tolist(), strict=True)
        )
        expected = ", ".join(names[label] for label in truth.classes.tolist()) or "nothing"
        items = [shown_image(right, "truth"), shown_image(said, "answer")]
        return Drawn(items, "", words or "nothing", expected, score >= RIGHT_FROM)

    def batch_of(self, given: Mapping[str, Sequence[Any]], first: int) -> Batch:
        """Images in their proportions, with no annotations but their size.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        images = [
            AnnotatedImage(fitted(image, self.side), read_annotations([], {}, (image.height, image.width)))
            for image in self.load("image", given["image"], first)
        ]
        return Batch([str(first + row) for row in range(len(images))], {}, targets={"annotated": images})

    def predict(
        self, *items: Sequence[Any], threshold: float = 0.05, batch_size: int = 4, **named: Sequence[Any]
    ) -> list[list[dict[str, Any]]]:
        """Detect things.

        Args:
            *items: one list of images: paths, PIL images, arrays or tensors.
            threshold: least score of what is reported.
            batch_size: images that run through the model together.
            **named: the list by its name, ``image=[…]``.

        Returns:
            For each image its instances, best first: ``label``, ``score``, ``box`` [x0, y0, x1, y1] in its pixels,
            ``mask`` in COCO's run-length encoding, and ``mask_score``, the score times the mean of the mask.

        Raises:
            ValueError: naming an image that cannot be read.
        """
        return self.predicted(items, named, batch_size, threshold=threshold)

    def _detect(self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """Instances in images of these sizes, which were resized to ``pixels``."""
        found = self.model([image.to(self.device) for image in pixels])
        return [
            instances.at((image.shape[1], image.shape[2]), size)
            for instances, image, size in zip(found, pixels, sizes, strict=True)
        ]


def described(
    instances: Instances, size: tuple[int, int], names: Sequence[str], threshold: float
) -> list[dict[str, Any]]:
    """An image's instances in plain containers.

    Args:
        instances: in its pixels.
        size: its rows and columns.
        names: of the classes.
        threshold: least score.
    """
    kept = instances.where(instances.scores >= threshold)
    masks: list[Rle] = [encode_mask(mask.cpu().numpy()) for mask in kept.pasted(size)]
    columns = (kept.classes, kept.scores, kept.boxes, kept.mask_scores)
    rows = zip(*(column.tolist() for column in columns), masks, strict=True)
    return [
        {"label": names[label], "score": score, "box": box, "mask": mask, "mask_score": mask_score}
        for label, score, box, mask_score, mask in rows
    ]


def painted(image: Pillow.Image, instances: Instances, size: tuple[int, int]) -> Pillow.Image:
    """The image with the instances' masks in translucent colours.

    Args:
        image: of any size.
        instances: in an image of ``size`` rows and columns.
        size: likewise.
    """
    own = (image.height, image.width)
    pixels = np.asarray(image, np.float32)
    for index, mask in enumerate(instances.at(size, own).pasted(own).cpu().numpy()):
        colour = 255 * np.array(colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.8, 0.95), np.float32)
        pixels = np.where(mask[..., None], 0.5 * pixels + 0.5 * colour, pixels)
    return Pillow.fromarray(pixels.round().astype(np.uint8))


def found_fraction(instances: Instances, truth: Annotations) -> float:
    """The fraction of true instances that some detection of their class overlaps by half; 1 where there is nothing."""
    alone = ~truth.crowd
    boxes, classes = truth.boxes[alone], truth.classes[alone]
    if not len(boxes) or not len(instances.boxes):
        return float(not len(boxes) and not len(instances.boxes))
    overlaps = box_iou(boxes, instances.boxes.cpu()) * (classes[:, None] == instances.classes.cpu())
    return float((overlaps.amax(1) >= RIGHT_FROM).float().mean())
