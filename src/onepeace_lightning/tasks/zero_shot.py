"""Zero-shot classification: the class whose name, said in a prompt, lies nearest to a picture or sound."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.modalities.audio import AudioItem
from onepeace_lightning.modalities.image import ImageItem
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.tasks.base import FinetuneTask
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.tasks.vocabulary import indices, vocabulary


class ZeroShotTask(FinetuneTask):
    """Classifies by names alone; there is nothing to train.

    A class's vector is the mean of the unit-length embeddings of every prompt with every name of the class, made unit
    length again (prompt ensembling, arXiv 2103.00020 section 3.1.4).

    Args:
        backbone: with contrastive heads; see ``FinetuneTask``.
        classes: the labels in the data; None: those that the data list.
        names: JSON file, or mapping, of each label to the name or names to say; None: the label itself, with blanks for
            underscores.
        prompts: with ``{label}`` where the name goes.
        tokenizer: see ``FinetuneTask``.
        preprocessing: see ``FinetuneTask``.

    Raises:
        ValueError: the backbone has no contrastive heads, or a prompt has no ``{label}``.
    """

    score_name = "accuracy"
    carried = ("backbone", "heads")

    def __init__(
        self,
        backbone: BackboneSource,
        *,
        prompts: Sequence[str],
        classes: list[str] | None = None,
        names: str | dict[str, list[str]] | None = None,
        tokenizer: str | None = None,
        preprocessing: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(backbone, tokenizer=tokenizer, preprocessing=preprocessing, per_block_tables=False)
        if not any(name.startswith("heads.") for name in self.source.weights or ()):
            raise ValueError(f"{self.source.name} has no trained contrastive heads; zero-shot answers need them")
        if wrong := [prompt for prompt in prompts if "{label}" not in prompt]:
            raise ValueError(f"prompts {wrong} do not say where the class's name goes; write {{label}} there")
        if not prompts:
            raise ValueError('no prompt is given; give at least one, such as "{label}"')
        self.prompts = list(prompts)
        self.classes = None if classes is None else vocabulary(classes, None, "classes")
        self.names = _read_names(names)
        self.class_vectors: Tensor | None = None

    def adopt(self, data: DataModule) -> None:
        """Take the data's class names, or check that they are the task's."""
        self.classes = vocabulary(self.classes, data.names("classes"), "classes")

    def context(self) -> list[str]:
        """The prompts."""
        return ["prompts: " + " | ".join(self.prompts)]

    def build(self) -> PretrainModel:
        """Backbone and contrastive heads."""
        return PretrainModel(self.config, denoise=False)

    def loss(self, batch: Batch) -> Tensor:
        """There is none.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{type(self).__name__} has nothing to train; use `onepeace validate`, or a classifier")

    def make_metrics(self) -> MetricCollection:
        """Accuracy of the nearest and of the nearest five classes."""
        classes = len(vocabulary(self.classes, None, "classes"))
        metrics: dict[str, Metric | MetricCollection] = {"accuracy": MulticlassAccuracy(classes, average="micro")}
        if classes > 5:
            metrics["accuracy_top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        return MetricCollection(metrics)

    def on_validation_start(self) -> None:
        """Embed the classes."""
        self.class_vectors = self.embed_classes()

    def on_test_start(self) -> None:
        """Embed the classes."""
        self.class_vectors = self.embed_classes()

    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Compare a batch with the classes.

        Returns:
            {"logits": (B, C) cosines}.
        """
        if self.class_vectors is None:
            self.class_vectors = self.embed_classes()
        places = {name: place for place, name in enumerate(vocabulary(self.classes, None, "classes"))}
        labels = batch.targets["labels"]
        if several := [key for key, given in zip(batch.keys, labels, strict=True) if len(given) != 1]:
            raise ValueError(f"samples {several[:5]} have several labels; zero-shot classification names one")
        cosines = self._embed(self.item_modality, batch.inputs[self.item_modality]) @ self.class_vectors.T
        target = torch.tensor(indices([given[0] for given in labels], places, "class"), device=self.device)
        metrics.update(cosines, target)
        return {"logits": cosines}

    @property
    def item_modality(self) -> str:
        """What is classified."""
        return next(name for name in self.modalities if name != "text")

    def embed_classes(self, batch_size: int = 256) -> Tensor:
        """(C, d) unit-length vector of every class.

        Raises:
            ValueError: the names lack a class, or no tokenizer is known.
        """
        classes = vocabulary(self.classes, None, "classes")
        if self.tokenizer is None:
            raise ValueError("zero-shot classification reads class names; give tokenizer=, the folder of the model's")
        if self.names is not None and (lacking := [name for name in classes if name not in self.names]):
            raise ValueError(f"names says nothing of {lacking[:10]} ({len(lacking)} of {len(classes)} classes)")
        said = [self.names[name] if self.names else [name.replace("_", " ")] for name in classes]
        sentences = [[prompt.replace("{label}", name) for name in names for prompt in self.prompts] for names in said]
        ids = [self.tokenizer.encode(sentence).ids for part in sentences for sentence in part]
        with self.answering():
            vectors = torch.cat(
                [
                    self._embed("text", Text.pad(ids[start : start + batch_size]).to(self.device))
                    for start in range(0, len(ids), batch_size)
                ]
            )
        means = torch.stack([part.mean(0) for part in vectors.split([len(part) for part in sentences])])
        return F.normalize(means, dim=-1)

    def classify(self, items: Sequence[Any], top: int, batch_size: int) -> list[dict[str, float]]:
        """For each item the nearest classes with their cosines, nearest first."""
        names, modality = vocabulary(self.classes, None, "classes"), self.item_modality
        answers = []
        with self.answering():
            vectors = self.embed_classes()
            for first, [part] in batched(batch_size, **{modality: items}):
                best = (self._embed(modality, self.read(modality, part, first)) @ vectors.T).topk(min(top, len(names)))
                rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                answers += [{names[i]: value for i, value in zip(*row, strict=True)} for row in rows]
        return answers

    def _embed(self, modality: str, inputs: Any) -> Tensor:
        return self.model.heads(modality, self.model.backbone({modality: inputs}))


class ZeroShotImageClassificationTask(ZeroShotTask):
    """Pictures; see ``ZeroShotTask``."""

    modalities = ("text", "image")

    def __init__(
        self, backbone: BackboneSource, *, prompts: Sequence[str] = ("a photo of a {label}",), **options: Any
    ) -> None:
        super().__init__(backbone, prompts=prompts, **options)

    def predict(self, image: Sequence[ImageItem], *, top: int = 5, batch_size: int = 32) -> list[dict[str, float]]:
        """Classify pictures.

        Args:
            image: paths, PIL pictures, arrays or tensors.
            top: classes to name for each.
            batch_size: pictures that run through the model together.

        Returns:
            For each picture class names with cosines, nearest first.

        Raises:
            ValueError: naming a picture that cannot be read.
        """
        return self.classify(image, top, batch_size)


class ZeroShotAudioClassificationTask(ZeroShotTask):
    """Sounds; see ``ZeroShotTask``."""

    modalities = ("text", "audio")
    published: ClassVar[Mapping[str, str]] = {"ESC-50": "accuracy 91.8"}

    def __init__(
        self, backbone: BackboneSource, *, prompts: Sequence[str] = ("This is a sound of {label}",), **options: Any
    ) -> None:
        super().__init__(backbone, prompts=prompts, **options)

    def predict(self, audio: Sequence[AudioItem], *, top: int = 5, batch_size: int = 32) -> list[dict[str, float]]:
        """Classify sounds.

        Args:
            audio: paths, or tuples (waveform, sample_rate).
            top: classes to name for each.
            batch_size: sounds that run through the model together.

        Returns:
            For each sound class names with cosines, nearest first.

        Raises:
            ValueError: naming a sound that cannot be read.
        """
        return self.classify(audio, top, batch_size)


def _read_names(names: str | dict[str, list[str]] | None) -> dict[str, list[str]] | None:
    content: Any = json.loads(Path(names).read_text(encoding="utf-8")) if isinstance(names, str) else names
    if content is None:
        return None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"names ({names}) must map each class to its name or names")
    return {str(label): [said] if isinstance(said, str) else list(said) for label, said in content.items()}
