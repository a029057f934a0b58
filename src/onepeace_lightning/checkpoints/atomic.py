"""Checkpoints that are either whole or not there: written beside the one they replace, which stays until they are."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


def partial_of(path: Path) -> Path:
    """Where a checkpoint is written before it takes its name; no search for checkpoints finds it there."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that a full disk or a killed process leaves as they were before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write to a hidden file in the same folder, then rename.

        Raises:
            OSError: it could not be written.
        """
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
