"""Rows of Parquet files and of saved data sets of Hugging Face's ``datasets``; large values are read when asked for."""

import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onepeace_lightning.data.splits import split_named, splits_named
from onepeace_lightning.files import check_fetched, files_below
from onepeace_lightning.modalities.registry import modalities

_OPEN = 4
"""Row groups that are held in memory."""


@dataclass(frozen=True)
class TableRow:
    """A row.

    Attributes:
        place: for messages.
        values: by column; of a column of files, without arguments a function that gives (bytes or None, path or None).
        split: where its file says it.
        chunk: rows that are read together.
    """

    place: str
    values: Mapping[str, Any]
    split: str | None
    chunk: int


class Table(ABC):
    """Rows, with what their file says about their columns."""

    schema: pa.Schema

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    @cached_property
    def features(self) -> Mapping[str, Any]:
        """Column to what Hugging Face's ``datasets`` says of it; empty where it did not write the file."""
        try:
            said = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
        except (KeyError, ValueError, TypeError):
            return {}
        return said if isinstance(said, dict) else {}

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Column to the names of its class numbers."""
        found = {}
        for column, feature in self.features.items():
            inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
            if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
                found[column] = list(inner["names"])
        return found

    def described(self) -> tuple[dict[str, str], str | None]:
        """Modality to its column, and the column of classes, where the features say so of one column only."""
        kinds: dict[str, list[str]] = {}
        for column, feature in self.features.items():
            if isinstance(feature, dict):
                kinds.setdefault(str(feature.get("_type", "")).lower(), []).append(column)
        items = {name: kinds[name][0] for name in modalities() if len(kinds.get(name, ())) == 1}
        classes = list(self.class_names)
        return items, classes[0] if len(classes) == 1 else None

    @abstractmethod
    def rows(self, items: Collection[str]) -> Iterator[TableRow]:
        """All rows.

        Args:
            items: the columns of files; other columns of bytes are left out.
        """

    def light(self) -> list[str]:
        """Columns without bytes."""
        return [entry.name for entry in self.schema if not holds_bytes(entry.type)]


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes, or have them in a field, as Hugging Face's images and audio do."""
    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def bytes_and_path(value: Any) -> tuple[bytes | None, str | None]:
    """Of what a cell of a column of bytes holds."""
    if isinstance(value, Mapping):
        return value.get("bytes"), value.get("path")
    return value, None


class ParquetFiles(Table):
    """Parquet files of one layout.

    Args:
        path: a file, or a folder with files.

    Raises:
        ValueError: there is none, one is damaged, or their columns differ.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ValueError(f"there is no {path}; give a .parquet file or a folder of them")
        self.folder = path if path.is_dir() else path.parent
        self._files = [file for file in files_below(path) if file.suffix == ".parquet"] if path.is_dir() else [path]
        if not self._files:
            raise ValueError(f"{path} holds no .parquet file")
        self.schema = self._open(self._files[0]).schema_arrow
        names = [file.name for file in self._files] if len(self._files) > 1 else []
        found = splits_named(names) or {}
        # Files of one split, or of a single one, say nothing about the others.
        self._splits = found if len(set(found.values())) > 1 else {}
        self._groups: OrderedDict[tuple[Path, int], list[dict[str, Any]]] = OrderedDict()

    def rows(self, items: Collection[str]) -> Iterator[TableRow]:
        """Row group by row group."""
        heavy = sorted({*items} - {*self.light()})
        chunk = 0
        for path in self._files:
            file = self._open(path)
            if set(file.schema_arrow.names) != set(self.columns):
                raise ValueError(
                    f"{path} has the columns {file.schema_arrow.names}, {self._files[0]} has {self.columns}; give files"
                    " of one layout"
                )
            number = 0
            for group in range(file.num_row_groups):
                for index, values in enumerate(file.read_row_group(group, columns=self.light()).to_pylist()):
                    read = {name: partial(self._cell, path, group, tuple(heavy), name, index) for name in heavy}
                    place = f"{path.relative_to(self.folder)}, row {number}"
                    yield TableRow(place, {**values, **read}, self._splits.get(path.name), chunk)
                    number += 1
                chunk += 1

    def _cell(
        self, path: Path, group: int, heavy: tuple[str, ...], column: str, index: int
    ) -> tuple[bytes | None, str | None]:
        key = path, group
        if key not in self._groups:
            while len(self._groups) >= _OPEN:
                self._groups.popitem(last=False)
            self._groups[key] = self._open(path).read_row_group(group, columns=list(heavy)).to_pylist()
        self._groups.move_to_end(key)
        return bytes_and_path(self._groups[key][index][column])

    @staticmethod
    def _open(path: Path) -> pq.ParquetFile:
        try:
            check_fetched(path)
            return pq.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no Parquet file: {error}") from error


class SavedDataset(Table):
    """A folder of ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``.

    Args:
        folder: where it is.

    Raises:
        ImportError: ``datasets`` is not installed.
        ValueError: it is no such folder, or a split's name is not known.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                "data sets of Hugging Face need the datasets package: pip install 'onepeace-lightning[hf]'"
            ) from error
        try:
            loaded = datasets.load_from_disk(str(folder))
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} is no data set that save_to_disk wrote ({error}); Parquet files go through onepeace shards"
                " from-parquet"
            ) from error
        self._splits: dict[str, Any] = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        if unknown := [name for name in self._splits if name and split_named(name) is None]:
            raise ValueError(
                f"{folder} has the splits {', '.join(self._splits)}; {', '.join(unknown)} is none of train, val and"
                " test: save each alone and make shards of it"
            )
        self.schema = next(iter(self._splits.values())).features.arrow_schema

    def rows(self, items: Collection[str]) -> Iterator[TableRow]:
        """Split by split."""
        light = self.light()
        for name, rows in self._splits.items():
            plain = rows.with_format("arrow")
            values = plain.select_columns(light)[:].to_pylist() if light else [{} for _ in range(len(rows))]
            for index, value in enumerate(values):
                read = {column: partial(_stored, plain, column, index) for column in {*items} - {*light}}
                place = f"{name}, row {index}" if name else f"row {index}"
                yield TableRow(place, {**value, **read}, split_named(name) if name else None, 0)


def _stored(rows: Any, column: str, index: int) -> tuple[bytes | None, str | None]:
    return bytes_and_path(rows[index][column][0].as_py())
