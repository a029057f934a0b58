"""Video classification: adapters around a frozen image branch (Kinetics-400)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from torchmetrics import MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.vision.video import VideoClassifier, VideoClassifierConfig
from onepeace_lightning.tasks.base import FINETUNING
from onepeace_lightning.tasks.classification import ClassificationTask
from onepeace_lightning.tasks.lora import merged
from onepeace_lightning.tasks.source import BackboneSource, with_own_positions
from onepeace_lightning.tasks.vocabulary import likeliest, vocabulary
from onepeace_lightning.training.optimizer import Optimization


class VideoClassificationTask(ClassificationTask):
    """Videos in classes, from ``video-label`` data; see ``ClassificationTask``.

    The backbone's image branch looks at every frame. As published, it stays as it is, and what trains are adapters
    around its blocks, positions in time, a final norm and the head; adapters and positions at a tenth of the rate.

    Args:
        backbone: see ``FinetuneTask``; its image branch is used.
        optimization: see ``FinetuneTask``; layer decay has no effect.
        frames: of a clip.
        dropout: of the features that are classified.
        trainable: "head" trains all but the image branch, "all" the branch too.
        per_block_tables: see ``FinetuneTask``.
        preprocessing: of "video"; the frames' side is also the model's.
        **options: see ``ClassificationTask``.

    Raises:
        ValueError: a setting is out of its range, or as ``ClassificationTask``.
    """

    modalities = ("image",)
    published: ClassVar = {"Kinetics-400": "top-1 88.1, top-5 97.8"}

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

    def context(self) -> list[str]:
        """Which frames are looked at."""
        return [self.preprocessing.describe(["video"])]

    @property
    def backbone(self) -> OnePeace:
        """A copy of the image branch without the adapters.

        Raises:
            ValueError: the task has not been built yet.
        """
        branch = merged(self._built().backbone.as_backbone())
        return OnePeace(branch, tokenizer=self.tokenizer, preprocessing=self.preprocessing)

    def build(self) -> VideoClassifier:  # type: ignore[override]
        """The image branch with adapters."""
        return VideoClassifier(self.config, self.sizes(len(vocabulary(self.classes, None, "classes"))))

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of each video's one clip."""
        return self.loss_of(self.model(batch.inputs["video"].frames.flatten(0, 1)), self.targets(batch))

    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Classify a batch by the mean over views of their probabilities.

        Returns:
            {"logits": (B, C) logarithms of the probabilities}.
        """
        probabilities_BC, targets_BC = self.model.probabilities(batch.inputs["video"].frames), self.targets(batch)
        metrics.update(probabilities_BC, targets_BC.argmax(1))
        return {"logits": probabilities_BC.log()}

    def predict(self, video: Sequence[Any], *, top: int = 5, batch_size: int = 1) -> list[dict[str, float]]:
        """Classify videos.

        Args:
            video: paths.
            top: classes to name for each.
            batch_size: videos all of whose views run through the model together.

        Returns:
            For each video class names with probabilities, likeliest first.

        Raises:
            ValueError: naming a video that cannot be read.
        """
        names = vocabulary(self.classes, None, "classes")
        answers: list[dict[str, float]] = []
        with self.answering() as model:
            for first, [part] in batched(batch_size, video=video):
                frames = self.read("video", part, first).frames
                answers += likeliest(model.probabilities(frames), names, top)
        return answers

    def _check_data(self, data: DataModule) -> None:
        settings, side = data.preprocessing["video"], self.config.adapters["image"].image_size  # type: ignore[attr-defined]
        wrong = [
            f"{name} of video is {given}, the model takes {needed}"
            for name, given, needed in (("frames", settings.frames, self.frames), ("size", settings.size, side))
            if given != needed
        ]
        if wrong:
            raise ValueError(f"data: preprocessing: {'; '.join(wrong)}; give both the same")


def with_image_side(preprocessing: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
    """Settings in which images have the side of the video's frames."""
    if preprocessing is None:
        return None
    given = {name: dict(settings) for name, settings in preprocessing.items()}
    if "size" in given.get("video", {}):
        given.setdefault("image", {})["size"] = given["video"]["size"]
    return given
