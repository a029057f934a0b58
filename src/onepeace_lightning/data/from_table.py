"""Shards of a table's rows: CSV, Parquet, or a saved data set of Hugging Face's ``datasets``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onepeace_lightning.data.cells import class_names, file_content, is_empty, listed, number
from onepeace_lightning.data.data_types import DataType
from onepeace_lightning.data.make_shards import Making, RawSample, make_shards
from onepeace_lightning.data.parquet import ParquetFiles, SavedDataset, Table
from onepeace_lightning.data.splits import split_named
from onepeace_lightning.data.tables import read_table
from onepeace_lightning.modalities.registry import text_modality

_SEPARATORS = "|;,"


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are.

    Attributes:
        items: modality to the column of its files or texts.
        label: class names, if any.
        separator: between several class names in a cell.
        targets: numbers to be learned.
        split: train, val or test.
        group: rows with equal values come into one split.
    """

    items: Mapping[str, str]
    label: str | None = None
    separator: str | None = None
    targets: Sequence[str] = ()
    split: str | None = None
    group: str | None = None

    @property
    def used(self) -> list[str]:
        """Their names, each once."""
        others = [self.label, *self.targets, self.split, self.group]
        return list(dict.fromkeys([*self.items.values(), *(name for name in others if name is not None)]))

    def check(self, where: object, there: Sequence[str]) -> None:
        """Refuse columns that a table lacks.

        Raises:
            ValueError: with the columns that there are.
        """
        if missing := [column for column in self.used if column not in there]:
            raise ValueError(f"{where} has no column {', '.join(map(repr, missing))}; its columns are {list(there)}")
        if not self.items:
            raise ValueError(
                f"no column is named; give at least one, such as --image-col file --text-col caption; those of {where}"
                f" are {list(there)}"
            )
        if self.label is not None and self.targets:
            raise ValueError("--label-col and --target-col together; a model learns one of them: choose")
        if self.separator is not None and self.label is None:
            raise ValueError(f"--label-separator {self.separator} has no meaning without --label-col")


@dataclass(frozen=True)
class Record:
    """A row, before it is a sample.

    Attributes:
        place: for messages.
        values: by column.
        split: where the file it is in says it.
        chunk: see ``RawSample``.
        problem: why it cannot be used.
    """

    place: str
    values: Mapping[str, Any]
    split: str | None = None
    chunk: int = 0
    problem: str | None = None


def from_csv(
    csv_path: str,
    *,
    out: str,
    columns: dict[str, str] | None = None,
    label_col: str | None = None,
    label_separator: str | None = None,
    target_col: list[str] | None = None,
    split_col: str | None = None,
    group_col: str | None = None,
    split: str | None = None,
    root: str | None = None,
    samples_per_shard: int = 1000,
    vocab_size: int = 8000,
    source: str | None = None,
    license: str = "not stated",
    skip_bad: bool = False,
) -> None:
    """Make shards of the rows of a table. Columns that are not named are kept in the samples' metadata.

    Args:
        csv_path: table with a header line, UTF-8, with commas, semicolons or tabs between the values.
        out: data set folder to write ``train/``, ``val/``, ``test/`` and ``tokenizer/`` into.
        columns: modality to the column with its files' paths, or with the texts; on the command line
            ``--image-col file --text-col caption``. A JSON list of texts is several captions of one item.
        label_col: column with the name of the row's class, or a JSON list of several.
        label_separator: what separates several class names in a cell, such as "|".
        target_col: columns with numbers to be learned.
        split_col: column that says train, val (valid, validation, dev) or test.
        group_col: rows that have the same value in this column, such as a patient's or a speaker's, come into one
            split.
        split: fractions for training and validation, 0.9,0.1, or for testing too, 0.9,0.05,0.05. Groups, or else the
            contents of the files, decide: equal ones stay together, and a later run chooses the same.
        root: folder that the paths are relative to; the table's own if None.
        samples_per_shard: samples in each shard.
        vocab_size: the most token ids of the tokenizer.
        source: where the data is from, for the manifest; the table's name if None.
        license: the data's licence, for the manifest.
        skip_bad: leave rows out that cannot be used, instead of stopping.

    Raises:
        ValueError: the columns do not fit, or rows cannot be used (the first ten are listed).
    """
    wanted = Columns(columns or {}, label_col, label_separator, target_col or (), split_col, group_col)
    table = Path(csv_path)
    header, rows = read_table(table)
    wanted.check(table, header)
    surplus = f"more than {len(header)} values; put quotes around values that hold the separator"
    records = [
        Record(f"{table.name}, line {row.line}", row.values, problem=surplus if row.surplus else None) for row in rows
    ]
    folder = Path(root) if root is not None else table.parent
    _make(records, wanted, folder, {}, Making(
        Path(out), split, samples_per_shard, vocab_size, source or table.name, license, skip_bad
    ))  # fmt: skip


