"""COCO's average precision of boxes and masks, as ``torchmetrics`` computes it."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

NAMES: Mapping[str, str] = {
    "map": "AP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "AP_small",
    "map_medium": "AP_medium",
    "map_large": "AP_large",
    "mar_100": "AR100",
}
"""What ``torchmetrics`` calls a figure to what COCO calls it."""


class CocoAP(MeanAveragePrecision):
    """Average precision over IoU .5 to .95 in steps of .05, at .5, at .75 and by size, of 100 detections an image.

    Args:
        what: "box" or "mask", which figures' names begin with.

    Raises:
        ModuleNotFoundError: ``faster-coco-eval`` is not installed.
    """

    def __init__(self, what: Literal["box", "mask"]) -> None:
        super().__init__(iou_type="bbox" if what == "box" else "segm", backend="faster_coco_eval")
        self.what = what
        self.warn_on_many_detections = False

    def compute(self) -> dict[str, Tensor]:
        """Figures from 0 to 1 by name; those of a size that no true instance has are left out."""
        values = super().compute()
        return {f"{self.what}_{name}": values[key] for key, name in NAMES.items() if values[key] >= 0}
