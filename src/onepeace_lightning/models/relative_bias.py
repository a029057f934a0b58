"""Relative position biases: which row of a modality's table belongs to query i and key j.

Every table has three last rows for pairs with CLS (position 0): the query is CLS, the key is, both are.
P = positions, CLS included.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

MAX_POSITIONS = 1024
"""Further positions would run into the rows for CLS."""


def sequence_rows(buckets: int) -> int:
    """Rows of the table of a one-dimensional modality (text, audio)."""
    return 2 * buckets - 1 + 3


def grid_rows(side: int) -> int:
    """Rows of the table of a ``side`` × ``side`` grid."""
    return (2 * side - 1) ** 2 + 3


@lru_cache(maxsize=32)
def sequence_buckets(positions: int, buckets: int, device: torch.device) -> Tensor:
    """(P, P) rows for text and audio: exact distances up to half the buckets, logarithmic ones beyond.

    Raises:
        ValueError: for more than 1024 positions.
    """
    if positions > MAX_POSITIONS:
        raise ValueError(f"{positions} positions (with CLS); at most {MAX_POSITIONS} are possible: shorten the input")
    with torch.inference_mode(False):  # what is cached in validation serves training too
        index = torch.arange(positions, device=device)
        distance = index[:, None] - index[None, :]
        middle = buckets // 2
        clipped = torch.where(distance.abs() < middle, middle - 1, distance.abs()).double()
        far = middle + torch.ceil(torch.log(clipped / middle) / math.log((MAX_POSITIONS - 1) / middle) * (middle - 1))
        rows = torch.where(clipped <= middle, distance, distance.sign() * far.long()) + buckets - 1
        return _with_cls(rows, 2 * buckets - 1)


@lru_cache(maxsize=32)
def grid_buckets(side: int, device: torch.device) -> Tensor:
    """(P, P) rows for a ``side`` × ``side`` grid of patches behind CLS: one per two-dimensional offset."""
    with torch.inference_mode(False):
        y, x = torch.meshgrid(torch.arange(side, device=device), torch.arange(side, device=device), indexing="ij")
        y, x = y.flatten(), x.flatten()
        span = 2 * side - 1
        offsets = (y[:, None] - y[None, :] + side - 1) * span + (x[:, None] - x[None, :] + side - 1)
        rows = torch.nn.functional.pad(offsets, (1, 0, 1, 0))
        return _with_cls(rows, span**2)


def _with_cls(rows_PP: Tensor, first: int) -> Tensor:
    rows_PP[0, :] = first
    rows_PP[:, 0] = first + 1
    rows_PP[0, 0] = first + 2
    return rows_PP
