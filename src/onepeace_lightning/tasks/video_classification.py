"""Video classification: adapters around a frozen image branch (Kinetics-400)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.models.vision.video import VideoClassifier, VideoClassifierConfig
from onepeace_lightning.tasks.base import FINETUNING
from onepeace_lightning.tasks.labels import LabelTask
from onepeace_lightning.tasks.lora import merged
from onepeace_lightning.tasks.source import BackboneSource, with_own_positions
from onepeace_lightning.training.optimizer import Optimization


class VideoClassificationTask(LabelTask):
    """Videos in classes, from ``video-label`` data, by the published model of Kinetics.

    ``ClassificationTask(modalities=["video"])`` instead gives all frames to the encoder as one sequence. Here the
    backbone's image branch looks at every frame. As published, it stays as it is, and what trains are adapters
    around its blocks, positions in time, a final norm and the head; adapters and positions at a tenth of the rate.

    Args:
        backbone: see ``FinetuneTask``; its image branch is used.
        optimization: see ``FinetuneTask``; layer decay has no effect.
        frames: of a clip.
        dropout: of the features that are classified.
        trainable: "head" trains all but the image branch, "all" the branch too.
        per_block_tables: see ``FinetuneTask``.
        preprocessing: of "video"; the frames' side is also the model's.
        **options: see ``LabelTask``.

    Raises:
        ValueError: a setting is out of its range, or as ``FinetuneTask``.
    """

    modalities = ("image",)
    read_modalities = ("video",)
    published: ClassVar = {"Kinetics-400": ("Kinetics-400",)}

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        frames: int = 16,
        dropout: float = 0.5,
        trainable: Literal["all", "head"] = "head",
        per_block_tables: bool = False,
        preprocessing: dict[str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            backbone, optimization, trainable=trainable, per_block_tables=per_block_tables,
            preprocessing=with_image_side(preprocessing), **options,
        )  # fmt: skip
        if self.multi_label:
            raise ValueError("multi_label is set; a video has one class")
        self.config = with_own_positions(self.config)
        self.frames, self.dropout = frames, dropout
        self.sizes(1)

    def sizes(self, classes: int) -> VideoClassifierConfig:
        """Sizes of all beside the image branch.

        Raises:
            ValueError: one of them is impossible.
        """
        return VideoClassifierConfig(classes=classes, frames=self.frames, dropout=self.dropout)

    def settings(self) -> dict[str, Any]:
        """Classes and frames."""
        return {**super().settings(), "frames": self.frames, "dropout": self.dropout}

    @property
    def columns(self) -> dict[str, str | None]:
        """The videos."""
        return {"video": "video"}

    @property
    def backbone(self) -> OnePeace:
        """A copy of the image branch without the adapters.

        Raises:
            ValueError: the task has not been built yet.
        """
        branch = merged(self._built().backbone.as_backbone())
        return OnePeace(branch, tokenizer=self.tokenizer, preprocessing=self.preprocessing)

    def build(self) -> VideoClassifier:
        """The image branch with adapters."""
        return VideoClassifier(self.config, self.sizes(len(self.names)))

    def inputs(self, batch: Batch) -> Any:
        """(B, V, T, 3, S, S) the frames of all views."""
        return batch.inputs["video"].frames

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of each video's one clip."""
        logits_BC = self.model(self.inputs(batch).flatten(0, 1))
        return self.loss_of(logits_BC, self.targets(batch))

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Classify a batch by the mean over views of their probabilities: {"logits": (B, C) its logarithm}."""
        return {"logits": self.model.probabilities(self.inputs(batch)).log()}

    def batch_of(self, given: Mapping[str, Sequence[Any]], first: int) -> Batch:
        """Videos with all of their views.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        keys = [str(first + row) for row in range(len(given["video"]))]
        return Batch(keys, {"video": self.read("video", given["video"], first)})

    def data_problems(self, data: DataModule) -> list[str]:
        """Of the frames instead of the images, which are not the data's."""
        settings, side = data.preprocessing["video"], self.config.adapters["image"].image_size  # type: ignore[attr-defined]
        own = super().data_problems(data)
        return [problem for problem in own if not problem.startswith("preprocessing")] + [
            f"preprocessing: {name} of video is {given}, the model takes {needed}; give both the same"
            for name, given, needed in (("frames", settings.frames, self.frames), ("size", settings.size, side))
            if given != needed
        ]


def with_image_side(preprocessing: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
    """Settings in which images have the side of the video's frames."""
    if preprocessing is None:
        return None
    given = {name: dict(settings) for name, settings in preprocessing.items()}
    if "size" in given.get("video", {}):
        given.setdefault("image", {})["size"] = given["video"]["size"]
    return given
