"""A run's folder: everything that a run writes lies in it, and no other run writes there."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

from onepeace_lightning.checkpoints.shard_files import is_url
from onepeace_lightning.reports.answers import AnswersReport
from onepeace_lightning.reports.base import PAGE
from onepeace_lightning.reports.classification import ClassificationReport
from onepeace_lightning.reports.retrieval import RetrievalReport
from onepeace_lightning.tasks.labels import LabelTask
from onepeace_lightning.tasks.pretrain import PretrainTask
from onepeace_lightning.tasks.retrieval import RetrievalTask
from onepeace_lightning.tasks.training import TrainedModule
from onepeace_lightning.tasks.zero_shot import ZeroShotClassificationTask
from onepeace_lightning.training.checkpoints import LastCheckpoint
from onepeace_lightning.training.results import ResultsTable
from onepeace_lightning.training.resume import SameRun
from onepeace_lightning.training.throughput import Throughput

RUNS = Path("runs")
"""Where runs are that are given by name alone."""

CONFIG_FILE = "config.yaml"
_CHECKPOINTS = "checkpoints"
_TRACES = (CONFIG_FILE, _CHECKPOINTS, "results.json", PAGE)


def run_folder(given: str) -> Path:
    """The folder of a run: ``mine`` is ``runs/mine``; anything with a slash is the folder itself.

    Raises:
        ValueError: it is a URL.
    """
    if "://" in given:
        raise ValueError(f"--run is {given}; a run's folder is local, copy it from there when it is done")
    return Path(given) if "/" in given else RUNS / given


def refuse_used(folder: Path) -> None:
    """Refuse a folder in which another run has begun.

    Raises:
        ValueError: with the two ways on.
    """
    if any((folder / trace).exists() for trace in _TRACES):
        raise ValueError(
            f"{folder} holds a run already. Go on with it: --ckpt_path last. Or give the new one another name:"
            f" --run {folder.name}-2"
        )


def checkpoint_in(folder: Path, name: str) -> str:
    """The file of a checkpoint that is called ``best`` or ``last``; any other path is given back.

    Raises:
        FileNotFoundError: the run has no such checkpoint.
    """
    if name not in ("best", "last"):
        return name
    path = folder / _CHECKPOINTS / f"{name}.ckpt"
    if not path.exists():
        found = sorted(file.name for file in path.parent.glob("*.ckpt"))
        has = f"it has {', '.join(found)}" if found else "it has none"
        raise FileNotFoundError(f"--ckpt_path {name}: there is no {path}; {has}. Say which run with --run")
    return str(path)


def last_checkpoint(trainer: L.Trainer) -> str | None:
    """The newest checkpoint called ``last`` of those that a trainer's callbacks have written; None where there is none.

    A link is followed: on another machine it may not have arrived yet, and lead to an older one.
    """
    written = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    paths = {path for callback in written for path in callback._find_last_checkpoints(trainer)}
    newest = max(paths, key=lambda path: get_filesystem(path).modified(path), default=None)
    return newest if newest is None or is_url(newest) else os.path.realpath(newest)


def run_of(checkpoint: str) -> Path | None:
    """The folder of the run that wrote a checkpoint, where it lies in one."""
    parent = Path(checkpoint).parent
    return parent.parent if parent.name == _CHECKPOINTS else None


def callbacks(
    folder: Path, task: L.LightningModule, data: Any, given: Sequence[L.Callback], *, training: bool, logged: bool
) -> list[L.Callback]:
    """What every run has besides the callbacks that its configuration names; of a kind that it names it has no other.

    Checkpoints ``best`` (where the task has a score to choose by) and ``last``, learning rates, throughput, the table
    of results and a report.

    Args:
        folder: the run's.
        task: what is trained or measured.
        data: its data module.
        given: the configuration's callbacks; checkpoints of theirs without a folder go into the run's.
        training: whether the run trains.
        logged: whether it has a logger.
    """
    made: list[L.Callback] = [ResultsTable(), *_reports(task)]
    if training:
        made += [
            SameRun(),
            Throughput(),
            *([LearningRateMonitor()] if logged else []),
            *_checkpoints(folder, task, data),
        ]
    kinds = tuple(type(callback) for callback in given)
    for callback in given:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str((folder / _CHECKPOINTS).absolute())
    if any(isinstance(callback, LastCheckpoint) for callback in given):
        kinds += (LastCheckpoint,)
    return [callback for callback in made if not isinstance(callback, kinds)]


def _reports(task: L.LightningModule) -> list[L.Callback]:
    if isinstance(task, (PretrainTask, RetrievalTask)):
        return [RetrievalReport()]
    if isinstance(task, (LabelTask, ZeroShotClassificationTask)):
        return [ClassificationReport()]
    return [AnswersReport()] if callable(getattr(task, "draw", None)) else []


def _checkpoints(folder: Path, task: L.LightningModule, data: Any) -> list[L.Callback]:
    where = (folder / _CHECKPOINTS).absolute()
    monitor = task.monitor(data) if isinstance(task, TrainedModule) else None
    # One of its own for the last: one with a monitor writes only when the score has improved.
    last = LastCheckpoint(where)
    if monitor is None:
        return [last]
    best = ModelCheckpoint(where, "best", monitor, mode="max", enable_version_counter=False)
    return [best, last]
