"""Configurations: those that come with the package, found by name, and several of them laid over each other."""

import difflib
import re
import shutil
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

_SUFFIX = ".yaml"
_TRAINER = "trainer"
"""The group of configurations that say on what a run runs, not what it is."""


def folder() -> Path:
    """Where the package's configurations are: beside its modules, or in the checkout that it is run from."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "configs"


def names() -> list[str]:
    """The package's configurations, such as ``pretrain/toy``."""
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob(f"*{_SUFFIX}"))


def print_names() -> None:
    """List the configurations that come with this package, with what each says of itself."""
    width = shutil.get_terminal_size().columns
    for name in names():
        lines = (folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8").splitlines()
        about = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda one: one.startswith("#"), lines))
        sentence = re.split(r"(?<=\.)\s", about, maxsplit=1)[0]
        print(name)
        print(textwrap.fill(sentence, width, initial_indent="    ", subsequent_indent="    "))


def copy(name: str, *, to: str | None = None) -> None:
    """Copy a configuration that comes with this package, to edit it.

    Args:
        name: as ``onepeace configs`` names it.
        to: the file to write; the configuration's name in the working folder by default.

    Raises:
        ValueError: there is no such configuration, or the file exists.
    """
    if name not in names():
        raise ValueError(_unknown(name))
    target = Path(to if to is not None else name.replace("/", "_") + _SUFFIX)
    if target.exists():
        raise ValueError(f"{target} exists already; choose another file with --to")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text((folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8"), encoding="utf-8")
    print(f"{target}: edit it, then run `onepeace fit --config {target} --run NAME`")


def find(name: str) -> Path:
    """A configuration file by its path or, where there is none, by its name in the package.

    Raises:
        ValueError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = folder() / (name if name.endswith(_SUFFIX) else f"{name}{_SUFFIX}")
    if shipped.is_file():
        return shipped
    raise ValueError(_unknown(name))


def trainer_usage(name: str) -> str:
    """How a command of Lightning's trainer is called."""
    checkpoint = "" if name == "fit" else "--ckpt_path best|last|FILE "
    space = " " * len(f"usage: onepeace {name} ")
    return f"onepeace {name} --config NAME_OR_FILE [--config …]\n{space}{checkpoint}[--run NAME] [--KEY=VALUE …]"


def merged(given: Sequence[str]) -> dict[str, Any]:
    """Configurations laid over each other: a later one changes what it names and keeps the rest.

    Args:
        given: paths or names, the first one at the bottom.

    Raises:
        ValueError: there is no such file, or it is no YAML mapping.
    """
    whole: dict[str, Any] = {}
    for name in given:
        whole = laid_over(whole, _read(find(name)))
    return whole


def run_name(given: Sequence[str]) -> str:
    """What a run of these configurations is called where it has no name: as the last one that is not of ``trainer``.

    ``finetune/image_classification/toy`` gives ``image_classification_toy``; a file gives its name.
    """
    stems = [_stem(find(name)) for name in given]
    own = [stem for stem in stems if stem[0] != _TRAINER] or stems
    return "_".join(own[-1][1:] or own[-1]) if own else "run"


def _stem(path: Path) -> list[str]:
    """The parts of a shipped configuration's name, or a file's name alone."""
    try:
        return list(path.resolve().relative_to(folder().resolve()).with_suffix("").parts)
    except ValueError:
        return [path.stem]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; a configuration is a mapping such as trainer: {{…}}"
        )
    return content


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged, anything else is replaced; null takes a mapping away.

    Another class keeps no arguments of the one before.
    """
    changed = "class_path" in above and _class_name(above) != _class_name(below)
    kept = {key: value for key, value in below.items() if not (changed and key == "init_args")}
    for key, value in above.items():
        mapping = isinstance(kept.get(key), dict)
        if mapping and value is None:
            del kept[key]
        else:
            kept[key] = laid_over(kept[key], value) if mapping and isinstance(value, dict) else value
    return kept


def _class_name(content: dict[str, Any]) -> str:
    return str(content.get("class_path", "")).rpartition(".")[2]


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.removesuffix(_SUFFIX), names(), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"there is neither a file {name} nor a configuration of that name{hint} (`onepeace configs`)"
