"""The video classifier (onepeace_video_k400.pth)."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from onepeace_lightning.checkpoints.released.base import Kind, Opened, ReleasedFile, class_names
from onepeace_lightning.checkpoints.released.vision_names import to_ours
from onepeace_lightning.checkpoints.released.vision_sizes import image_branch
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.models.config import ModelConfig

_FRAMES = "backbone.image_adapter.temporal_embedding"
_HEAD = "cls_head.fc_cls.weight"


class Video(Kind):
    """The image branch with adapters over time, space and features."""

    name = "video"
    title = "a video classifier (onepeace_video_k400.pth)"
    answers = "the classes of a video"
    task = "VideoClassificationTask"
    takes_labels = True

    def recognise(self, file: ReleasedFile) -> bool:
        """Positions in time and the classifier."""
        return _FRAMES in file.tensors and _HEAD in file.tensors

    def open(self, file: ReleasedFile, labels: Sequence[str] | None) -> Opened:
        """As many frames as the file has positions in time."""
        config = image_branch(file, "backbone.")
        settings = {
            "classes": class_names(labels, self.outputs(file), file.path),
            "frames": file.shape(_FRAMES)[1],
        }
        return Opened(config, to_ours("video", file.tensors), settings, self.preprocessing(file, config))

    def step(self, file: ReleasedFile) -> int:
        """Distance between frames as published: every 4th of 32, else every 8th."""
        return 4 if file.shape(_FRAMES)[1] == 32 else 8

    def preprocessing(self, file: ReleasedFile, config: ModelConfig) -> Mapping[str, Mapping[str, Any]]:
        """Three clips of as many frames as the file has positions in time, three crops of each."""
        side = cast(ImageConfig, config.adapters["image"]).image_size
        frames = file.shape(_FRAMES)[1]
        views = {"frames": frames, "step": self.step(file), "clips": 3, "crops": 3}
        return {"image": {"size": side}, "video": {"size": side, **views}}

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """Of both ways to read a video."""
        return ["Kinetics-400"]

    def outputs(self, file: ReleasedFile) -> int:
        """Of the classifier."""
        return file.shape(_HEAD)[0]

    def describe(self, file: ReleasedFile) -> Sequence[str]:
        """Frames and classes."""
        frames = file.shape(_FRAMES)[1]
        return [
            f"clips of {frames} frames, every {self.step(file)}th; 3 clips × 3 crops; {self.outputs(file)} classes",
            f"the published result with another number of frames than {frames} had positions in time of zero",
        ]