def from_parquet(
    path: str,
    *,
    out: str,
    columns: dict[str, str] | None = None,
    label_col: str | None = None,
    label_separator: str | None = None,
    target_col: list[str] | None = None,
    split_col: str | None = None,
    group_col: str | None = None,
    split: str | None = None,
    root: str | None = None,
    samples_per_shard: int = 1000,
    vocab_size: int = 8000,
    source: str | None = None,
    license: str = "not stated",
    skip_bad: bool = False,
) -> None:
    """Make shards of the rows of Parquet files. Columns that are not named are kept in the samples' metadata.

    A column of files holds their paths, their bytes, or both, as Hugging Face's image and audio features do:
    ``{bytes, path}``. Files that are called train…, val… or test… are these splits.

    Args:
        path: a .parquet file, or a folder of them and its sub-folders.
        out: data set folder to write ``train/``, ``val/``, ``test/`` and ``tokenizer/`` into.
        columns: modality to its column, on the command line ``--image-col image --text-col caption``; None: what the
            file's own description (Hugging Face's features) says. A list of texts is several captions of one item.
        label_col: column with the name of the row's class, or a list of several; numbers get the names that the file's
            description has for them.
        label_separator: what separates several class names in a text, such as "|".
        target_col: columns with numbers to be learned.
        split_col: column that says train, val (valid, validation, dev) or test.
        group_col: rows that have the same value in this column, such as a patient's or a speaker's, come into one
            split.
        split: fractions for training and validation, 0.9,0.1, or for testing too, 0.9,0.05,0.05. Groups, or else the
            contents of the files, decide: equal ones stay together, and a later run chooses the same.
        root: folder that the paths are relative to; the files' own if None.
        samples_per_shard: samples in each shard.
        vocab_size: the most token ids of the tokenizer.
        source: where the data is from, for the manifest; the file's name if None.
        license: the data's licence, for the manifest.
        skip_bad: leave rows out that cannot be used, instead of stopping.

    Raises:
        ValueError: there is no such file, the columns do not fit, or rows cannot be used (the first ten are listed).
    """
    wanted = Columns(columns or {}, label_col, label_separator, target_col or (), split_col, group_col)
    files = ParquetFiles(Path(path))
    folder = Path(root) if root is not None else files.folder
    _make_of(files, path, wanted, folder, Making(
        Path(out), split, samples_per_shard, vocab_size, source or Path(path).name, license, skip_bad
    ))  # fmt: skip


def from_hf(
    folder: str,
    *,
    out: str,
    columns: dict[str, str] | None = None,
    label_col: str | None = None,
    label_separator: str | None = None,
    target_col: list[str] | None = None,
    split_col: str | None = None,
    group_col: str | None = None,
    split: str | None = None,
    root: str | None = None,
    samples_per_shard: int = 1000,
    vocab_size: int = 8000,
    source: str | None = None,
    license: str = "not stated",
    skip_bad: bool = False,
) -> None:
    """Make shards of a data set that Hugging Face's ``datasets`` has saved (``save_to_disk``). Needs the extra ``hf``.

    Images and audio are taken as they are stored. Columns that are not named are kept in the samples' metadata; splits
    that the data set has are kept.

    Args:
        folder: of the saved data set.
        out: data set folder to write ``train/``, ``val/``, ``test/`` and ``tokenizer/`` into.
        columns: modality to its column, on the command line ``--image-col image --text-col caption``; None: what the
            data set's features say. A list of texts is several captions of one item.
        label_col: column with the row's class, or a list of several.
        label_separator: what separates several class names in a text, such as "|".
        target_col: columns with numbers to be learned.
        split_col: column that says train, val (valid, validation, dev) or test.
        group_col: rows that have the same value in this column, such as a patient's or a speaker's, come into one
            split.
        split: fractions for training and validation, 0.9,0.1, or for testing too, 0.9,0.05,0.05. Groups, or else the
            contents of the files, decide: equal ones stay together, and a later run chooses the same.
        root: folder that paths are relative to; the working folder if None.
        samples_per_shard: samples in each shard.
        vocab_size: the most token ids of the tokenizer.
        source: where the data is from, for the manifest; the folder's name if None.
        license: the data's licence, for the manifest.
        skip_bad: leave rows out that cannot be used, instead of stopping.

    Raises:
        ImportError: ``datasets`` is not installed.
        ValueError: the folder is no saved data set, the columns do not fit, or rows cannot be used.
    """
    wanted = Columns(columns or {}, label_col, label_separator, target_col or (), split_col, group_col)
    _make_of(SavedDataset(Path(folder)), folder, wanted, Path(root or ""), Making(
        Path(out), split, samples_per_shard, vocab_size, source or Path(folder).resolve().name, license, skip_bad
    ))  # fmt: skip


