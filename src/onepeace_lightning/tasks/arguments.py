"""Arguments of tasks: ``help()`` and the command line list all of them, and mappings do for configurations."""

import re
from collections.abc import Mapping
from inspect import Parameter, cleandoc, signature
from typing import Any, TypeVar

_ENTRY = re.compile(r" {4}(\*{0,2}\w+): ")
_SEE = re.compile(r" {4}(\w+): see ``\w+``\.")


T = TypeVar("T")


def built(kind: type[T], given: T | Mapping[str, Any]) -> T:
    """A configuration that may be given as a mapping of its fields, as YAML has it."""
    return kind(**given) if isinstance(given, Mapping) else given


def show_inherited(cls: type[Any]) -> None:
    """Put the arguments that ``**options`` stands for into a class's signature and docstring.

    Args:
        cls: whose ``__init__`` passes its ``**options`` on to its parent's.
    """
    init: Any = vars(cls).get("__init__")
    own = {} if init is None else signature(init).parameters
    if all(one.kind is not Parameter.VAR_KEYWORD for one in own.values()):
        return
    parent: Any = cls.__mro__[1]
    inherited = signature(parent.__init__).parameters
    passed = {name: one for name, one in inherited.items() if name not in own}
    kept = [one for one in own.values() if one.kind is not Parameter.VAR_KEYWORD]
    added = [
        one if one.kind is Parameter.VAR_KEYWORD else one.replace(kind=Parameter.KEYWORD_ONLY)
        for one in passed.values()
    ]
    init.__signature__ = signature(init).replace(parameters=[*kept, *added])
    entries = _entries(cls.__mro__[1].__doc__ or "")
    lines = []
    for line in cleandoc(cls.__doc__ or "").splitlines():
        if line.startswith("    **"):
            lines += [each for name in passed for each in entries.get(name, [])]
        elif (found := _SEE.fullmatch(line)) and found[1] in entries:
            lines += entries[found[1]]
        else:
            lines.append(line)
    cls.__doc__ = "\n".join(lines)


def _entries(doc: str) -> dict[str, list[str]]:
    """The lines on each argument in a Google docstring."""
    entries: dict[str, list[str]] = {}
    name = None
    lines = cleandoc(doc).splitlines()
    for line in lines[lines.index("Args:") + 1 :] if "Args:" in lines else []:
        if not line.startswith("    "):
            break
        if found := _ENTRY.match(line):
            name = found[1]
        if name is not None:
            entries.setdefault(name, []).append(line)
    return entries
