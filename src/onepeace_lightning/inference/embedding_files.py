"""Files of embeddings: ids, embeddings and what made them, as ``.parquet`` or ``.npz``, written in chunks.

A folder of ``part-….parquet`` (``inference.parts``) is read as one file is.

N = items, d = embedding width.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from onepeace_lightning.inference.sources import Items
from onepeace_lightning.modalities.registry import modality

EXTENSIONS = (".parquet", ".npz")
INT8 = 127
"""What 1 is stored as in int8."""
FORMAT_VERSION = 1
"""Of what is written; raised when older readers would misread it."""

_KEY = b"onepeace"


@dataclass
class Chunk:
    """Consecutive items of a source, embedded.

    Attributes:
        ids: of those that could be embedded.
        embeddings: (d,) float32 of each.
        texts: the text itself of each, where they are texts.
        skipped: id to what was wrong, of those that could not.
    """

    ids: list[str] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids) + len(self.skipped)

    def extend(self, other: "Chunk") -> None:
        """Add the items that follow."""
        self.ids += other.ids
        self.embeddings += other.embeddings
        self.texts += other.texts
        self.skipped |= other.skipped


class Output:
    """A file of embeddings in the making; what a stopped run left behind is taken up.

    Chunks lie in the folder ``OUT.partial`` until all are there.

    Args:
        path: the file to write.
        about: says what makes the embeddings; chunks and files of anything else are refused.
        source: whose items are embedded.

    Raises:
        ValueError: where ``path`` has another extension, is a folder, or was begun by another model or from items that
            have changed since.
    """

    def __init__(self, path: Path, about: dict[str, Any], source: Items) -> None:
        if path.suffix not in EXTENSIONS or path.is_dir():
            raise ValueError(f"--out is {path}; give a file with the extension {' or '.join(EXTENSIONS)}")
        self.path, self.about, self.source = path, {"format_version": FORMAT_VERSION, **about}, source
        self.folder = path.with_name(f"{path.name}.partial")
        self.skipped: dict[str, str] = {}
        self.done = 0
        self.finished = path.is_file()
        if self.finished:
            self._take(path, read_about(path))
            if self.done < len(source):
                raise ValueError(self._changed(path, f"holds {self.done} items, the source has {len(source)}"))
            shutil.rmtree(self.folder, ignore_errors=True)  # left where a run was stopped at its very end
            return
        for chunk in self._chunks():
            self._take(chunk, read_about(chunk))

    def add(self, chunk: Chunk) -> None:
        """Keep the embeddings of the next items; from here on a killed run does not lose them."""
        stop = self.done + len(chunk)
        about = self._record(self.done, stop, chunk.skipped)
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{self.done:012d}.parquet"
        partial = target.with_suffix(".writing")
        parquet.write_table(to_table(chunk, about), partial)
        os.replace(partial, target)
        self.done = stop
        self.skipped |= chunk.skipped

    def finish(self) -> None:
        """Join all chunks to the file.

        Raises:
            ValueError: where no item could be embedded.
        """
        chunks = self._chunks()
        if sum(parquet.read_metadata(chunk).num_rows for chunk in chunks) == 0:
            raise ValueError(f"none of the {self.done} items could be embedded; there is no {self.path} to write")
        about = self._record(0, self.done, self.skipped)
        partial = self.folder / "finished"
        if self.path.suffix == ".parquet":
            schema = parquet.read_schema(chunks[0]).with_metadata({_KEY: json.dumps(about).encode()})
            with parquet.ParquetWriter(partial, schema) as writer:
                for chunk in chunks:
                    writer.write_table(_read(chunk).replace_schema_metadata(schema.metadata))
        else:
            tables = [_read(chunk) for chunk in chunks]
            arrays = {"ids": np.concatenate([np.array(table["id"].to_pylist(), dtype=str) for table in tables])}
            arrays["embeddings"] = np.concatenate([unit_length(stored_embeddings(table)) for table in tables])
            if "text" in tables[0].column_names:
                arrays["texts"] = np.array([text for table in tables for text in table["text"].to_pylist()], dtype=str)
            with partial.open("wb") as stream:
                np.savez(stream, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
        os.replace(partial, self.path)
        shutil.rmtree(self.folder)
        self.finished = True

    def _chunks(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _record(self, start: int, stop: int, skipped: dict[str, str]) -> dict[str, Any]:
        items = {"start": start, "stop": stop, "source": self.source.fingerprint(start, stop), "skipped": skipped}
        where = {"kind": self.source.kind, "root": str(self.source.root.resolve())}
        return {**self.about, "items": items, "found": where}

    def _take(self, path: Path, about: dict[str, Any]) -> None:
        """Count the items of a chunk, or of the finished file, as done."""
        if differing := differences(about, self.about):
            raise ValueError(self._changed(path, f"was made with another {differing}"))
        items = about["items"]
        if items["start"] != self.done:
            raise ValueError(self._changed(path, f"begins at item {items['start']}, not {self.done}: a chunk is lost"))
        if items["source"] != self.source.fingerprint(self.done, items["stop"]):
            raise ValueError(
                self._changed(
                    path,
                    f"holds items {items['start']} to {items['stop'] - 1} as they were; since then files were added,"
                    " removed or changed",
                )
            )
        self.done = items["stop"]
        self.skipped |= items["skipped"]

    def _changed(self, path: Path, what: str) -> str:
        begun = self.path if self.finished else self.folder
        return f"{path} {what}. To embed everything anew, delete {begun} or choose another --out"


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what embeddings were made otherwise than they are made now; empty where in nothing."""
    return "; another ".join(
        f"{name.replace('_', ' ')} {theirs.get(name)}, now {value}"
        for name, value in ours.items()
        if theirs.get(name) != value
    )


