"""What a user has in hand (paths, pictures, arrays, sounds, sentences) to what the adapters take.

S = side of the square picture, N = waveform samples, H and W = height and width, C = channels.
"""

import numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from onepeace_lightning.data.decoding import (
    check_rate,
    check_samples,
    decode_image,
    load_waveform,
    resample,
    to_rgb,
    upright,
)
from onepeace_lightning.data.transforms import Preprocessing
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.models.inputs import Audio, Image, Text

PathOrStr = str | PathLike[str]
ImageItem = PathOrStr | Pillow.Image | np.ndarray | Tensor
"""A file, a picture, an array (H, W, 3) uint8, or a tensor (3, H, W): uint8, or floating-point in [0, 1]."""
AudioItem = PathOrStr | tuple[Tensor | np.ndarray, int]
"""A file, or a waveform (N,) or (C, N) with its samples per second."""

_INTEGERS = (torch.int16, torch.int32)


def as_items(modality: str, items: Any) -> list[Any]:
    """The items of a batch as a list; a tensor or array holds them along its first dimension.

    Raises:
        ValueError: for a single item that is not in a list.
    """
    if isinstance(items, (str, bytes, PathLike, Pillow.Image)) or not hasattr(items, "__iter__"):
        raise ValueError(f"{modality} is a single {type(items).__name__}; give a list, such as {modality}=[item]")
    return list(items)


@dataclass(frozen=True)
class ItemReader:
    """Makes the items of one modality what its adapter takes.

    Attributes:
        modality: text, image or audio.
        preprocessing: of pictures and sounds.
        tokenizer: needed for text only.
    """

    modality: str
    preprocessing: Preprocessing
    tokenizer: Tokenizer | None = None

    def read(self, item: Any) -> Any:
        """One item: token ids, (3, S, S) uint8 pixels, or (N,) samples.

        Raises:
            ValueError: where the item is nothing that is known, or cannot be decoded.
            OSError: where a file cannot be opened.
        """
        if self.modality == "image":
            return self.preprocessing.image(to_picture(item))
        if self.modality == "audio":
            return self.preprocessing.waveform(to_waveform(item))
        if self.tokenizer is None:
            raise ValueError("text needs a tokenizer, and there is none")
        if not isinstance(item, str):
            raise ValueError(f"a {type(item).__name__} is no text; give a str")
        return self.tokenizer.encode(item).ids

    def read_numbered(self, numbered: tuple[int, Any]) -> Any:
        """Read an item that comes with its number, by which an error names it.

        Raises:
            ValueError: as ``read``, with the item's number and path.
        """
        index, item = numbered
        with naming(self.modality, index, item):
            return self.read(item)

    def join(self, rows: Sequence[Any]) -> Text | Image | Audio:
        """A batch of what ``read`` gave; at least one."""
        if self.modality == "image":
            return Image(torch.stack(list(rows)))
        return Audio.pad(rows) if self.modality == "audio" else Text.pad(rows)


@contextmanager
def naming(modality: str, number: int, item: Any) -> Iterator[None]:
    """Errors of reading an item name it.

    Raises:
        ValueError: for a ``ValueError`` or ``OSError`` within.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        is_path = isinstance(item, (str, PathLike)) and modality != "text"
        name = f" ({fspath(item)})" if is_path else ""
        raise ValueError(f"{modality} {number}{name}: {error}") from error


def to_picture(item: ImageItem) -> Pillow.Image:
    """An RGB picture, the right way up; floating-point pixels are rounded to 8 bits, as those of files are.

    Raises:
        ValueError: where the item is none of ``ImageItem``.
        OSError: where the file cannot be opened.
    """
    if isinstance(item, (str, PathLike)):
        return decode_image(Path(item).read_bytes())
    if isinstance(item, Pillow.Image):
        return to_rgb(upright(item))
    if isinstance(item, Tensor):
        return Pillow.fromarray(_pixels(item).permute(1, 2, 0).cpu().numpy())
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or not item.size:
            raise ValueError(f"an array of {item.dtype} {item.shape}; an image array is uint8 (height, width, 3)")
        return Pillow.fromarray(np.ascontiguousarray(item))
    raise ValueError(
        f"a {type(item).__name__} is no image; give a path, a PIL picture, a uint8 array (height, width, 3) or a tensor"
        " (3, height, width), uint8 or floating-point in [0, 1]"
    )


def to_waveform(item: AudioItem) -> Tensor:
    """(N,) float32 at 16 kHz, the mean of the channels.

    Raises:
        ValueError: where the item is none of ``AudioItem``.
        OSError: where the file cannot be opened.
    """
    if isinstance(item, (str, PathLike)):
        return load_waveform(Path(item).read_bytes())
    if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (Tensor, np.ndarray))):
        given = (
            f"({', '.join(type(part).__name__ for part in item)})" if isinstance(item, tuple) else type(item).__name__
        )
        raise ValueError(f"{given} is no audio; give a path or a tuple (waveform, sample_rate)")
    waveform, rate = torch.as_tensor(item[0]).detach().cpu(), item[1]
    if not isinstance(rate, numbers.Integral):
        raise ValueError(f"a sample rate of {rate!r}; give whole samples per second")
    check_rate(int(rate))
    shape = tuple(waveform.shape)
    if waveform.dim() not in (1, 2) or not waveform.numel():
        raise ValueError(f"a waveform of shape {shape}; give (samples,) or (channels, samples)")
    if waveform.dim() == 2 and shape[0] > shape[1]:
        raise ValueError(f"a waveform of {shape[0]} channels and {shape[1]} samples; channels go first: transpose it")
    if waveform.dtype in _INTEGERS:
        waveform = waveform.float() / -torch.iinfo(waveform.dtype).min
    elif not waveform.is_floating_point():
        raise ValueError(f"a waveform of {waveform.dtype}; give floating-point samples in [-1, 1], int16 or int32")
    waveform = waveform.float().reshape(-1, shape[-1])
    check_samples(waveform.numpy())
    return resample(waveform.mean(0), int(rate))


def _pixels(image: Tensor) -> Tensor:
    """(3, H, W) uint8 from a tensor of pixels."""
    if image.dim() != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(f"a tensor of shape {tuple(image.shape)}; an image tensor is (3, height, width)")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"a tensor of {image.dtype}; an image tensor is uint8, or floating-point in [0, 1]")
    image = image.detach().float()
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # undefined values too
        raise ValueError(
            f"a floating-point image tensor in [{low:g}, {high:g}], not [0, 1]; give it before any normalisation"
        )
    return (image * 255).round().to(torch.uint8)


def batched(size: int, **items: Any) -> Iterator[tuple[int, list[list[Any]]]]:
    """Consecutive parts of lists of equal length, with the number of their first item.

    Args:
        size: items in a part; the last one may have fewer.
        **items: what each list holds (for messages) to the list.

    Raises:
        ValueError: the lists are empty or differ in length, or ``size`` is below 1.
    """
    lists = [as_items(name, values) for name, values in items.items()]
    counts = {name: len(values) for name, values in zip(items, lists, strict=True)}
    if size < 1 or len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"{counts} items in batches of {size}; give equally many, and at least 1, of each")
    for start in range(0, len(lists[0]), size):
        yield start, [values[start : start + size] for values in lists]
