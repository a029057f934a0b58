"""Checkpoints of sharded training: a folder with a file per rank (torch.distributed.checkpoint) and ``meta.pt``.

``.metadata`` says which file holds which part of which tensor. It is a pickle, so it is read with a list of what may be
in it; the tensors themselves are read as torch.load does with ``weights_only=True``.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

METADATA_FILE = ".metadata"
REST_FILE = "meta.pt"
"""All that is not a model's or an optimizer's state."""

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


def is_sharded(path: str | Path) -> bool:
    """Whether a path is the folder of a sharded checkpoint, complete or not."""
    path = Path(path)
    return path.is_dir() and ((path / METADATA_FILE).is_file() or any(path.glob("*.distcp")))


def read_metadata(folder: str | Path) -> Metadata:
    """Read where each tensor is.

    Raises:
        ValueError: the folder is incomplete, or its metadata hold more than that.
    """
    folder = Path(folder)
    for name in (METADATA_FILE, REST_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: this sharded checkpoint is incomplete; take another one")
    try:
        with (folder / METADATA_FILE).open("rb") as stream:
            metadata = _Unpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / METADATA_FILE} is refused: it is damaged or holds code ({error})") from error
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{folder / METADATA_FILE} holds a {type(metadata).__name__}, not a checkpoint's metadata")
    return metadata


def read_sharded(folder: str | Path) -> dict[str, Any]:
    """A sharded checkpoint as one of a single process would be, in memory, without the optimizer's state.

    Returns:
        ``{"state_dict": {name: tensor}, …}``.

    Raises:
        ValueError: the folder is incomplete or damaged, or holds anything but tensors and plain containers.
    """
    folder = Path(folder)
    prefix = "state_dict."
    state = {
        name.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in read_metadata(folder).state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be
            dcp.load({"state_dict": state}, storage_reader=_Reader(folder), no_dist=True)
        rest = torch.load(folder / REST_FILE, map_location="cpu", weights_only=True)
    except CheckpointException as error:
        reason = "; ".join(str(wrapped[0]) for wrapped in error.failures.values())
        raise ValueError(f"{folder} cannot be read: files are missing or damaged ({reason})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{folder / REST_FILE} is refused: it is damaged or holds code ({error})") from error
    return {"state_dict": state, **rest}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """PyTorch's, with metadata read by the list of what may be in them."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
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
