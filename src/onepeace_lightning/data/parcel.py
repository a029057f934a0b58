"""How a batch gets from a data worker to the training process."""

import io
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

SMALL = 1 << 16
"""Bytes up to which a tensor goes through the pipe, as its batch does; a larger one goes through shared memory."""


class Parcel:
    """Wraps a batch for the way between processes: what arrives is the batch itself.

    PyTorch hands over every tensor through shared memory of its own, which costs a connection between the processes,
    a file and pages to make and to drop. Masks, lengths and token ids are small, and most of a batch's tensors.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        stream = io.BytesIO()
        _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(self.batch)
        return pickle.loads, (stream.getvalue(),)


class _Pickler(ForkingPickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.nbytes <= SMALL and value.dtype != torch.bfloat16:  # which numpy lacks
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented
