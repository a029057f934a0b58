"""What a run was made of, kept in its checkpoints: data, scores, the command."""

import re
from importlib.metadata import version
from typing import Any

import lightning as L

from onepeace_lightning.checkpoints.card import RECORD
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.tars import ShardError
from onepeace_lightning.training.parallelize import class_name
from onepeace_lightning.training.results import in_percent, scores_of

_USER = re.compile(r"(?<=://)[^/\s@]+@")


class RunRecord(L.Callback):
    """Puts into each checkpoint what its model card says of the run (``checkpoints.card``).

    The record holds the data of each stream (type, samples, source, licence, fingerprint), the scores of the last
    validation with the step that they are of, the steps trained, the command, the versions, and what the model started
    from, with that one's record.

    Args:
        command: the command line of the run; "" where there was none. Names and passwords in URLs are left out.
    """

    def __init__(self, command: str = "") -> None:
        self.command = _USER.sub("", command)
        self._scores: dict[str, float] = {}
        self._measured_at = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scores, with the step that they are of."""
        if not trainer.sanity_checking:
            self._scores = scores_of(trainer.callback_metrics, percent=in_percent(pl_module))
            self._measured_at = trainer.global_step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        data: Any = getattr(trainer, "datamodule", None)
        checkpoint[RECORD] = {
            "task": class_name(pl_module),
            "steps": trainer.global_step,
            "data": streams(data) if isinstance(data, DataModule) else {},
            "scores": self._scores,
            "percent": in_percent(pl_module),
            "measured_at": self._measured_at,
            "command": self.command,
            "start": getattr(pl_module, "started_from", None),
            "versions": {name: version(name) for name in ("onepeace-lightning", "torch", "lightning")},
        }

    def state_dict(self) -> dict[str, Any]:
        """The last scores: a run that goes on may save before it validates again."""
        return {"scores": self._scores, "measured_at": self._measured_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        self._scores, self._measured_at = state_dict["scores"], state_dict["measured_at"]


def streams(data: DataModule) -> dict[str, dict[str, Any]]:
    """Every configured stream whose data are there, by name: what it holds, whence it is, under which terms."""
    found = {}
    for split, configured in (("train", data.train), ("val", data.val), ("test", data.test)):
        for name, stream in configured.items():
            for number, path in enumerate(stream.paths, 1):
                try:
                    manifest = read_manifest(path, data.storage)
                except (OSError, ShardError):  # of a stage that is not run; its set-up would have said so
                    continue
                source = f", source {number}" if len(stream.paths) > 1 else ""
                found[(split if name == split else f"{split}.{name}") + source] = {
                    "data_type": manifest.data_type,
                    "samples": manifest.samples,
                    "source": manifest.source,
                    "license": manifest.license,
                    "fingerprint": manifest.fingerprint(),
                    "chance": manifest.about.get("chance"),
                }
    return found
