"""Loggers by one word, ``--trainer.logger wandb``; what they write lies in the run's folder."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from onepeace_lightning.training.tensorboard import ChangingScalars

PROJECT = "onepeace_lightning"
"""What runs are filed under where a service asks: wandb's project, MLflow's experiment."""

_WANDB_RUN = "wandb_run"
"""File in the run's folder that keeps the run's id, so that a run that goes on is one run there too."""


def logger(word: str, folder: Path) -> Logger:
    """A logger of a run.

    Args:
        word: a key of ``LOGGERS``.
        folder: the run's.

    Raises:
        ImportError: its package is not installed.
    """
    try:
        return LOGGERS[word](folder)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"--trainer.logger {word} needs a package that is not installed ({error}); pip install"
            " 'onepeace-lightning[loggers]'"
        ) from error


def _tensorboard(folder: Path) -> Logger:
    return ChangingScalars(save_dir=folder, name="logs", version="", default_hp_metric=False)


def _csv(folder: Path) -> Logger:
    # A version of its own each time: it would replace the metrics of the run that it goes on with.
    return CSVLogger(save_dir=folder, name="logs")


def _wandb(folder: Path) -> Logger:
    kept = folder / _WANDB_RUN
    run = kept.read_text().strip() if kept.is_file() else uuid.uuid4().hex[:8]
    if not kept.is_file() and os.environ.get("LOCAL_RANK", "0") == "0":
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(run + "\n")
    return WandbLogger(project=PROJECT, name=folder.name, save_dir=folder, id=run, resume="allow")


def _mlflow(folder: Path) -> Logger:
    about: dict[str, Any] = {"experiment_name": PROJECT, "run_name": folder.name}
    if "MLFLOW_TRACKING_URI" in os.environ:
        return MLFlowLogger(**about, tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    folder.mkdir(parents=True, exist_ok=True)
    own = folder.absolute()
    return MLFlowLogger(**about, tracking_uri=f"sqlite:///{own / 'mlflow.db'}", artifact_location=str(own / "mlflow"))


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
"""By word. wandb and MLflow are told where to send by their own settings: ``WANDB_MODE=offline`` keeps all in the run's
folder, ``MLFLOW_TRACKING_URI`` names a server, without which MLflow writes ``mlflow.db`` into the run's folder."""


def log_configuration(trainer: Trainer, configuration: str) -> None:
    """Give the run's configuration to its loggers.

    Args:
        trainer: whose loggers.
        configuration: as JSON.
    """
    content: dict[str, Any] = json.loads(configuration)
    for one in trainer.loggers:
        one.log_hyperparams(content)
