"""Arrays of samples: masks over their tokens, and what joins them to a batch."""

import io
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate


def hide(tokens: int, ratio: float, rng: np.random.Generator, first: np.ndarray | None = None) -> np.ndarray:
    """(1 + tokens,) bool that hides ``int(ratio * tokens)`` tokens at random and never CLS.

    Args:
        tokens: how many there are.
        ratio: fraction to hide.
        rng: the only source of randomness.
        first: (tokens,) bool, those that are taken first; others once these are used up.

    Raises:
        ValueError: if there is no token.
    """
    if tokens < 1:
        raise ValueError(f"there are {tokens} tokens; expected at least 1")
    order = rng.permutation(tokens)
    preferred = np.ones(tokens, dtype=bool) if first is None else first
    order = order[np.argsort(~preferred[order], kind="stable")]
    mask = np.zeros(1 + tokens, dtype=bool)
    mask[1 + order[: int(ratio * tokens)]] = True
    return mask


def span_mask(frames: int, rng: np.random.Generator, ratio: float, span: int = 5, overdraw: float = 0.1) -> np.ndarray:
    """(1 + F,) bool that hides ``int(ratio * F)`` of F frames, mostly in spans, and never CLS.

    Spans around centres drawn with replacement come first; single frames are then hidden or shown at random until the
    count is exact.

    Args:
        frames: F.
        rng: the only source of randomness.
        ratio: fraction of the frames.
        span: frames around each centre; odd.
        overdraw: added to the ratio when centres are drawn, because spans overlap.

    Raises:
        ValueError: if there are no frames.
    """
    if frames < 1:
        raise ValueError(f"there are {frames} frames; expected at least 1")
    centres = rng.integers(frames, size=int(frames * (ratio + overdraw) / span))
    around = np.arange(span) - span // 2
    mask = np.zeros(frames, dtype=bool)
    mask[np.clip(centres[:, None] + around, 0, frames - 1)] = True

    excess = int(mask.sum()) - int(ratio * frames)
    wrong = rng.choice(np.flatnonzero(mask == (excess > 0)), abs(excess), replace=False)
    mask[wrong] = excess < 0
    return np.concatenate([[False], mask])


def stack(arrays: Sequence[Tensor]) -> Tensor:
    """Join tensors of one shape; in a data worker, in memory that is shared already."""
    return default_collate(list(arrays))


def pad(rows: Sequence[Tensor], dim: int = 0) -> tuple[Tensor, list[int]]:
    """Join tensors that differ in one dimension, filled up with zeros, and give their lengths."""
    lengths = [row.shape[dim] for row in rows]
    longest = max(lengths)
    filled = []
    for row, length in zip(rows, lengths, strict=True):
        missing = [0, 0] * (row.dim() - 1 - dim) + [0, longest - length]
        filled.append(F.pad(row, missing) if length < longest else row)
    return stack(filled), lengths


def read_npy(data: bytes) -> np.ndarray:
    """The array of an .npy file's bytes, nothing in it executed.

    Raises:
        ValueError: the bytes are no such file, hold objects, or fewer or more values than they state.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an .npy file of version {version}; save the array again with numpy.save")
    shape, by_columns, kind = readers[version](stream)
    if kind.kind not in "biuf":
        raise ValueError(f"an .npy file of {kind}; give numbers")
    values = np.frombuffer(data, kind, offset=stream.tell())
    if len(values) != np.prod(shape, dtype=float):
        raise ValueError(f"an .npy file that states {shape} values and holds {len(values)}: it is cut off")
    return values.reshape(shape, order="F" if by_columns else "C")
