"""Retrieval between captions and pictures or sounds: fine-tuning by contrast, and evaluation, zero-shot too."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.contrastive import Keys, aligning_contrast
from onepeace_lightning.metrics import CrossModalRecall, caption_ids
from onepeace_lightning.metrics.recall import Ties
from onepeace_lightning.modalities.audio import AudioItem
from onepeace_lightning.modalities.image import ImageItem
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class RetrievalTask(FinetuneTask):
    """Captions and items of another modality on one sphere.

    ``onepeace validate`` without a checkpoint measures the backbone as it is: zero-shot retrieval
    (``per_block_tables: false`` is then cheaper and gives the same).

    Args:
        backbone: see ``FinetuneTask``; its contrastive heads are taken over.
        optimization: see ``FinetuneTask``.
        keys: gradient of the contrast's keys, see ``losses.contrastive.gather``; published fine-tuning is "detached".
        ties: how keys of equal score are ranked: "strict", a wrong one first; or "published", as in the original's
            evaluation, to compare with its scores.
        **options: see ``FinetuneTask``.
    """

    carried = ("backbone", "heads")
    to_percent = 1.0  # as the metric gives it

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        keys: Keys = "differentiable",
        ties: Ties = "strict",
        **options: Any,
    ) -> None:
        super().__init__(backbone, optimization, **options)
        self.keys: Keys = keys
        self.ties: Ties = ties

    @property
    def item_modality(self) -> str:
        """What captions are compared with."""
        return next(name for name in self.modalities if name != "text")

    def build(self) -> PretrainModel:
        """Backbone and contrastive heads."""
        return PretrainModel(self.config, denoise=False)

    def embed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """(rows, d) float32 unit-length embeddings of each modality, seen alone, in one pass; rows may differ."""
        backbone = self.model.backbone
        tokens = backbone.embed(inputs)
        features = backbone.encode([backbone.view({name: part}) for name, part in tokens.items()])
        return {name: self.model.heads(name, view) for name, view in zip(tokens, features, strict=True)}

    def loss(self, batch: Batch) -> Tensor:
        """Aligning contrast of the batch's items with one caption each; other captions of an item are negatives."""
        embeddings = self.embed(batch.inputs)
        return aligning_contrast(embeddings["text"], embeddings[self.item_modality], self.model.heads.scale, self.keys)

    def make_metrics(self) -> MetricCollection:
        """Recall both ways over the whole gallery."""
        return MetricCollection([CrossModalRecall(self.item_modality, "text", ties=self.ties)])

    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Embed a batch.

        Returns:
            {"embeddings": {modality: (rows, d)}}.
        """
        embeddings = self.embed(batch.inputs)
        ids = caption_ids(batch.targets["answer"]).to(self.device)
        text_ids = ids
        if "captions" in batch.targets:  # several of each item
            of_each = [len(captions) for captions in batch.targets["captions"]]
            text_ids = ids.repeat_interleave(torch.tensor(of_each, device=self.device))
        metrics.update(embeddings[self.item_modality], embeddings["text"], ids, text_ids)
        return {"embeddings": embeddings}

    def score(self, values: Mapping[str, Tensor]) -> Tensor:
        """Mean of R@1 both ways."""
        item = self.item_modality
        return (values[f"{item}_to_text/R@1"] + values[f"text_to_{item}/R@1"]) / 2

    def similarity(self, items: Sequence[Any], text: Sequence[str], batch_size: int) -> Tensor:
        """(items, texts) cosines."""
        with self.answering():
            rows, columns = (
                torch.cat(
                    [
                        self.embed({modality: self.read(modality, part, first)})[modality].cpu()
                        for first, [part] in batched(batch_size, **{modality: given})
                    ]
                )
                for modality, given in ((self.item_modality, items), ("text", text))
            )
        return rows @ columns.T


class ImageTextRetrievalTask(RetrievalTask):
    """Pictures and captions; see ``RetrievalTask``."""

    modalities = ("text", "image")
    published: ClassVar = {
        "COCO": "R@1 image to text 84.1, text to image 65.4 (zero-shot 64.7 and 48.0)",
        "Flickr30K": "R@1 image to text 97.6, text to image 89.6 (zero-shot 90.9 and 77.2)",
    }

    def predict(self, image: Sequence[ImageItem], text: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """Cosines of every picture with every text.

        Args:
            image: paths, PIL pictures, arrays or tensors.
            text: sentences.
            batch_size: items that run through the model together.

        Returns:
            (images, texts) float32.

        Raises:
            ValueError: naming an item that cannot be read.
        """
        return self.similarity(image, text, batch_size)


class AudioTextRetrievalTask(RetrievalTask):
    """Sounds and captions; see ``RetrievalTask``."""

    modalities = ("text", "audio")
    published: ClassVar = {
        "AudioCaps": "R@1 text to audio 42.5, audio to text 51.0",
        "Clotho": "R@1 text to audio 22.4, audio to text 27.1",
    }

    def predict(self, audio: Sequence[AudioItem], text: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """Cosines of every sound with every text.

        Args:
            audio: paths, or tuples (waveform, sample_rate).
            text: sentences.
            batch_size: items that run through the model together.

        Returns:
            (sounds, texts) float32.

        Raises:
            ValueError: naming an item that cannot be read.
        """
        return self.similarity(audio, text, batch_size)
