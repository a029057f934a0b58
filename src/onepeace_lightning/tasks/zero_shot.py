"""Zero-shot classification: the class whose name, said in a prompt, lies nearest to an item of any modality."""

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
from onepeace_lightning.metrics.chance import CommonestAnswer
from onepeace_lightning.modalities.registry import modality, text_modality
from onepeace_lightning.modalities.tokenizers.base import parsed_json
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.tasks.base import FinetuneTask, distinct
from onepeace_lightning.tasks.class_names import adopted_names, indices, known_names, likeliest
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.tasks.training import ENTRIES


class ZeroShotClassificationTask(FinetuneTask):
    """Classifies by names alone, from ``image-label``, ``audio-label``, … data; there is nothing to train.

    A class's vector is the mean of the unit-length embeddings of every prompt with every name of the class, made unit
    length again (prompt ensembling, arXiv 2103.00020 section 3.1.4).

    Args:
        backbone: with contrastive heads; see ``FinetuneTask``.
        item: what is classified, a registered modality.
        prompts: with ``{label}`` where the name goes; None: the modality's own (``Modality.prompts``).
        classes: the labels in the data; None: those that the data list.
        names: JSON file, or mapping, of each label to the name or names to say; None: the label itself, with blanks for
            underscores.
        tokenizer: see ``FinetuneTask``.
        preprocessing: see ``FinetuneTask``.

    Raises:
        ValueError: the backbone has no contrastive heads, or a prompt has no ``{label}``.
    """

    learns = ("label",)
    score_name = "accuracy"
    carried = ("backbone", "heads")
    entries = (*ENTRIES, "embed_classes")
    published: ClassVar = {"ESC-50": ("ESC-50 zero-shot",)}

    def __init__(
        self,
        backbone: BackboneSource,
        *,
        item: str,
        prompts: Sequence[str] | None = None,
        classes: list[str] | None = None,
        names: str | dict[str, list[str]] | None = None,
        tokenizer: str | None = None,
        preprocessing: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.item = item
        self.modalities = distinct([item, text_modality()])
        super().__init__(backbone, tokenizer=tokenizer, preprocessing=preprocessing, per_block_tables=False)
        if not any(name.startswith("heads.") for name in self.source.weights or ()):
            raise ValueError(f"{self.source.name} has no trained contrastive heads; zero-shot answers need them")
        self.prompts = list(modality(item).prompts if prompts is None else prompts)
        if wrong := [prompt for prompt in self.prompts if "{label}" not in prompt]:
            raise ValueError(f"prompts {wrong} do not say where the class's name goes; write {{label}} there")
        if not self.prompts:
            raise ValueError('no prompt is given; give at least one, such as "{label}"')
        self.classes = None if classes is None else known_names(classes, None, "classes")
        self.said = _read_names(names)
        self.class_vectors: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """The classes.

        Raises:
            ValueError: they are not known yet.
        """
        return known_names(self.classes, None, "classes")

    @property
    def read_modalities(self) -> tuple[str, ...]:
        """The item alone: class names are no part of the data's samples."""
        return (self.item,)

    @property
    def columns(self) -> dict[str, str | None]:
        """The items."""
        return {self.item: self.item}

    def adopt(self, data: DataModule) -> None:
        """Take the data's class names, or check that the task knows them."""
        self.classes = adopted_names(self.classes, None, data.names("classes"), "classes")

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
        """Accuracy of the nearest class, beside that of the commonest one, and of the nearest five."""
        classes = len(self.names)
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "chance/accuracy": CommonestAnswer(classes),
        }
        if classes > 5:
            metrics["accuracy_top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        return MetricCollection(metrics)

    def on_validation_start(self) -> None:
        """Embed the classes."""
        self.class_vectors = self.embed_classes()

    def on_test_start(self) -> None:
        """Embed the classes."""
        self.class_vectors = self.embed_classes()

    def on_predict_start(self) -> None:
        """Embed the classes."""
        self.class_vectors = self.embed_classes()

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Compare a batch with the classes: {"logits": (B, C) cosines}."""
        if self.class_vectors is None:
            self.class_vectors = self.embed_classes()
        return {"logits": self._embed(self.item, batch.inputs[self.item]) @ self.class_vectors.T}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Compare with the samples' classes.

        Raises:
            ValueError: a sample has several.
        """
        among = {name: index for index, name in enumerate(self.names)}
        labels = batch.targets["labels"]
        if several := [key for key, given in zip(batch.keys, labels, strict=True) if len(given) != 1]:
            raise ValueError(f"samples {several[:5]} have several labels; zero-shot classification names one")
        target = torch.tensor(indices([given[0] for given in labels], among, "class"), device=self.device)
        metrics.update(outputs["logits"], target)

    def answers(self, outputs: dict[str, Any], batch: Batch, top: int = 5) -> list[dict[str, float]]:
        """For each item the nearest classes with their cosines, nearest first."""
        return likeliest(outputs["logits"], self.names, top)

    def embed_classes(self, batch_size: int = 256) -> Tensor:
        """(C, d) unit-length vector of every class.

        Raises:
            ValueError: the names lack a class, or no tokenizer is known.
        """
        classes = self.names
        if self.tokenizer is None:
            raise ValueError("zero-shot classification reads class names; give tokenizer=, the folder of the model's")
        if self.said is not None and (lacking := [name for name in classes if name not in self.said]):
            raise ValueError(f"names says nothing of {lacking[:10]} ({len(lacking)} of {len(classes)} classes)")
        said = [self.said[name] if self.said else [name.replace("_", " ")] for name in classes]
        sentences = [[prompt.replace("{label}", name) for name in names for prompt in self.prompts] for names in said]
        text = text_modality()
        one = self.preprocessing.modality(text, self.tokenizer)
        arrays = [one.transform(sentence) for part in sentences for sentence in part]
        with self.answering():
            vectors = torch.cat(
                [
                    self._embed(text, one.collate(arrays[start : start + batch_size]).to(self.device))
                    for start in range(0, len(arrays), batch_size)
                ]
            )
        means = torch.stack([part.mean(0) for part in vectors.split([len(part) for part in sentences])])
        return F.normalize(means, dim=-1)

    def predict(
        self, *items: Sequence[Any], top: int = 5, batch_size: int = 32, **named: Sequence[Any]
    ) -> list[dict[str, float]]:
        """Classify.

        Args:
            *items: one list of items: paths, or objects in memory.
            top: classes to name for each.
            batch_size: items that run through the model together.
            **named: the list by its modality, such as ``image=[…]``.

        Returns:
            For each item class names with cosines, nearest first.

        Raises:
            ValueError: naming an item that cannot be read.
        """
        self.configure_model()
        self.class_vectors = self.embed_classes()
        return self.predicted(items, named, batch_size, top=top)

    def _embed(self, name: str, inputs: Any) -> Tensor:
        embeddings: Tensor = self.model.embed({name: inputs})[name]
        return embeddings


def _read_names(names: str | dict[str, list[str]] | None) -> dict[str, list[str]] | None:
    content: Any = names
    if isinstance(names, str):
        content = parsed_json(Path(names).read_text(encoding="utf-8"))
    if content is None:
        return None
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"names ({names}) must map each class to its name or names")
    return {str(label): [said] if isinstance(said, str) else list(said) for label, said in content.items()}
