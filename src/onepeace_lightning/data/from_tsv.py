"""Shards from the original's tables: tab-separated, a header line, paths relative to a data set root."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from onepeace_lightning.data.items import Item, present, write_items
from onepeace_lightning.modalities.tokenizers.base import parsed_json

Task = Literal[
    "image-text", "audio-text", "image-captions", "audio-captions", "esc50", "fsd50k", "vggsound", "avqa", "refcoco",
    "vqa", "nlvr2", "imagenet",
]  # fmt: skip

_ANSWERS = 4
_NLVR2_CLASSES = ["True", "False"]
_SHOWN = 10


@dataclass(frozen=True)
class _Row:
    """A line of the table.

    Attributes:
        line: its number, counted from 1.
        values: by column.
        root: folder that its paths are relative to.
        names: class or answer id to name.
    """

    line: int
    values: dict[str, str]
    root: Path
    names: dict[str, str]

    def item(self, *parts: str, text: str | None = None, facts: dict[str, Any] | None = None) -> Item:
        """The sample with the files in these columns. Its key is the number of the line."""
        columns = {"image": "image", "image1": "image", "image2": "second_image", "audio": "audio"}
        files = tuple((columns[part], self.root / self.filled(part)) for part in parts)
        return Item(f"{self.line:09d}", files, text, facts)

    def filled(self, column: str) -> str:
        """The value in a column, which may not be blank."""
        if not self.values[column].strip():
            raise ValueError(f"nothing in column {column!r}")
        return self.values[column]

    def name(self, number: str) -> str:
        """The class or answer of an id."""
        try:
            return self.names[number]
        except KeyError:
            ids = list(self.names)
            raise ValueError(f"id {number!r} is none of the {len(ids)} ids {ids[0]} to {ids[-1]}") from None


@dataclass(frozen=True)
class _Layout:
    """What a task's table looks like and becomes.

    Attributes:
        data_type: of the shards.
        columns: those that the table must have.
        item: makes a line's sample.
        ids: the first class id and the number of classes, where the table does not say.
        needs_labels: whether the names of the classes must be given.
    """

    data_type: str
    columns: tuple[str, ...]
    item: Callable[[_Row], Item]
    ids: tuple[int, int] | None = None
    needs_labels: bool = False


def _image_text(row: _Row) -> Item:
    return row.item("image", text=row.filled("caption"))


def _audio_text(row: _Row) -> Item:
    return row.item("audio", text=row.filled("text"))


def _image_captions(row: _Row) -> Item:
    return row.item("image", facts={"captions": [row.values["caption"]]})


def _audio_captions(row: _Row) -> Item:
    return row.item("audio", facts={"captions": [row.values["text"]]})


def _sound_class(row: _Row) -> Item:
    return row.item("audio", facts={"labels": [row.name(row.filled("text"))]})


def _esc50(row: _Row) -> Item:
    text = row.filled("text")
    return row.item("audio", facts={"labels": [text if text in row.names.values() else row.name(text)]})


def _sound_classes(row: _Row) -> Item:
    return row.item("audio", facts={"labels": [row.name(number) for number in row.filled("text").split(",")]})


def _image_class(row: _Row) -> Item:
    return row.item("image", facts={"labels": [row.name(row.filled("label"))]})


def _avqa(row: _Row) -> Item:
    question, *choices = row.filled("text").split("&&&")
    if len(choices) != _ANSWERS + 1:
        raise ValueError(f"{row.values['text']!r} is not 'question&&&answer 1&&&…&&&answer 4&&&index'")
    *choices, index = choices
    if index not in map(str, range(_ANSWERS)):
        raise ValueError(f"the right answer's index is {index!r}; it is one of 0, 1, 2, 3")
    return row.item("audio", text=question, facts={"choices": choices, "answer": int(index)})


def _refcoco(row: _Row) -> Item:
    try:
        x0, y0, x1, y1 = (float(number) for number in row.values["region_coord"].split(","))
    except ValueError:
        raise ValueError(f"region_coord {row.values['region_coord']!r} is not 'x0,y0,x1,y1' in pixels") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise ValueError(f"region_coord {row.values['region_coord']!r}: 0 <= x0 < x1 and 0 <= y0 < y1 must hold")
    return row.item("image", text=row.filled("text"), facts={"box": [x0, y0, x1, y1]})


def _vqa(row: _Row) -> Item:
    answers = {}
    for number, name, score in _references(row.filled("refs")):
        if row.name(number) != name:
            raise ValueError(f"answer {number} is {name!r} here and {row.name(number)!r} in the vocabulary")
        answers[name] = score
    return row.item("image", text=row.filled("question"), facts={"answers": answers})


def _nlvr2(row: _Row) -> Item:
    label = row.filled("label")
    if label not in _NLVR2_CLASSES:
        raise ValueError(f"label {label!r} is neither True nor False")
    return row.item("image1", "image2", text=row.filled("text"), facts={"labels": [label]})


_AUDIO_COLUMNS = ("uniq_id", "audio", "text", "duration")
_IMAGE_COLUMNS = ("image_id", "image", "caption")

_LAYOUTS: dict[str, _Layout] = {
    "image-text": _Layout("image-text", _IMAGE_COLUMNS, _image_text),
    "audio-text": _Layout("audio-text", _AUDIO_COLUMNS, _audio_text),
    "image-captions": _Layout("image-captions", _IMAGE_COLUMNS, _image_captions),
    "audio-captions": _Layout("audio-captions", _AUDIO_COLUMNS, _audio_captions),
    "esc50": _Layout("audio-label", _AUDIO_COLUMNS, _esc50, needs_labels=True),
    "fsd50k": _Layout("audio-label", _AUDIO_COLUMNS, _sound_classes, ids=(0, 200)),
    "vggsound": _Layout("audio-label", _AUDIO_COLUMNS, _sound_class, ids=(0, 309)),
    "avqa": _Layout("audio-choices", _AUDIO_COLUMNS, _avqa),
    "refcoco": _Layout("image-box", ("image", "text", "region_coord"), _refcoco),
    "vqa": _Layout("image-question", ("uniq_id", "image", "question", "refs"), _vqa),
    "nlvr2": _Layout("image-pair", ("uniq_id", "text", "image1", "image2", "label"), _nlvr2),
    "imagenet": _Layout("image-label", ("image", "label"), _image_class, ids=(1, 1000)),
}


def from_tsv(
    table: str,
    *,
    task: Task,
    root: str,
    out: str,
    split: str = "train",
    labels: str | None = None,
    texts: str | None = None,
    max_missing: float = 0.0,
    samples_per_shard: int = 1000,
    source: str | None = None,
    license: str = "not stated",
) -> None:
    """Make the shards of one split from one of the original's tables, in ``out/split/<data type>``.

    Args:
        table: the tab-separated table, UTF-8, with a header line.
        task: which of the original's tables it is.
        root: folder that the paths in it are relative to.
        out: data set folder.
        split: name of the split that the table holds, e.g. train, val or test.
        labels: names of the classes or answers: a JSON file {id: [names]} such as esc50_label.json (the first name is
            taken), FSD50K's vocabulary.csv, or the manifest.json of another split's shards, whose order is kept. ESC-50
            needs it; for fsd50k, vggsound and imagenet the classes are named by their ids without it; for vqa the
            vocabulary is that of the table.
        texts: a *_texts.json {id: [captions]}, whose captions replace those of an image-captions or audio-captions
            table.
        max_missing: the greatest fraction of samples that may lack a file; they are left out.
        samples_per_shard: samples in each shard.
        source: where the data is from, for the manifest; the table's name if None.
        license: the data's licence, for the manifest.

    Raises:
        ValueError: the header is not the task's, or lines cannot be used (the first ten are listed), or files are
            missing.
    """
    if task not in _LAYOUTS:
        raise ValueError(f"task {task!r}: choose one of {', '.join(get_args(Task))}")
    layout, path = _LAYOUTS[task], Path(table)
    if texts and not task.endswith("-captions"):
        raise ValueError(f"texts goes with the tasks image-captions and audio-captions, not with {task}")
    rows = list(_rows(path, task))
    names = _names(path, task, rows, Path(labels) if labels else None)
    items = _items(path, layout, [_Row(line, values, Path(root), names) for line, values in rows])
    if task.endswith("-captions"):
        captions = _read_json(Path(texts)) if texts else None
        items = _joined(items, {f"{line:09d}": values[layout.columns[0]] for line, values in rows}, captions)
    there = present(items, split, max_missing)
    about: dict[str, Any] = {"split": split, "table": path.name, "missing": len(items) - len(there)}
    if task == "vqa":
        about["answers"] = list(names.values())
    elif task == "nlvr2":
        about["classes"] = _NLVR2_CLASSES
    elif names:
        about["classes"] = list(names.values())
    folder = Path(out) / split / layout.data_type
    made = write_items(
        folder,
        there,
        layout.data_type,
        source=source or path.name,
        license=license,
        about=about,
        samples_per_shard=samples_per_shard,
    )
    left_out = f", {len(items) - len(there)} left out for missing files" if len(there) < len(items) else ""
    print(f"{folder}: {made.samples} samples of {made.data_type}{left_out}")


def _rows(path: Path, task: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The table's lines with their numbers. Quotes mean nothing in it, and the last column may hold tabs."""
    columns = _LAYOUTS[task].columns
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = next(file, "").rstrip("\n").split("\t")
            if missing := [column for column in columns if column not in header]:
                raise ValueError(
                    f"{path} has no column {', '.join(missing)}: a table for {task} has the tab-separated columns "
                    f"{' '.join(columns)}, its header is {header}"
                )
            for number, line in enumerate(file, 2):
                values = line.rstrip("\n").split("\t", len(header) - 1)
                if len(values) != len(header):
                    raise ValueError(
                        f"{path}, line {number}: {len(values)} tab-separated values, the header has {len(header)}"
                    )
                yield number, dict(zip(header, values, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 table: {error}") from error


def _items(path: Path, layout: _Layout, rows: list[_Row]) -> list[Item]:
    items, problems = [], []
    for row in rows:
        try:
            items.append(layout.item(row))
        except ValueError as error:
            problems.append(f"{path.name}, line {row.line}: {error}")
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        rest = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{len(problems)} of {len(rows)} lines cannot be used:{shown}{rest}")
    return items


def _joined(items: list[Item], ids: dict[str, str], texts: dict[str, Any] | None) -> list[Item]:
    """One item per file, with the captions of all its lines, or with those that a JSON file has for the first's id."""
    groups: dict[Path, list[Item]] = {}
    for item in items:
        groups.setdefault(item.files[0][1], []).append(item)
    joined = []
    for group in groups.values():
        first = group[0]
        listed: Any = [caption for item in group for caption in (item.facts or {})["captions"]]
        if texts is not None:
            listed = texts.get(ids[first.key])
        if not isinstance(listed, list):
            raise ValueError(f"the file of texts has no list of captions for id {ids[first.key]!r}")
        captions = [caption for caption in listed if isinstance(caption, str) and caption.strip()]
        if not captions:
            raise ValueError(f"there is no caption for {first.files[0][1]} (line {int(first.key)})")
        joined.append(Item(first.key, first.files, None, {"captions": captions}))
    return joined


def _names(path: Path, task: str, rows: list[tuple[int, dict[str, str]]], labels: Path | None) -> dict[str, str]:
    """Class or answer id to name, in the order of the ids."""
    layout = _LAYOUTS[task]
    if labels is not None:
        if not (layout.ids or layout.needs_labels or task == "vqa"):
            raise ValueError(f"labels goes with tables of classes or answers, not with {task}")
        names = _read_names(labels, first=layout.ids[0] if layout.ids else 0)
    elif layout.needs_labels:
        raise ValueError(f"task {task} needs labels: the file esc50_label.json, {{class id: [names]}}")
    elif layout.ids:
        first, count = layout.ids
        names = {str(number): str(number) for number in range(first, first + count)}
    elif task == "vqa":
        names = _answers(path, rows)
    else:
        names = {}
    if doubled := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise ValueError(f"{labels or path} gives several ids the name {', '.join(doubled)}")
    return names


def _read_names(path: Path, first: int) -> dict[str, str]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
        if any(len(row) != 3 or not row[0].isdigit() for row in rows):
            raise ValueError(
                f"{path} is not like FSD50K's vocabulary.csv, whose lines are 'id,name,mid' without a header"
            )
        return {row[0]: row[1].replace("_", " ") for row in sorted(rows, key=lambda row: int(row[0]))}
    content = _read_json(path)
    about = content.get("about")
    listed = (about.get("classes") or about.get("answers")) if isinstance(about, dict) else None
    if listed:
        return {str(number): str(name) for number, name in enumerate(listed, first)}
    try:
        pairs = sorted((int(number), names) for number, names in content.items())
    except ValueError:
        raise ValueError(f"{path} is neither {{id: [names]}} nor a manifest with classes or answers") from None
    return {str(number): str(names[0] if isinstance(names, list) else names) for number, names in pairs}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parsed_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; an object {{id: …}} is expected")
    return content


def _references(text: str) -> Iterator[tuple[str, str, float]]:
    """Answer id, answer and score of "answer|!+id|!+score&&…"."""
    for part in text.split("&&"):
        try:
            name, number, score = part.split("|!+")
            value = float(score)
        except ValueError:
            raise ValueError(f"refs {part!r} is not 'answer|!+id|!+score'") from None
        if not 0 < value <= 1:
            raise ValueError(f"the score of {name!r} is {score}; it must be above 0 and at most 1")
        yield number, name, value


def _answers(path: Path, rows: list[tuple[int, dict[str, str]]]) -> dict[str, str]:
    """The vocabulary that a training table shows."""
    found: dict[int, str] = {}
    for line, values in rows:
        try:
            for number, name, _ in _references(values["refs"]):
                found.setdefault(int(number), name)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
    if not found:
        raise ValueError(f"{path} has no lines")
    if unseen := sorted(set(range(max(found) + 1)) - set(found)):
        raise ValueError(
            f"{path} does not show the answers with {len(unseen)} of its ids, such as {unseen[0]}: give the whole "
            "vocabulary with labels, e.g. the manifest.json of the training shards"
        )
    return {str(number): found[number] for number in sorted(found)}
