"""A run that goes on is the run that it was, or says what has changed."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.training.optimizer import Optimization

_KEY = "going_on"
_RESTORED = ("lr", "layer_decay", "weight_decay", "betas", "eps")
"""What of ``Optimization`` the optimizer's saved state holds, so that other values would have no effect."""


class SameRun(L.Callback):
    """Keeps in checkpoints what a run cannot change on its way, and refuses to go on with something else.

    The order of streams by name has no meaning: they get the order that they had.
    """

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the seed, the streams and the optimizer's settings."""
        checkpoint[_KEY] = _described(trainer, pl_module)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare them where training goes on.

        Raises:
            ValueError: what has changed, and the two ways on.
        """
        if trainer.state.fn != TrainerFn.FITTING or _KEY not in checkpoint:
            return
        then, now = checkpoint[_KEY], _described(trainer, pl_module)
        if changes := _changes(then, now):
            raise ValueError(
                f"the run cannot go on from {trainer.ckpt_path}: "
                + "; ".join(changes)
                + ". Leave that as it was, or start another run from the weights alone: pretraining with --run NEW"
                f" --model.init_from {trainer.ckpt_path}, a task with --run NEW --model.backbone {trainer.ckpt_path},"
                " both without --ckpt_path"
            )
        data: Any = getattr(trainer, "datamodule", None)
        if isinstance(data, DataModule):
            data.train = {name: data.train[name] for name in then["streams"]}


def _described(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    data: Any = getattr(trainer, "datamodule", None)
    found: dict[str, Any] = {}
    if isinstance(data, DataModule):
        found |= {"seed": data.seed, "streams": list(data.train)}
    if isinstance(optimization := getattr(module, "optimization", None), Optimization):
        settings = asdict(optimization)
        found["optimization"] = {
            name: list(value) if isinstance(value := settings[name], tuple) else value for name in _RESTORED
        }
    return found


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changes = []
    if "seed" in then and "seed" in now and then["seed"] != now["seed"]:
        changes.append(f"--data.seed is {now['seed']}, the run's is {then['seed']}")
    before, here = then.get("streams", []), now.get("streams", [])
    if lacking := [name for name in before if name not in here]:
        changes.append(f"the training stream{_s(lacking)} {', '.join(lacking)} {_are(lacking)} missing")
    if added := [name for name in here if name not in before]:
        changes.append(f"the training stream{_s(added)} {', '.join(added)} {_are(added)} new")
    old, new = then.get("optimization", {}), now.get("optimization", {})
    changes += [
        f"--model.optimization.{name} is {new[name]}, the run's is {old[name]}, and its optimizer keeps it"
        for name in old
        if name in new and old[name] != new[name]
    ]
    return changes


def _s(names: list[str]) -> str:
    return "s" if len(names) > 1 else ""


def _are(names: list[str]) -> str:
    return "are" if len(names) > 1 else "is"
