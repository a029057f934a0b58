"""Losses of the rows of a matrix of logits that is too large to keep."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS = 2**28
"""What is kept for the backward pass at most, 1 GiB in float32. More are computed part by part, and once again then:
they grow with the square of the batch."""


def of_each_row(part: Callable[..., Tensor], columns: int, *rows: Tensor) -> Tensor:
    """(N,) what ``part`` gives for each of N rows.

    Args:
        part: takes some rows of each of ``rows`` and returns a number for each, with ``columns`` logits on the way.
        columns: logits of a row.
        rows: tensors of equal length N.
    """
    if len(rows[0]) * columns <= LOGITS:
        return part(*rows)
    pieces = zip(*(tensor.split(max(1, LOGITS // columns)) for tensor in rows), strict=True)
    return torch.cat([checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])
