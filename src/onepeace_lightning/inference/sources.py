"""Where items to embed come from: a folder, a glob, a column of a table, or a folder of shards."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onepeace_lightning.data.data_types import data_type
from onepeace_lightning.data.manifest import Manifest, read_manifest
from onepeace_lightning.data.sampler import read_positions
from onepeace_lightning.data.tables import TABLES, read_column
from onepeace_lightning.data.tars import find_sample
from onepeace_lightning.files import check_name, files_below, printable
from onepeace_lightning.modalities.registry import modality as find_modality
from onepeace_lightning.modalities.registry import own_files

Read = Callable[[], bytes]


@dataclass(frozen=True)
class Items:
    """Items in a fixed order.

    Attributes:
        kind: ``files``, ``rows`` (texts of a table) or ``shards``.
        root: folder that ids are relative to; the table, for texts of one.
        signatures: one per item, another one when the item changes (size and time of a file, the text itself).
        items: gives (id, what reads its bytes) of the items from a number on.
    """

    kind: str
    root: Path
    signatures: Sequence[str]
    items: Callable[[int], Iterator[tuple[str, Read]]]

    def __len__(self) -> int:
        return len(self.signatures)

    def fingerprint(self, start: int, stop: int) -> str:
        """16 hexadecimal digits of the items' signatures."""
        digest = hashlib.sha256()
        for signature in self.signatures[start:stop]:
            digest.update(signature.encode() + b"\n")
        return digest.hexdigest()[:16]


def find_items(modality: str, source: str, column: str | None = None, root: str | None = None) -> Items:
    """Find the items that a user means.

    Args:
        modality: what they are.
        source: a folder (its files and those of its sub-folders), a glob, a table (.csv, .tsv) or a folder of shards.
        column: of a table, the column with the texts or with the files' paths.
        root: folder that a table's paths are relative to; None: the table's own.

    Raises:
        ValueError: where there is nothing to embed, or the options do not fit the source.
        FileNotFoundError: where there is no such file or folder.
    """
    path = Path(source)
    is_table = path.suffix.lower() in TABLES and find_modality(modality).extension_of(path.name) is None
    given = {"column": column, "root": root}
    if not is_table and (idle := [f"--{name} {value}" for name, value in given.items() if value is not None]):
        raise ValueError(f"{source} is no table ({', '.join(TABLES)}), so {' and '.join(idle)} has no meaning")
    if is_table:
        return _table(modality, path, column, root)
    if path.is_dir():
        return _shards(modality, path) if any(path.glob("*.tar")) else _folder(modality, path)
    if path.is_file():
        return _files(path.parent, [path.name])
    if glob.has_magic(source):
        return _glob(source)
    raise FileNotFoundError(
        f"there is no {source}; accepted are a folder, a glob such as 'photos/**/*.jpg' (in quotes), a table"
        f" ({', '.join(TABLES)}) and a folder of shards"
    )


def read_item(kind: str, root: Path, modality: str, key: str) -> bytes:
    """The bytes of an item of ``files`` or ``shards`` by its id.

    Raises:
        OSError: where it is not there any more.
    """
    if kind == "files":
        return (root / key).read_bytes()
    shard, _, stem = key.partition(".tar/")
    path = root / f"{shard}.tar"
    sample = find_sample(path, stem)
    extensions = find_modality(modality).extensions
    field = next((sample[extension] for extension in extensions if extension in sample), None)
    if field is None:
        raise FileNotFoundError(f"{path} has no sample {stem!r} with {modality}")
    return field


def _folder(modality: str, folder: Path) -> Items:
    extensions = find_modality(modality).extensions
    every = [file.relative_to(folder).as_posix() for file in files_below(folder)]
    names = own_files(find_modality(modality), every)
    if not names:
        left_out = Counter(Path(name).suffix or "no extension" for name in every)
        found = ", ".join(f"{count} with {extension}" for extension, count in sorted(left_out.items())) or "no files"
        raise ValueError(
            f"{folder} and its sub-folders hold no file with an extension of {modality} ({', '.join(extensions)}),"
            f" but {found}"
        )
    return _files(folder, names)


def _glob(pattern: str) -> Items:
    root = Path(pattern)
    while glob.has_magic(str(root)):
        root = root.parent
    found = sorted(path for path in map(Path, glob.iglob(pattern, recursive=True)) if path.is_file())
    if not found:
        raise ValueError(f"no file matches {pattern}")
    return _files(root, [path.relative_to(root).as_posix() for path in found])


def _files(root: Path, names: Sequence[str]) -> Items:
    signatures = [f"{printable(name)} {_state(root / name)}" for name in names]

    def items(start: int) -> Iterator[tuple[str, Read]]:
        return ((printable(name), partial(_file, root, name)) for name in names[start:])

    return Items("files", root, signatures, items)


def _file(root: Path, name: str) -> bytes:
    check_name(name)
    return (root / name).read_bytes()


def _state(file: Path) -> str:
    try:
        state = os.stat(file)
    except OSError:  # its reading will say so
        return "not there"
    return f"{state.st_size} {state.st_mtime_ns}"


def _table(modality: str, table: Path, column: str | None, root: str | None) -> Items:
    values = read_column(table, column)
    if find_modality(modality).reads_text:
        if root is not None:
            raise ValueError(f"--root {root} has no meaning for texts of a table")

        def texts(start: int) -> Iterator[tuple[str, Read]]:
            for row, value in enumerate(values[start:], start):
                yield f"{table.name}#{row}", value.encode

        return Items("rows", table, values, texts)
    if empty := [str(row) for row, value in enumerate(values) if not value.strip()]:
        raise ValueError(f"{table} has nothing in column {column!r} of row {', '.join(empty[:10])} (counted from 0)")
    # An image with several captions is embedded once.
    return _files(table.parent if root is None else Path(root), list(dict.fromkeys(values)))


def _shards(modality: str, folder: Path) -> Items:
    manifest = read_manifest(folder)
    extensions = find_modality(modality).extensions
    if not any(set(group) <= set(extensions) for group in data_type(manifest.data_type).fields):
        raise ValueError(f"the shards of {folder} hold {manifest.data_type!r}: there is no {modality} in them")
    signatures = [f"{shard.name} {shard.bytes} {index}" for shard in manifest.shards for index in range(shard.samples)]
    return Items("shards", folder, signatures, partial(_samples, manifest, extensions))


def _samples(manifest: Manifest, extensions: Sequence[str], start: int) -> Iterator[tuple[str, Read]]:
    order = range(len(manifest.shards))
    for _, sample in read_positions(manifest, order, range(start, manifest.samples)):
        yield f"{sample['__shard__']}/{sample['__key__']}", partial(_field, sample, extensions)


def _field(sample: Mapping[str, Any], extensions: Sequence[str]) -> bytes:
    data: bytes = next(sample[extension] for extension in extensions if extension in sample)
    return data
