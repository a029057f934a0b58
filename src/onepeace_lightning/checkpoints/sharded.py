"""Checkpoints of sharded training: a folder with a file per rank (torch.distributed.checkpoint) and ``meta.pt``.

The folder is a path or a URL that fsspec knows (``s3://…``), written by torch.distributed.checkpoint's own fsspec
storage. ``.metadata`` comes last and makes it complete. It says which file holds which part of which tensor,
and is a pickle, so it is read with a list of what may be in it; the tensors themselves are read as torch.load does with
``weights_only=True``.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from onepeace_lightning.checkpoints.shard_files import METADATA_FILE, REST_FILE, exists, is_url, join, open_in

_ALLOWED = {
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        name for name, value in vars(dcp_metadata).items() if getattr(value, "__module__", "") == dcp_metadata.__name__
    },
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
}


def writer(folder: str | Path) -> dcp.FileSystemWriter:
    """What torch.distributed.checkpoint writes to a path or a URL with."""
    return FsspecWriter(str(folder)) if is_url(folder) else dcp.FileSystemWriter(folder)


def load_into(state: dict[str, Any], folder: str | Path, *, no_dist: bool = False) -> None:
    """Fill tensors, sharded or whole, from a sharded checkpoint; each process reads what it holds.

    Args:
        state: nested dictionaries of tensors as they were saved; filled in place.
        folder: a path or URL.
        no_dist: read as one process alone.

    Raises:
        ValueError: files are missing or damaged.
    """
    reader = _UrlReader(str(folder)) if is_url(folder) else _Reader(Path(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be
            dcp.load(state, storage_reader=reader, no_dist=no_dist)
    except CheckpointException as error:
        reason = "; ".join(str(wrapped[0]) for wrapped in error.failures.values())
        raise ValueError(f"{folder} cannot be read: files are missing or damaged ({reason})") from error


def saved_shapes(metadata: Metadata, part: str) -> dict[str, TensorStorageMetadata]:
    """Name to size and type of the tensors of one part of a checkpoint, such as ``state_dict``."""
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): entry
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def read_rest(folder: str | Path) -> dict[str, Any]:
    """All of a sharded checkpoint that is not a model's or an optimizer's state.

    Raises:
        ValueError: it is damaged, or holds anything but tensors and plain containers.
    """
    try:
        with open_in(folder, REST_FILE) as stream:
            rest: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{join(folder, REST_FILE)} is refused: it is damaged or holds code ({error})") from error
    return rest


def read_metadata(folder: str | Path) -> Metadata:
    """Read where each tensor is.

    Raises:
        ValueError: the folder is incomplete, or its metadata hold more than that.
    """
    for name in (METADATA_FILE, REST_FILE):
        if not exists(folder, name):
            raise ValueError(f"{folder} has no {name}: this sharded checkpoint is incomplete; take another one")
    try:
        with open_in(folder, METADATA_FILE) as stream:
            metadata = _Unpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{join(folder, METADATA_FILE)} is refused: it is damaged or holds code ({error})") from error
    if not isinstance(metadata, Metadata):
        raise ValueError(
            f"{join(folder, METADATA_FILE)} holds a {type(metadata).__name__}, not a checkpoint's metadata"
        )
    return metadata


def read_sharded(folder: str | Path) -> dict[str, Any]:
    """A sharded checkpoint as one of a single process would be, in memory, without the optimizer's state.

    Returns:
        ``{"state_dict": {name: tensor}, …}``.

    Raises:
        ValueError: the folder is incomplete or damaged, or holds anything but tensors and plain containers.
    """
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved_shapes(read_metadata(folder), "state_dict").items()
    }
    load_into({"state_dict": state}, folder, no_dist=True)
    return {"state_dict": state, **read_rest(folder)}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


class _SafeMetadata:
    """Metadata read by the list of what may be in them."""

    path: Any
    load_id: Any

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_metadata(self.path)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def shard_like(whole: Tensor, example: Tensor) -> Tensor:
    """What this rank holds of a tensor that every rank has: all of it, or its shard if the example is sharded.

    Args:
        whole: any shape.
        example: of the same global shape.
    """
    if not isinstance(example, DTensor):
        return whole
    whole = whole.to(example.device)
    return distribute_tensor(whole, example.device_mesh, example.placements, src_data_rank=None)


class _Reader(_SafeMetadata, dcp.FileSystemReader):
    """PyTorch's for local folders."""


class _UrlReader(_SafeMetadata, FsspecReader):
    """PyTorch's for URLs."""
