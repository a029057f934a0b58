"""The modalities that are known, by name."""

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import TypeVar

from onepeace_lightning.modalities.base import Modality

ENTRY_POINTS = "onepeace_lightning.modalities"
"""Group of entry points by which an installed package adds modalities; each names a module or a class."""

_REGISTERED: dict[str, type[Modality]] = {}
_UNLOADED = list(entry_points(group=ENTRY_POINTS))
M = TypeVar("M", bound=type[Modality])


def register(cls: M) -> M:
    """Make a modality known by its name; a decorator.

    Raises:
        ValueError: where the name is taken by another class, or cannot be one.
    """
    name = getattr(cls, "name", "")
    if not (isinstance(name, str) and name.isidentifier() and name == name.lower() and not name.startswith("second_")):
        raise ValueError(f"{cls.__qualname__}.name is {name!r}; give a lower-case word such as 'depth'")
    taken = _REGISTERED.get(name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"modality {name!r} is already registered by {taken.__module__}.{taken.__qualname__}")
    _REGISTERED[name] = cls
    return cls


def modality(name: str) -> type[Modality]:
    """The modality of a name.

    Raises:
        ValueError: nobody registered it; the known ones are listed.
    """
    if name not in (known := modalities()):
        raise ValueError(
            f"there is no modality {name!r}; known are {', '.join(known)}. One of your own is registered by importing"
            " its module: onepeace … --import my_package.my_modality"
        )
    return known[name]


def modalities() -> dict[str, type[Modality]]:
    """Every registered modality by name, ordered by ``Modality.order`` and name.

    Raises:
        ValueError: an installed package's entry point cannot be loaded.
    """
    while _UNLOADED:
        entry = _UNLOADED.pop()
        try:
            entry.load()
        except Exception as error:
            raise ValueError(
                f"the modality {entry.name!r} of an installed package cannot be loaded from {entry.value}"
                f" ({type(error).__name__}: {error}): mend or uninstall the package"
            ) from error
    return {name: _REGISTERED[name] for name in sorted(_REGISTERED, key=lambda name: (_REGISTERED[name].order, name))}


def text_modality() -> str:
    """The name of the modality that reads texts, of which questions and captions are."""
    return next(name for name, cls in modalities().items() if cls.reads_text)


def own_files(cls: type[Modality], names: Iterable[str]) -> list[str]:
    """Of files in a folder that a user calls by a modality's name, those that are of it.

    They are the files with its own extensions that no other modality has a longer one for; where there are none, files
    of its kinds: ``0001.png`` among files that are said to be depth maps.
    """
    names = list(names)
    others = [other for other in modalities().values() if other is not cls]

    def claimed(name: str) -> int:
        return max((len(other.extension_of(name) or "") for other in others), default=0)

    own = [name for name in names if len(extension := cls.extension_of(name) or "") and len(extension) >= claimed(name)]
    kinds = {extension.rpartition(".")[2] for extension in cls.extensions}
    return own or [name for name in names if name.lower().rpartition(".")[2] in kinds]


def modality_of(file_name: str) -> tuple[str, str] | None:
    """The modality of a file by its name alone, and its extension; None where no modality has such files.

    Raises:
        ValueError: several modalities have.
    """
    found = {name: ext for name, cls in modalities().items() if (ext := cls.extension_of(file_name)) is not None}
    longest = max(map(len, found.values()), default=0)
    best = {name: ext for name, ext in found.items() if len(ext) == longest}
    if len(best) > 1:
        raise ValueError(
            f"{file_name} may be {' or '.join(best)}: say which in a table, onepeace shards from-csv"
            f" --{next(iter(best))}-col …"
        )
    return next(iter(best.items()), None)
