"""A user's own masks: beside each image or other raster, a PNG whose values are the classes of its pixels."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from onepeace_lightning.data.readers.masks import check_mask, decode_mask
from onepeace_lightning.models.vision.segmentation import UNLABELLED


@dataclass
class PixelClasses:
    """The mask of one sample.

    Attributes:
        file: a PNG of indices into the classes: grey of 8 bits, with a palette, or black and white.
        names: of the classes; None where nobody says.
        seen: indices in it, once it was read; also ``UNLABELLED``, which means no class.
    """

    file: Path
    names: Sequence[str] | None
    seen: set[int] = field(default_factory=set)

    def read(self, modality: str, size: Sequence[int]) -> bytes:
        """The mask as shards hold it: the file itself, or its indices as a grey image.

        Args:
            modality: of the raster.
            size: of the raster, rows and columns.

        Raises:
            ValueError: there is no such file, or it is no mask of that raster.
        """
        try:
            data = _grey(self.file.read_bytes())
            indices = decode_mask(data)
            check_mask(indices, modality, size, None if self.names is None else len(self.names))
        except FileNotFoundError:
            raise ValueError(f"there is no mask {self.file}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.file}: {error}") from error
        self.seen = set(np.unique(indices).tolist())
        return data


def class_names(masks: Iterable[PixelClasses]) -> list[str]:
    """Names of the classes of masks that were read; numbers, where nobody says more.

    Raises:
        ValueError: the masks have one class and no class alone: black and white means something else.
    """
    first, *_ = masks = list(masks)
    seen = {index for mask in masks for index in mask.seen}
    known = seen - {UNLABELLED}
    if UNLABELLED in seen and len(known) < 2:
        raise ValueError(
            f"the masks hold {' and '.join(map(str, sorted(seen)))} alone, and {UNLABELLED} means no class: write the"
            " classes as 0, 1, …"
        )
    return list(first.names) if first.names is not None else [str(index) for index in range(max(known) + 1)]


def read_names(file: Path) -> list[str]:
    """Names of classes in a text file, one a line, in the order of their indices.

    Raises:
        ValueError: a line is empty, a name is there twice, or there are too many.
        OSError: the file cannot be read.
    """
    names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not all(names) or twice or not 0 < len(names) <= UNLABELLED:
        raise ValueError(
            f"{file} has {len(names)} lines{f', {twice[0]!r} twice' if twice else ''}; give 1 to {UNLABELLED} different"
            " names of classes, one a line, in the order of the masks' indices"
        )
    return names


def _grey(data: bytes) -> bytes:
    """An image with a palette, or of black and white, as a grey one of the same indices."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.mode not in ("P", "1"):
            return data
        indices = np.array(image).astype(np.uint8)
    except Exception:  # on broken bytes Pillow raises many kinds; decoding says what is wrong with them
        return data
    buffer = io.BytesIO()
    Image.fromarray(indices).save(buffer, "PNG")
    return buffer.getvalue()
