"""The COCO detector (onepeace_det_coco.pth)."""

from collections.abc import Mapping, Sequence
from typing import Any

from onepeace_lightning.checkpoints.released.base import Kind, Opened, ReleasedFile, class_names
from onepeace_lightning.checkpoints.released.vision_names import to_ours
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.models.config import ModelConfig, TransformerConfig
from onepeace_lightning.models.patches import PATCH

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's classes in the order of their ids, which is that of the file's outputs."""

_TRUNK = "backbone.net."
_TABLE = f"{_TRUNK}image_adapter.rel_pos_table.weight"
DROP_PATH = 0.6
"""Published stochastic depth of the last block."""


class Detection(Kind):
    """Trunk of windows, pyramid, region proposals, three box heads and a mask head."""

    name = "detection"
    title = "the COCO detector (onepeace_det_coco.pth)"
    answers = "boxes, masks and classes of the things in an image"
    task = "ObjectDetectionTask"
    takes_labels = True

    def recognise(self, file: ReleasedFile) -> bool:
        """A trunk, proposals and heads of regions."""
        return all(file.has(prefix) for prefix in (_TRUNK, "proposal_generator.", "roi_heads."))

    def open(self, file: ReleasedFile, labels: Sequence[str] | None) -> Opened:
        """80 classes are COCO's where there are no labels."""
        classes = self.outputs(file)
        if labels is None and classes == len(COCO):
            labels = COCO
        config, window = self._config(file), self._window(file)
        sides = [
            (file.shape(f"{_TRUNK}encoder.layers.{block}.self_attn.rel_pos_h")[0] + 1) // 2
            for block in range(config.encoder.depth)
        ]
        settings = {
            "classes": class_names(labels, classes, file.path),
            "window": window,
            "global_blocks": [block for block, side in enumerate(sides) if side != window],
            "channels": file.shape("proposal_generator.rpn_head.conv.conv0.weight")[0],
            "hidden": file.shape("roi_heads.box_head.0.fc1.weight")[0],
        }
        return Opened(config, to_ours("detection", file.tensors), settings, self.preprocessing(file, config))

    def preprocessing(self, file: ReleasedFile, config: ModelConfig) -> Mapping[str, Mapping[str, Any]]:
        """The longest side that images are resized to."""
        return {"image": {"size": PATCH * self._grid(file)}}

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """Of this file."""
        return ["COCO detection"]

    def outputs(self, file: ReleasedFile) -> int:
        """Of the classifier."""
        return file.shape("roi_heads.mask_head.predictor.weight")[0]

    def describe(self, file: ReleasedFile) -> Sequence[str]:
        """Side, windows and classes."""
        classes = self.outputs(file)
        side, window = PATCH * self._grid(file), PATCH * self._window(file)
        return [f"longest side {side} pixels, windows of {window}, {classes} classes"]

    def _config(self, file: ReleasedFile) -> ModelConfig:
        ffn_width, width = file.shape(f"{_TRUNK}encoder.layers.0.image_ffn.0.wi_0.weight")
        return ModelConfig(
            encoder=TransformerConfig(
                width=width,
                depth=file.count(f"{_TRUNK}encoder.layers."),
                heads=file.shape(_TABLE)[1],
                ffn_width=ffn_width,
                drop_path=DROP_PATH,
            ),
            adapters={"image": ImageConfig(image_size=PATCH * self._grid(file))},
        )

    def _grid(self, file: ReleasedFile) -> int:
        rows = file.shape(f"{_TRUNK}image_adapter.pos_embed")[0]
        grid = round((rows - 1) ** 0.5)
        if grid**2 + 1 != rows:
            raise ValueError(f"{file.path}: {_TRUNK}image_adapter.pos_embed has {rows} rows, which is no square grid")
        return grid

    def _window(self, file: ReleasedFile) -> int:
        return (round((file.shape(_TABLE)[0] - 3) ** 0.5) + 1) // 2
