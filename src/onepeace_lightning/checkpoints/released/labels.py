"""Names of classes and answers, from the files in which data sets keep them."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onepeace_lightning.modalities.tokenizers.base import parsed_json

ACCEPTED = (
    "a .txt file with a name in each line; a .json file with a list of names, {index: name} or {name: index}; or a .csv"
    " or .tsv file with the columns index and name, which need no header"
)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_labels(path: str | Path) -> list[str]:
    """Names in the order of a model's outputs.

    Args:
        path: .txt, .json, .csv or .tsv; see ``ACCEPTED``. Of a list of names for one class the first counts.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is none of these, an index is missing, or a name stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of labels {path}; give {ACCEPTED}")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        names = [line.strip() for line in text.splitlines() if line.strip()]
    elif path.suffix == ".json":
        try:
            names = _of_json(parsed_json(text), path)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error}); give {ACCEPTED}") from error
    elif path.suffix in _DELIMITERS:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=_DELIMITERS[path.suffix]) if row]
        if rows and not rows[0][0].strip().isdecimal():
            rows = rows[1:]
        if any(len(row) < 2 for row in rows):
            raise ValueError(f"{path} has a row without a name; give {ACCEPTED}")
        names = _ordered(((row[0], row[1]) for row in rows), path)
    else:
        raise ValueError(f"{path} is no file of labels; give {ACCEPTED}")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not names or twice:
        what = f"names {', '.join(map(repr, twice[:5]))} twice" if twice else "names nothing"
        raise ValueError(f"{path} {what}; give {ACCEPTED}")
    return names


def _of_json(content: Any, path: Path) -> list[str]:
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    if isinstance(content, Mapping) and content:
        if all(isinstance(index, int) for index in content.values()):
            return _ordered(((index, name) for name, index in content.items()), path)
        first = {key: value[0] if isinstance(value, list) and value else value for key, value in content.items()}
        if all(isinstance(name, str) for name in first.values()):
            return _ordered(first.items(), path)
    raise ValueError(f"{path} is no file of labels; give {ACCEPTED}")


def _ordered(pairs: Iterable[tuple[Any, str]], path: Path) -> list[str]:
    names: dict[int, str] = {}
    for index, name in pairs:
        if not str(index).strip().isdecimal() or int(index) in names:
            raise ValueError(f"{path}: {index!r} is no index, or stands twice; give {ACCEPTED}")
        names[int(index)] = name
    first = min(names, default=0)
    if first not in (0, 1) or sorted(names) != list(range(first, first + len(names))):
        raise ValueError(f"{path}: the indices of its {len(names)} names are not 0, 1, 2, … without a gap")
    return [names[index] for index in sorted(names)]
