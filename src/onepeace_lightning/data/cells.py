"""What the cells of a table hold: files, texts, class names, numbers."""

from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from onepeace_lightning.data.make_shards import Content
from onepeace_lightning.files import extension_of
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.modalities.tokenizers.base import parsed_json


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


def file_content(name: str, value: Any, root: Path) -> Content:
    """A file's path, or what reads its bytes."""
    if isinstance(value, str):
        return root / value
    if not callable(value):
        raise ValueError(f"{name} is {value!r}; a path or bytes are accepted")
    read: Callable[[], tuple[bytes | None, str | None]] = value

    def content() -> tuple[bytes, str]:
        data, path = read()
        if data is None and not path:
            raise ValueError(f"nothing in the column of {name}")
        if data is None:
            return (root / str(path)).read_bytes(), str(path)
        return data, _file_name(name, data, path)

    return content


def _file_name(name: str, data: bytes, path: str | None) -> str:
    """A name that says the kind of some bytes: their own, or one by what they begin with."""
    cls = modality(name)
    for candidate in (path or "", f"_.{extension_of(data)}"):
        try:
            cls.field(candidate)
        except ValueError:
            continue
        return candidate
    return f"_.{cls.extensions[0]}"  # decoding looks at the bytes, and says what is wrong with them


def listed(value: Any) -> list[str] | None:
    """Several texts: a list, or one that is written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parsed_json(value)
        except ValueError:
            return None
    if not isinstance(value, list):
        return None
    return [str(part) for part in value]


def class_names(value: Any, separator: str | None, names: Sequence[str] | None) -> list[str]:
    """The class names of a cell, each once.

    Args:
        value: a name, a list of names, or such a list as JSON; numbers where there are ``names``.
        separator: between several names in a text.
        names: of the classes by number.

    Raises:
        ValueError: no class is named.
    """
    parts: Iterable[Any] = value if isinstance(value, list) else (listed(value) or [value])
    found = []
    for part in parts:
        if names is not None and isinstance(part, int):
            if not 0 <= part < len(names):
                raise ValueError(f"class number {part}; there are names for 0 to {len(names) - 1}")
            found.append(names[part])
        elif separator is not None:
            found += str(part).split(separator)
        else:
            found.append(str(part))
    found = list(dict.fromkeys(label.strip() for label in found if label.strip()))
    if not found:
        raise ValueError(f"no class is named by {value!r}")
    return found


def number(column: str, value: Any) -> float:
    """A number to be learned.

    Raises:
        ValueError: it is none, or not finite.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not isfinite(found):
        raise ValueError(f"column {column!r} has {value!r}; give a finite number, with a decimal point")
    return found