def _make_of(table: Table, where: str, wanted: Columns, root: Path, making: Making) -> None:
    if not wanted.items:
        items, label = table.described()
        learned = wanted.label is not None or wanted.targets
        wanted = replace(wanted, items=items, label=wanted.label if learned else label)
        if items:
            said = ", ".join([
                *(f"{name} of column {column!r}" for name, column in items.items()),
                *([f"classes of {wanted.label!r}"] if wanted.label is not None else []),
            ])  # fmt: skip
            print(f"found: {said}")
    wanted.check(where, table.columns)
    records = [
        Record(row.place, row.values, None if wanted.split is not None else row.split, row.chunk)
        for row in table.rows(wanted.items.values())
    ]
    _make(records, wanted, root, table.class_names, making)


def _make(
    records: Sequence[Record], wanted: Columns, root: Path, names: Mapping[str, Sequence[str]], making: Making
) -> None:
    if not records:
        raise ValueError(f"{making.source} has no rows")
    if wanted.split is not None and making.split is not None:
        raise ValueError("--split and --split-col together; give one of them")
    samples = [_sample(record, wanted, root, names) for record in records]
    _warn_of_separators(samples, wanted)
    _same_texts(samples)
    make_shards(samples, _kind(samples), making)


def _kind(samples: Sequence[RawSample]) -> DataType:
    good = next((sample for sample in samples if sample.problem is None), None)
    return (good or RawSample("", dict.fromkeys(samples[0].items, Path()))).kind


def _sample(record: Record, wanted: Columns, root: Path, names: Mapping[str, Sequence[str]]) -> RawSample:
    values = record.values
    sample = RawSample(record.place, {}, split=record.split, chunk=record.chunk, problem=record.problem, root=root)
    sample.columns = {
        column: value
        for column, value in values.items()
        if column not in (*wanted.items.values(), wanted.label, *wanted.targets) and value not in (None, "")
    }
    empty = [column for column in wanted.used if is_empty(values.get(column))]
    if empty and sample.problem is None:
        sample.problem = f"nothing in column {', '.join(map(repr, empty))}"
    if sample.problem is not None:
        return sample
    try:
        for name, column in wanted.items.items():
            if name == text_modality():
                sample.text = listed(values[column]) or str(values[column])
            else:
                sample.items[name] = file_content(name, values[column], root)
        if wanted.label is not None:
            sample.labels = class_names(values[wanted.label], wanted.separator, names.get(wanted.label))
        if wanted.targets:
            sample.targets = {column: number(column, values[column]) for column in wanted.targets}
        if wanted.split is not None:
            sample.split = split_named(str(values[wanted.split]))
            if sample.split is None:
                raise ValueError(f"{wanted.split!r} is {values[wanted.split]!r}; it may say train, val or test")
    except ValueError as error:
        sample.problem = str(error)
    if wanted.group is not None:
        sample.group = str(values[wanted.group])
    return sample


def _warn_of_separators(samples: Sequence[RawSample], wanted: Columns) -> None:
    """Class names that look like several."""
    if wanted.label is None or wanted.separator is not None:
        return
    labels = [sample.labels[0] for sample in samples if sample.labels]
    for separator in _SEPARATORS:
        held = [label for label in labels if separator in label]
        parts = {part.strip() for label in labels for part in label.split(separator)}
        # Several in a cell are the same words over and over.
        if held and len(parts) < len(set(labels)):
            print(
                f"warning: {len(held)} of {len(labels)} class names hold {separator!r}, such as {held[0]!r}. If they"
                f" are several, give --label-separator '{separator}'"
            )
            return


def _same_texts(samples: Sequence[RawSample]) -> None:
    """Where one sample has several captions, all have a list of them."""
    if any(isinstance(sample.text, list) for sample in samples):
        for sample in samples:
            if isinstance(sample.text, str):
                sample.text = [sample.text]
