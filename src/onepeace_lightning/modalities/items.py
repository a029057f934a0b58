"""Users' lists of items, read in batches; errors name the item."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any

from PIL import Image as Pillow

from onepeace_lightning.modalities.base import Inputs, Modality


def as_items(name: str, items: Any) -> list[Any]:
    """The items of a batch as a list; a tensor or array holds them along its first dimension.

    Raises:
        ValueError: for a single item that is not in a list.
    """
    if isinstance(items, (str, bytes, PathLike, Pillow.Image)) or not hasattr(items, "__iter__"):
        raise ValueError(f"{name} is a single {type(items).__name__}; give a list, such as {name}=[item]")
    return list(items)


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


@contextmanager
def naming(modality: Modality, number: int, item: Any) -> Iterator[None]:
    """Errors of reading an item name it.

    Raises:
        ValueError: for a ``ValueError`` or ``OSError`` within.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        is_path = isinstance(item, (str, PathLike)) and not modality.reads_text
        name = f" ({fspath(item)})" if is_path else ""
        raise ValueError(f"{modality.name} {number}{name}: {error}") from error


def read_numbered(modality: Modality, numbered: tuple[int, Any]) -> Any:
    """Read an item that comes with its number, by which an error names it.

    Raises:
        ValueError: as ``Modality.read``, with the item's number and path.
    """
    number, item = numbered
    with naming(modality, number, item):
        return modality.read(item)


def read_batch(modality: Modality, items: Sequence[Any], first: int = 0) -> Inputs:
    """Users' items as one batch of what the adapter takes.

    Args:
        modality: what they are.
        items: at least one.
        first: the number of the first one, for messages.

    Raises:
        ValueError: naming the first item that cannot be read.
    """
    return modality.collate([read_numbered(modality, item) for item in enumerate(items, first)])
