"""What training has taken from its data so far, in the logger."""

from collections.abc import Mapping
from typing import Any

import lightning as L

from onepeace_lightning.data.bad_samples import KINDS
from onepeace_lightning.data.dataloader import Grouped, TrainLoader


def train_loaders(trainer: L.Trainer) -> dict[str, TrainLoader]:
    """Stream to the loader of its training data."""
    given: Any = trainer.train_dataloader
    loaders = given if isinstance(given, Mapping) else {"train": given}
    inner = {name: loader.loader if isinstance(loader, Grouped) else loader for name, loader in loaders.items()}
    return {name: loader for name, loader in inner.items() if isinstance(loader, TrainLoader)}


class DataCounts(L.Callback):
    """Logs how many samples of each stream were seen, and how many could not be used, over all ranks.

    ``data/<stream>/seen``, ``…/bad``, ``…/empty_captions``, ``…/lost`` (in shards that could not be read) and
    ``…/lost_shards``, since the run began, parts before a resume included; with the source's name behind the stream's
    where a stream mixes several. They are those of the last time at which all ranks added them up.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counts."""
        for stream, loader in train_loaders(trainer).items():
            for name, counts in zip(loader.names, loader.counts.tolist(), strict=True):
                prefix = f"data/{stream}/{name}" if len(loader.names) > 1 else f"data/{stream}"
                values = {f"{prefix}/{kind}": float(count) for kind, count in zip(KINDS, counts, strict=True)}
                pl_module.log_dict(values, batch_size=1)