def part_paths(folder: Path) -> list[Path]:
    """The parts of a folder in the order of their items."""
    return sorted(folder.glob("part-*.parquet"))


def join_abouts(folder: Path, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What made a folder of embeddings, from what its parts say in order.

    Raises:
        ValueError: parts are missing, or were made by different models.
    """
    stop, total, digest = 0, abouts[0]["items"]["total"], hashlib.sha256()
    for about in abouts:
        items = about["items"]
        if items["start"] != stop:
            break
        stop = items["stop"]
        digest.update(items["source"].encode())
    if stop != total or abouts[-1]["items"]["stop"] != total:
        there = sum(about["items"]["stop"] - about["items"]["start"] for about in abouts)
        raise ValueError(
            f"{folder} holds {there} of {total} items: give the command of `onepeace embed` again, which goes on"
        )
    if len({about["model"] for about in abouts}) > 1:
        raise ValueError(f"{folder} has parts of different models: embed anew into another folder")
    skipped = {key: error for about in abouts for key, error in about["items"]["skipped"].items()}
    items = {"start": 0, "stop": total, "total": total, "source": digest.hexdigest()[:16], "skipped": skipped}
    return {**abouts[0], "items": items}


def read_about(path: Path) -> dict[str, Any]:
    """What made a file or a folder of embeddings.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no file of embeddings, or a folder that is not complete.
    """
    if path.is_dir() and (parts := part_paths(path)):
        return join_abouts(path, [read_about(part) for part in parts])
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of embeddings {path}; make one with `onepeace embed`")
    if path.suffix not in EXTENSIONS:
        raise ValueError(f"{path} is no file of embeddings: their extension is {' or '.join(EXTENSIONS)}")
    try:
        if path.suffix == ".parquet":
            about = json.loads((parquet.read_schema(path).metadata or {})[_KEY])
        else:
            with np.load(path, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
    except (pa.ArrowException, BadZipFile, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or not written by `onepeace embed` ({_first_line(error)})") from error
    if not isinstance(about, dict) or about.get("format_version") != FORMAT_VERSION:
        version = about.get("format_version") if isinstance(about, dict) else None
        raise ValueError(f"{path} has format_version {version!r}; this release reads {FORMAT_VERSION}")
    return about


def read_embeddings(path: Path, rows: int = 65_536) -> Iterator[tuple[list[str], np.ndarray, list[str]]]:
    """A file or folder of embeddings, some rows at a time.

    Yields:
        ids, (N, d) float32 embeddings, and the texts, which are none unless texts were embedded.
    """
    for table in _tables(path, rows, None):
        texts = table["text"].to_pylist() if "text" in table.column_names else []
        yield table["id"].to_pylist(), unit_length(stored_embeddings(table)), texts


def read_stored(path: Path, rows: int = 65_536) -> Iterator[np.ndarray]:
    """(N, d) embeddings of a file or folder as they are stored, some rows at a time."""
    for table in _tables(path, rows, ["embedding"]):
        yield stored_embeddings(table)


def _tables(path: Path, rows: int, columns: list[str] | None) -> Iterator[pa.Table]:
    if path.is_dir():
        for part in part_paths(path):
            yield from _tables(part, rows, columns)
    elif path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=columns):
                yield pa.Table.from_batches([batch])
    else:
        with np.load(path, allow_pickle=False) as arrays:
            embeddings = arrays["embeddings"]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
            found = {"id": arrays["ids"].tolist(), "embedding": flat}
            if "texts" in arrays:
                found["text"] = arrays["texts"].tolist()
            yield pa.table(found)


class Rows:
    """Single rows of a file or folder of embeddings, by number; of Parquet only the row groups that hold them are read.

    Args:
        path: of the file or folder.
    """

    def __init__(self, path: Path) -> None:
        self._arrays: dict[str, np.ndarray] | None = None
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                self._arrays = {name: arrays[name] for name in arrays.files if name != "about"}
            sizes.append(len(self._arrays["ids"]))
        else:
            for part in part_paths(path) if path.is_dir() else [path]:
                metadata = parquet.read_metadata(part)
                self._groups += [(part, group) for group in range(metadata.num_row_groups)]
                sizes += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._stops = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def item(self, row: int) -> tuple[str, str]:
        """The id of a row, and its text, "" where it is none."""
        if self._arrays is not None:
            return str(self._arrays["ids"][row]), str(self._arrays["texts"][row]) if "texts" in self._arrays else ""
        file, group, at = self._find(row)
        names = [name for name in ("id", "text") if name in file.schema_arrow.names]
        table = file.read_row_group(group, names)
        return table["id"][at].as_py(), table["text"][at].as_py() if "text" in names else ""

    def embedding(self, row: int) -> np.ndarray:
        """(d,) float32 of unit length."""
        if self._arrays is not None:
            return np.asarray(self._arrays["embeddings"][row])
        file, group, at = self._find(row)
        embedding: np.ndarray = unit_length(stored_embeddings(file.read_row_group(group, ["embedding"]))[at : at + 1])
        return embedding[0]

    def _find(self, row: int) -> tuple[parquet.ParquetFile, int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"there is no row {row}; there are {len(self)}")
        number = int(np.searchsorted(self._stops, row, side="right"))
        path, group = self._groups[number]
        return parquet.ParquetFile(path), group, row - (int(self._stops[number - 1]) if number else 0)


def to_table(chunk: Chunk, about: dict[str, Any]) -> pa.Table:
    """A chunk as a table of ids, embeddings (N, width) in the type that ``about`` says, and texts where it has them."""
    flat = np.concatenate(chunk.embeddings) if chunk.embeddings else np.empty(0, np.float32)
    storage = about.get("storage", "float32")
    flat = np.rint(flat * INT8).astype(np.int8) if storage == "int8" else flat.astype(storage)
    columns: dict[str, pa.Array] = {
        "id": _strings(chunk.ids),
        "embedding": pa.FixedSizeListArray.from_arrays(_numbers(flat), about["width"]),
    }
    if modality(about["modality"]).reads_text:
        columns["text"] = _strings(chunk.texts)
    return pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()})


# pa.array and parquet.read_table import pandas, where it is installed, which takes longer than to embed an image.
def _read(chunk: Path) -> pa.Table:
    with parquet.ParquetFile(chunk) as file:
        return file.read()


def _strings(texts: Sequence[str]) -> pa.Array:
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _numbers(array_N: np.ndarray) -> pa.Array:
    array_N = np.ascontiguousarray(array_N)
    return pa.Array.from_buffers(pa.from_numpy_dtype(array_N.dtype), len(array_N), [None, pa.py_buffer(array_N)])


def stored_embeddings(table: pa.Table) -> np.ndarray:
    """(N, d) as they are stored: float32, float16 or int8."""
    column = table["embedding"].combine_chunks()
    array: np.ndarray = np.from_dlpack(column.flatten())
    return array.reshape(-1, column.type.list_size)


def unit_length(stored_Nd: np.ndarray) -> np.ndarray:
    """(N, d) float32 of unit length, whatever they are stored as."""
    if stored_Nd.dtype == np.float32:
        return stored_Nd
    array_Nd = stored_Nd.astype(np.float32)
    return array_Nd / np.linalg.norm(array_Nd, axis=1, keepdims=True).clip(1e-6)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
