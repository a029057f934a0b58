"""Checkpoints that are either whole or not there: written beside the one they replace, which stays until they are."""

import copy
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection


def partial_of(path: Path) -> Path:
    """Where a checkpoint is written before it takes its name; no search for checkpoints finds it there."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Give a complete checkpoint, a file or a folder, its name; whatever has that name is deleted afterwards.

    A file is replaced in one step. A folder cannot be: between two steps the older one is ``<stem>.old.ckpt``, where
    ``--ckpt_path last`` finds it too.
    """
    if partial.is_file() and not path.is_dir():
        os.replace(partial, path)
        return
    older, doomed = path.with_name(f"{path.stem}.old{path.suffix}"), path.with_name(f".{path.name}.doomed")
    if path.exists():
        remove(older)
        path.rename(older)
    partial.rename(path)
    if older.exists():
        # A folder that is being emptied looks new: it must not be found any more.
        remove(doomed)
        older.rename(doomed)
        remove(doomed)


def failure(path: Path, reason: object) -> OSError:
    """What to raise where a checkpoint could not be written."""
    return OSError(
        f"the checkpoint {path} could not be written ({reason}); the one written before it is unharmed: make room or"
        " mend the file system, then go on with --ckpt_path last"
    )


def link(target: Path, name: Path) -> None:
    """Make ``name`` a relative symbolic link to ``target``, in one step; what was called so before is deleted."""
    fresh, doomed = name.with_name(f".{name.name}.link"), name.with_name(f".{name.name}.doomed")
    remove(fresh)
    fresh.symlink_to(os.path.relpath(target, name.parent))
    if name.is_dir() and not name.is_symlink():  # a folder is not replaced by a link
        remove(doomed)
        name.rename(doomed)
    os.replace(fresh, name)
    remove(doomed)


class Background:
    """A thread that does tasks in order while training goes on; after a failed one it does no more."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._error: BaseException | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """Have a task done after those before it."""
        self._executor.submit(self._run, task)

    def wait(self) -> None:
        """Return when all tasks are done.

        Raises:
            Exception: what one of them raised; once.
        """
        self._executor.submit(lambda: None).result()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, task: Callable[[], None]) -> None:
        if self._error is None:
            try:
                task()
            except BaseException as error:  # raised where it is waited for
                self._error = error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that a full disk or a killed process leaves as they were before.

    Attributes:
        background: writes while training goes on, from a copy in memory; None writes at once.
    """

    background: Background | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write to a hidden file in the same folder, then rename.

        Raises:
            OSError: it, or in the background the one before it, could not be written.
        """
        if self.background is not None:
            self.background.wait()
            on_host = apply_to_collection(checkpoint, torch.Tensor, lambda tensor: tensor.detach().cpu())
            frozen = copy.deepcopy(on_host)  # weights and counters go on changing
            self.background.submit(lambda: self._write(frozen, path, storage_options))
        else:
            self._write(checkpoint, path, storage_options)

    def teardown(self) -> None:
        """Wait for what is being written."""
        if self.background is not None:
            self.background.wait()

    def _write(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any) -> None:
        if storage_options is not None or "://" in str(path):  # object stores show a file only when it is complete
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        partial = partial_of(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            publish(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            remove(partial)
            raise failure(path, error) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint file.

        Raises:
            ValueError: the path is a sharded checkpoint.
        """
        if Path(path).is_dir():
            raise ValueError(
                f"{path} is a sharded checkpoint (a folder): go on with --config configs/trainer/fsdp.yaml, on any"
                " number of devices, or make a model of it with `onepeace convert`"
            )
        return super().load_checkpoint(path, *args, **kwargs)
