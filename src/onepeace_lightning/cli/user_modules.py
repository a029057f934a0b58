"""``--import MODULE``: modules of the user, whose tasks, modalities and data are then known by name."""

import importlib
import sys
from collections.abc import Iterable, Sequence


def without_imports(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into what is left of it and the modules that it imports.

    Raises:
        ValueError: nothing follows ``--import``.
    """
    rest: list[str] = []
    modules: list[str] = []
    following = iter(words)
    for word in following:
        if word == "--import":
            name = next(following, None)
            if name is None:
                raise ValueError("--import needs the name of a module, such as my_package.my_task")
            modules.append(name)
        elif word.startswith("--import="):
            modules.append(word.removeprefix("--import="))
        else:
            rest.append(word)
    return rest, modules


def import_modules(names: Iterable[str]) -> None:
    """Import modules, those of the working folder too.

    Raises:
        ImportError: naming the module that is not there.
    """
    for name in names:
        if "" not in sys.path:  # as with `python -m`
            sys.path.insert(0, "")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise  # something that the module itself imports
            raise ImportError(
                f"--import {name}: there is no such module, neither here nor installed; give its dotted name, without"
                " .py"
            ) from error
