"""Nearest-neighbour and linear-probe scores of labelled data, measured while a model pretrains."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.metrics.probes import chance_score, class_score, knn_scores, linear_scores


class OnlineProbe(L.Callback):
    """Says at each validation what the embeddings know of classes that the model was never told.

    Labelled samples of any modality, or of several at once (``image-audio-label``), are embedded as they are evaluated;
    embeddings of several modalities stand side by side. Logged in percent are ``val/NAME/knn`` (a vote of the nearest
    training samples), ``val/NAME/linear`` (a logistic regression on the embeddings) and ``val/NAME/chance`` (the
    commonest class): accuracy or, where samples have several classes, mean average precision. Every rank embeds its
    part; nothing of it trains the model.

    Args:
        train: folder of labelled shards that neighbours and the classifier come from.
        val: folder of labelled shards that are measured.
        name: in the logged names; None: the data type, such as ``image-label``.
        batch_size: samples on each device.
        k: neighbours.
        every: measure at each so many-th validation, the first one included.
    """

    def __init__(
        self, train: str, val: str, name: str | None = None, batch_size: int = 64, k: int = 20, every: int = 1
    ) -> None:
        if min(batch_size, k, every) < 1:
            raise ValueError(f"OnlineProbe: batch_size is {batch_size}, k {k} and every {every}; give 1 or more")
        self.streams = {"train": StreamConfig(train, batch_size), "val": StreamConfig(val, batch_size)}
        self.name, self.k, self.every = name, k, every
        self._validations = 0

    @property
    def state_key(self) -> str:
        """Several probes are told apart by their data."""
        return self._generate_state_key(**{name: stream.path for name, stream in self.streams.items()})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the labelled data.

        Raises:
            ValueError: the model does not embed, or the data have no labels, or lack a modality of the model.
        """
        if not callable(getattr(pl_module, "embed", None)):
            raise ValueError(f"OnlineProbe measures what embeds; {type(pl_module).__name__} does not")
        own: Any = getattr(trainer, "datamodule", None)
        given = {} if own is None else {"preprocessing": own.preprocessing.to_dict(), "storage": own.storage}
        self.data = DataModule(val=self.streams, num_workers=0 if own is None else own.num_workers, **given)
        self.data.trainer = trainer
        kinds = {name: self.data.data_type(stream) for name, stream in self.streams.items()}
        config: Any = getattr(pl_module, "config", None)
        for name, kind in kinds.items():
            if kind.answer != "label" or kind != kinds["train"]:
                raise ValueError(
                    f"OnlineProbe: {name}={self.streams[name].path} holds {str(kind)!r}; give two folders of one type"
                    " with labels, such as image-label"
                )
            if config is not None and (lacking := set(kind.modalities) - set(config.adapters)):
                raise ValueError(f"OnlineProbe: the model has no {', '.join(sorted(lacking))}, which {name} needs")
        self.data.setup("validate")
        names = self.data.names("classes")
        if not names:
            raise ValueError(f"OnlineProbe: the manifest of {self.streams['train'].path} lists no classes")
        self.classes = {label: index for index, label in enumerate(names)}
        self.title = self.name or str(kinds["train"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Embed, measure and log."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if (self._validations - 1) % self.every:
            return
        loaders = self.data.val_dataloader()
        (x_train, y_train), (x_val, y_val) = (self._embed(loaders[name], pl_module) for name in ("train", "val"))
        several = bool((torch.cat([y_train, y_val]).sum(1) != 1).any())
        scores = {
            "knn": knn_scores(x_train, y_train, x_val, k=self.k),
            "linear": linear_scores(x_train, y_train, x_val, several=several),
        }
        values = {name: class_score(part, y_val, several=several) for name, part in scores.items()}
        values["chance"] = chance_score(y_train, y_val, several=several)
        pl_module.log_dict({f"val/{self.title}/{name}": value for name, value in values.items()}, sync_dist=True)

    def _embed(self, loader: Any, pl_module: L.LightningModule) -> tuple[Tensor, Tensor]:
        """(N, d) embeddings of unit length and (N, C) classes of all ranks' samples."""
        features, targets = [], []
        with torch.no_grad():
            for batch in loader:
                # not its method embed: weights of a sharded model are whole only within forward
                embeddings = pl_module(batch.to(pl_module.device))["embeddings"]
                if batch.filler:  # another rank's: it only runs through the model
                    continue
                features.append(torch.cat(list(embeddings.values()), 1).float() / len(embeddings) ** 0.5)
                targets.append(self._targets(batch.targets["labels"]))
        width = pl_module.trainer.strategy.reduce(
            torch.tensor(features[0].shape[1] if features else 0, device=pl_module.device), reduce_op="max"
        )
        whole = torch.cat(features) if features else torch.empty(0, int(width), device=pl_module.device)
        known = torch.cat(targets) if targets else torch.empty(0, len(self.classes), dtype=torch.bool)
        parts = (whole, known.to(pl_module.device).float())
        if pl_module.trainer.world_size == 1:
            return parts
        gathered = (torch.cat(gather_all_tensors(part)) for part in parts)
        return next(gathered), next(gathered)

    def _targets(self, labels: list[list[str]]) -> Tensor:
        rows = torch.zeros(len(labels), len(self.classes), dtype=torch.bool)
        for row, names in enumerate(labels):
            for name in names:
                if name not in self.classes:
                    raise ValueError(f"OnlineProbe: the data have a class {name!r} that their manifest does not list")
                rows[row, self.classes[name]] = True
        return rows
