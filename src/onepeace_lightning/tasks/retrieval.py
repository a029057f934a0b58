"""Retrieval between two modalities: fine-tuning by contrast, and evaluation, zero-shot too."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.contrastive import Keys, aligning_contrast
from onepeace_lightning.metrics import CrossModalRecall, caption_ids
from onepeace_lightning.metrics.recall import Ties
from onepeace_lightning.modalities.items import batched
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.tasks.base import FINETUNING, FinetuneTask, distinct
from onepeace_lightning.tasks.source import BackboneSource
from onepeace_lightning.training.optimizer import Optimization


class RetrievalTask(FinetuneTask):
    """Items of two modalities on one sphere, from ``image-text``, ``image-captions``, ``depth-image``, … data.

    ``onepeace validate`` without a checkpoint measures the backbone as it is: zero-shot retrieval
    (``per_block_tables: false`` is then cheaper and gives the same).

    Args:
        backbone: see ``FinetuneTask``; its contrastive heads are taken over.
        optimization: see ``FinetuneTask``.
        item: a registered modality, such as "image".
        query: the other one.
        keys: gradient of the contrast's keys, see ``losses.contrastive.gather``; published fine-tuning is "detached".
        ties: how keys of equal score are ranked: "strict", a wrong one first; or "published", as in the original's
            evaluation, to compare with its scores.
        **options: see ``FinetuneTask``.
    """

    learns = (None, "captions")
    carried = ("backbone", "heads")
    to_percent = 1.0  # as the metric gives it
    published: ClassVar = {
        **{name: (name, f"{name} zero-shot") for name in ("COCO", "Flickr30K")},
        **{name: (name,) for name in ("AudioCaps", "Clotho")},
    }

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        item: str,
        query: str = "text",
        keys: Keys = "differentiable",
        ties: Ties = "strict",
        **options: Any,
    ) -> None:
        self.item, self.query = self.modalities = distinct([item, query])
        super().__init__(backbone, optimization, **options)
        self.keys: Keys = keys
        self.ties: Ties = ties

    def settings(self) -> dict[str, Any]:
        """Both modalities."""
        return {"item": self.item, "query": self.query}

    def build(self) -> PretrainModel:
        """Backbone and contrastive heads."""
        return PretrainModel(self.config, denoise=False)

    def embed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """(rows, d) float32 unit-length embeddings of each modality, seen alone, in one pass; rows may differ."""
        embeddings: dict[str, Tensor] = self.model.embed(inputs)
        return embeddings

    def loss(self, batch: Batch) -> Tensor:
        """Aligning contrast of the batch's items, with one caption each; other captions of an item are negatives."""
        embeddings = self.embed(self.inputs(batch))
        return aligning_contrast(embeddings[self.query], embeddings[self.item], self.model.heads.scale, self.keys)

    def make_metrics(self) -> MetricCollection:
        """Recall both ways over the whole gallery."""
        return MetricCollection([CrossModalRecall(self.item, self.query, ties=self.ties)])

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Embed a batch: {"embeddings": {modality: (rows, d)}}."""
        return {"embeddings": self.embed(self.inputs(batch))}

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Add both sides to the gallery."""
        ids = caption_ids(batch.targets["answer"]).to(self.device)
        query_ids = ids
        if (rows := _rows(batch)) is not None:
            query_ids = ids.repeat_interleave(torch.tensor(rows, device=self.device))
        embeddings = outputs["embeddings"]
        metrics.update(embeddings[self.item], embeddings[self.query], ids, query_ids)

    def score(self, values: Mapping[str, Tensor]) -> Tensor:
        """Mean of R@1 both ways."""
        return (values[f"{self.item}_to_{self.query}/R@1"] + values[f"{self.query}_to_{self.item}/R@1"]) / 2

    def answers(self, outputs: dict[str, Any], batch: Batch) -> list[dict[str, Tensor]]:
        """For each sample its embeddings by modality: (d,), of several captions (captions, d)."""
        items, queries = (outputs["embeddings"][name].cpu() for name in self.modalities)
        rows = _rows(batch)
        of_each = list(queries) if rows is None else queries.split(rows)
        return [{self.item: one, self.query: other} for one, other in zip(items, of_each, strict=True)]

    def predict(self, *items: Sequence[Any], batch_size: int = 32, **named: Sequence[Any]) -> Tensor:
        """Cosines of every item with every query.

        Args:
            *items: a list of items, and one of queries: paths, objects in memory, or texts. Their lengths may differ.
            batch_size: items that run through the model together.
            **named: both by modality, such as ``image=[…], text=[…]``.

        Returns:
            (items, queries) float32.

        Raises:
            ValueError: naming an item that cannot be read.
        """
        given = self.given(items, named)
        with self.answering():
            rows, columns = (
                torch.cat(
                    [
                        self.embed({name: self.read(name, part, first)})[name].cpu()
                        for first, [part] in batched(batch_size, **{name: given[name]})
                    ]
                )
                for name in self.modalities
            )
        return rows @ columns.T


def _rows(batch: Batch) -> list[int] | None:
    """Captions of each sample, where there are several."""
    captions = batch.targets.get("captions")
    return None if captions is None else [len(some) for some in captions]
