"""``onepeace predict``: a trained downstream task's answers to files, from its checkpoint alone."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onepeace_lightning.checkpoints.released.kinds import released
from onepeace_lightning.data.tables import TABLES, whole_rows
from onepeace_lightning.inference.onepeace import OnePeace, available_device
from onepeace_lightning.inference.sources import find_items
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.registry import modality, text_modality
from onepeace_lightning.modalities.tokenizers.base import parsed_json
from onepeace_lightning.models.adapter import SECOND
from onepeace_lightning.tasks import load_task

JSON_LINES = ".jsonl"
_SHOWN = 5


def predict(
    checkpoint: str,
    items: str,
    *,
    out: str,
    bpe_dir: str | None = None,
    labels: str | None = None,
    root: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> None:
    """Answer with a trained task and write one line of JSON for each item.

    Args:
        checkpoint: what training the task has written (.ckpt), or a file of the original's release (.pt, .pth).
        items: a table (.csv, .tsv or .jsonl) with a column for each thing that the task takes, such as image and
            question; choices are a JSON list. For tasks that take one thing also a folder, a glob in quotes, a file, or
            a folder of shards.
        out: the .jsonl file to write. Masks are written as PNG files beside it, in a folder of the same name.
        bpe_dir: folder with dict.txt, encoder.json and vocab.bpe, for released files that read text.
        labels: file with the names of classes or answers, for released files (.txt, .json, .csv or .tsv).
        root: folder that a table's paths are relative to; the table's own by default.
        batch_size: items that run through the model together.
        device: where to compute, such as cuda; by default a GPU where there is one.

    Raises:
        ValueError: the checkpoint is no task's, a column is missing, or an item cannot be read.
        FileNotFoundError: something is missing.
    """
    target = Path(out)
    if target.suffix != JSON_LINES:
        raise ValueError(f"--out is {target}; give a file with the extension {JSON_LINES}")
    place = available_device(device)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1")
    task: Any = Features.of(checkpoint, place)
    if task is None:
        task = load_task(checkpoint, bpe_dir=bpe_dir, labels=labels).to(place)
    inputs = {name: None if kind is None else _of_files(kind) for name, kind in task.columns.items()}
    answered = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with partial.open("w", encoding="utf-8") as lines:
        for shown, given in _batches(Path(items), items, inputs, root, batch_size, task.preprocessing):
            answers = task.predict(**given, batch_size=batch_size)
            for row, answer in zip(shown, _rows(answers, given, shown), strict=True):
                written = _writable(answer, target.with_suffix(""), answered)
                lines.write(json.dumps({**row, "prediction": written}, ensure_ascii=False) + "\n")
                answered += 1
    os.replace(partial, target)
    print(f"{target}: {answered} predictions of {type(task).__name__}")


class Features:
    """Answers with what the last block gives for an item's CLS token; for released files that answer nothing else.

    Args:
        model: of one modality.
    """

    def __init__(self, model: OnePeace) -> None:
        self.model, self.preprocessing = model, model.preprocessing
        self.columns = {name: name for name in model.config.adapters}

    @classmethod
    def of(cls, path: str, device: torch.device) -> "Features | None":
        """Of a released file that is of such a kind; None for others."""
        opened = released(path)
        if opened is None or not opened[1].encodes:
            return None
        return cls(OnePeace.from_pretrained(path, device=device))

    def predict(self, *, batch_size: int, **items: Sequence[Any]) -> list[list[float]]:
        """(d) numbers for each item."""
        [(values_BLD, _)] = self.model.encode(batch_size=batch_size, **items).values()
        return values_BLD[:, 0].tolist()


def _of_files(name: str) -> str | None:
    """The modality of an input where its items are files; None where they are texts."""
    name = name.removeprefix(SECOND)
    return None if modality(name).reads_text else name


Rows = tuple[list[dict[str, Any]], dict[str, list[Any]]]
"""What to write beside the answers, and what the task is given."""


def _batches(
    path: Path, source: str, inputs: Mapping[str, str | None], root: str | None, size: int, preprocessing: Preprocessing
) -> Iterator[Rows]:
    if path.suffix.lower() in (*TABLES, JSON_LINES):
        rows = list(_table(path))
        if not rows:
            raise ValueError(f"{path} has no rows")
        if lacking := [name for name in inputs if any(row.get(name) in (None, "") for row in rows)]:
            raise ValueError(
                f"{path} lacks {', '.join(lacking)} in some row; this task takes {', '.join(inputs)}, and the table has"
                f" {', '.join(map(str, rows[0]))}"
            )
        for number, row in enumerate(rows, 1):
            for name, kind in inputs.items():
                if kind is not None and not isinstance(row[name], str):
                    raise ValueError(
                        f"{path}, row {number}: {name} is {row[name]!r}; give the path of a file as a text"
                    )
        folder = path.parent if root is None else Path(root)
        shown = [{name: _value(row[name], kind) for name, kind in inputs.items()} for row in rows]
        # All at once, because retrieval compares them with each other; they are paths and texts.
        yield (
            shown,
            {
                name: [row[name] if kind is None else folder / row[name] for row in shown]
                for name, kind in inputs.items()
            },
        )
        return
    if len(inputs) > 1:
        raise ValueError(f"{source} is no table; this task takes {', '.join(inputs)}: give a .csv, .tsv or .jsonl")
    [(name, kind)] = inputs.items()
    kind = kind or text_modality()
    found = find_items(kind, source, root=root)
    batch: Rows = ([], {name: []})
    for key, read in found.items(0):
        try:
            batch[1][name].append(preprocessing.modality(kind).decode(read()))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        batch[0].append({name: key})
        if len(batch[0]) == size:
            yield batch
            batch = ([], {name: []})
    if batch[0]:
        yield batch


def _table(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix.lower() != JSON_LINES:
        for row in whole_rows(path)[1]:
            yield dict(row.values)
        return
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                content = parsed_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
            if not isinstance(content, dict):
                raise ValueError(f"{path}, line {number}: {content!r} is no object with a value for each column")
            yield content


def _value(value: Any, kind: str | None) -> Any:
    """A cell; a list in JSON, such as choices, becomes one."""
    if kind is None and isinstance(value, str) and value.startswith("["):
        try:
            return parsed_json(value)
        except ValueError:
            return value  # a text that begins with a bracket
    return value


def _rows(answers: Any, given: Mapping[str, list[Any]], shown: list[dict[str, Any]]) -> list[Any]:
    """One answer for each item; of a matrix of cosines what is nearest in the last column."""
    if not isinstance(answers, Tensor):
        return list(answers)
    searched = [str(row[list(given)[-1]]) for row in shown]
    best = answers.topk(min(_SHOWN, len(searched)))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{searched[i]: value for i, value in zip(*row, strict=True)} for row in rows]


def _writable(answer: Any, folder: Path, number: int) -> Any:
    """An answer as JSON; a mask goes to a PNG file, whose path stands for it."""
    if not isinstance(answer, Tensor):
        return answer
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{number:06d}.png"
    Image.fromarray(answer.cpu().numpy().astype(np.uint8)).save(file)
    return file.as_posix()
