"""When a long run writes checkpoints, how many it keeps, and which one is the last."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from onepeace_lightning.checkpoints.atomic import AtomicCheckpointIO, Background, link
from onepeace_lightning.checkpoints.shard_files import METADATA_FILE, is_sharded, is_url
from onepeace_lightning.training.strategy import FullyShardedStrategy

_NAME = re.compile(r"step=(\d+)\.ckpt")


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after each validation, and at the end of the run where it ends between two of them.

    Args:
        dirpath: its folder; None: the run's.
        **options: see ``ModelCheckpoint``.
    """

    def __init__(self, dirpath: str | Path | None = None, **options: Any) -> None:
        super().__init__(dirpath=dirpath, **{"filename": "last", "enable_version_counter": False, **options})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what was learned since the last checkpoint."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, pl_module)


class RecentCheckpoints(LastCheckpoint):
    """Writes ``step=<n>.ckpt`` every so many steps or minutes and at the end, and keeps the newest few.

    ``last.ckpt`` is a link to the newest complete one, exchanged in one step; ``--ckpt_path last`` goes on from it. In
    a bucket, where there are no links, ``last`` means the newest complete one. Goes with any strategy: one process and
    ``ddp`` write files, ``fsdp`` folders of shards.

    Args:
        dirpath: a folder, or a URL such as ``s3://bucket/run/checkpoints``; None: the run's folder.
        every_n_train_steps: steps from one checkpoint to the next.
        every_minutes: instead of that, minutes by rank 0's clock.
        keep: how many complete ones stay.
        asynchronous: write while training goes on, from a copy in the host's memory (of a sharded model, of the shards:
            ``torch.distributed.checkpoint.async_save``). At most one is under way: the next waits for it. A failure
            ends the run at the next checkpoint or at the end.

    Raises:
        ValueError: none or both of the intervals are given, or a number is too small.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int | None = None,
        every_minutes: float | None = None,
        keep: int = 3,
        asynchronous: bool = False,
    ) -> None:
        given = [value for value in (every_n_train_steps, every_minutes) if value is not None]
        if len(given) != 1 or given[0] <= 0 or keep < 1:
            raise ValueError(
                f"every_n_train_steps is {every_n_train_steps}, every_minutes {every_minutes}, keep {keep}; give one of"
                " the intervals, above 0, and keep at least 1"
            )
        super().__init__(
            dirpath=dirpath and dirpath.removeprefix("file://"),  # which Lightning would take for a relative path
            filename="{step}",
            save_top_k=-1,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=None if every_minutes is None else timedelta(minutes=every_minutes),
        )
        self.keep = keep
        self.asynchronous = asynchronous
        self._background: Background | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose who writes."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.asynchronous:
            strategy = trainer.strategy
            if isinstance(strategy, FullyShardedStrategy):
                self._background = strategy.save_in_background()
                return
            if not isinstance(strategy.checkpoint_io, AtomicCheckpointIO):
                strategy.checkpoint_io = AtomicCheckpointIO()
            self._background = strategy.checkpoint_io.background = Background()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if not trainer.is_global_zero:
            return
        if self._background is None:
            self._tidy(filepath)
        else:  # after the checkpoint is complete, and not at all if it cannot be written
            self._background.submit(lambda: self._tidy(filepath))

    def _tidy(self, newest: str) -> None:
        """Let ``last`` mean the newest checkpoint, then remove the oldest beyond ``keep``."""
        if not is_url(newest):
            link(Path(newest), Path(newest).with_name("last.ckpt"))
        for path in recent(str(self.dirpath))[self.keep :]:
            files, plain = fsspec.url_to_fs(path)
            files.rm(plain, recursive=True)

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        if self.dirpath is None or not is_url(self.dirpath):
            return super()._find_last_checkpoints(trainer)
        for path in recent(str(self.dirpath)):
            if is_sharded(path):
                return {f"{path}/{METADATA_FILE}"}  # a folder in a bucket has no time, which Lightning asks for
            if fsspec.url_to_fs(path)[0].isfile(path):
                return {path}
        return set()


def recent(folder: str) -> list[str]:
    """Paths of the checkpoints ``step=<n>.ckpt`` in a folder or at a URL, newest step first."""
    files, plain = fsspec.url_to_fs(folder)
    if not files.isdir(plain):
        return []
    files.invalidate_cache(plain)
    names = [Path(path.rstrip("/")).name for path in files.ls(plain, detail=False)]
    steps = sorted(((int(match[1]), name) for name in names if (match := _NAME.fullmatch(name))), reverse=True)
    return [f"{folder.rstrip('/')}/{name}" for _, name in steps]
