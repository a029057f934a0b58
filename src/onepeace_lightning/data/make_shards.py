"""Shards from a user's own files: a table of pairs, or a folder of files.

Every file is checked before anything is written. What they write is laid out as training wants it::

    out/train/<data type>/   shards and manifest.json
    out/val/<data type>/     the same, where a share is kept for validation
    out/tokenizer/           a SentencePiece vocabulary of the training captions, where there is text
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace_lightning.data.counting import cores, listed_tars
from onepeace_lightning.data.data_types import DataType, of_modalities
from onepeace_lightning.data.shards import MANIFEST, Manifest, ShardWriter, found_type, write_manifest
from onepeace_lightning.data.storage import Storage, StorageConfig, is_url, join
from onepeace_lightning.data.tables import read_table
from onepeace_lightning.files import check_name, files_below, printable
from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.modalities.registry import modalities, modality, modality_of, text_modality
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

_SHOWN = 10


@dataclass
class _Item:
    """One sample to be: its place in the source, (modality, file) pairs, and its caption unless a file holds it."""

    place: str
    files: list[tuple[str, Path]]
    caption: str | None = None
    problem: str | None = None

    def fields(self) -> dict[str, bytes]:
        """Read the sample's bytes by file name ending.

        Raises:
            ValueError: a file cannot be read or decoded, or the caption has no words.
        """
        if self.problem:
            raise ValueError(self.problem)
        fields = {"json": json.dumps({"from": self.place}, ensure_ascii=False).encode()}
        for name, file in self.files:
            check_name(str(file))
            extension = modality(name).field(str(file))
            try:
                fields[extension] = file.read_bytes()
            except OSError as error:  # it names the file
                raise ValueError(str(error)) from error
            try:
                _check(modality(name)(), fields[extension])
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
        if self.caption is not None:
            text = modality(text_modality())
            _check(text(), self.caption.encode())
            fields[text.extensions[0]] = self.caption.encode()
        return fields


def _check(one: Modality, data: bytes) -> None:
    """Raise ValueError where a file's content cannot be used."""
    one.check(one.decode(data))


def from_csv(
    csv_path: str,
    *,
    out: str,
    columns: dict[str, str] | None = None,
    root: str | None = None,
    val_fraction: float = 0.0,
    samples_per_shard: int = 1000,
    vocab_size: int = 8000,
    source: str | None = None,
    license: str = "not stated",
    skip_bad: bool = False,
) -> None:
    """Make shards of the rows of a table.

    Args:
        csv_path: table with a header line, UTF-8, with commas, semicolons or tabs between the values.
        out: data set folder to write ``train/``, ``val/`` and ``tokenizer/`` into.
        columns: modality to the column with its files' paths, or with the captions; on the command line
            ``--image-col file --text-col caption``.
        root: folder that the paths are relative to; the table's own if None.
        val_fraction: fraction of the samples kept for validation, chosen by their contents: equal images, recordings
            or texts stay together, and a later run chooses the same.
        samples_per_shard: samples in each shard.
        vocab_size: the most token ids of the tokenizer.
        source: where the data is from, for the manifest; the table's name if None.
        license: the data's licence, for the manifest.
        skip_bad: leave rows out that cannot be used, instead of stopping.

    Raises:
        ValueError: the columns do not fit, or rows cannot be used (the first ten are listed).
    """
    if not columns:
        raise ValueError("no column is named; give at least one, such as --image-col file --text-col caption")
    kind = of_modalities(columns)
    folder = Path(root) if root is not None else Path(csv_path).parent
    _make(
        list(_rows(Path(csv_path), folder, columns)),
        kind,
        Path(out),
        val_fraction=val_fraction,
        samples_per_shard=samples_per_shard,
        vocab_size=vocab_size,
        source=source or Path(csv_path).name,
        license=license,
        skip_bad=skip_bad,
    )


def from_folder(
    folder: str,
    *,
    out: str,
    val_fraction: float = 0.0,
    samples_per_shard: int = 1000,
    vocab_size: int = 8000,
    source: str | None = None,
    license: str = "not stated",
    skip_bad: bool = False,
) -> None:
    """Make shards of a folder and its sub-folders; files that differ in their extension alone are one sample.

    ``cow.jpg`` with ``cow.txt`` is an image with its caption. All samples must be of one data type, which is found
    from what is there. Links are followed; hidden files and folders are left out.

    Args:
        folder: where the files are.
        out: data set folder to write ``train/``, ``val/`` and ``tokenizer/`` into.
        val_fraction: fraction of the samples kept for validation, chosen by their contents: equal images, recordings
            or texts stay together, and a later run chooses the same.
        samples_per_shard: samples in each shard.
        vocab_size: the most token ids of the tokenizer.
        source: where the data is from, for the manifest; the folder's name if None.
        license: the data's licence, for the manifest.
        skip_bad: leave samples out that cannot be used, instead of stopping.

    Raises:
        ValueError: the folder holds nothing usable, or different kinds of samples, or samples that cannot be used.
    """
    top = Path(folder)
    samples: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    if not top.is_dir():
        raise ValueError(f"there is no folder {folder}")
    for file in files_below(top):
        if found := modality_of(file.name):
            name, extension = found
            relative = file.relative_to(top).as_posix()
            samples[relative[: -len(extension) - 1]].append((name, file))
        else:
            left_out[file.suffix or "no extension"] += 1
    if left_out:
        print("left out: " + ", ".join(f"{count} with {extension}" for extension, count in sorted(left_out.items())))
    if not samples:
        known = [extension for cls in modalities().values() for extension in cls.extensions]
        raise ValueError(f"{folder} holds no file that ends in {', '.join(known)}")
    _make(
        [_Item(printable(stem), files) for stem, files in samples.items()],
        _common_type(samples),
        Path(out),
        val_fraction=val_fraction,
        samples_per_shard=samples_per_shard,
        vocab_size=vocab_size,
        source=source or top.resolve().name,
        license=license,
        skip_bad=skip_bad,
    )


def manifest(
    folder: str,
    *,
    data_type: str | None = None,
    source: str | None = None,
    license: str | None = None,
    out: str | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    cache: str | None = None,
) -> Manifest:
    """Count the samples of shards that were made elsewhere, and write their ``manifest.json``.

    Started again, it goes on where it stopped. Bad shards do not stop it: all of them are listed at the end.

    Args:
        folder: holds the shards (``*.tar``); or its URL.
        data_type: what the samples are; as in the manifest that is there, or found from the first shard, if None.
        source: where the data is from; as in the manifest that is there if None.
        license: the data's licence; as in the manifest that is there if None.
        out: file (``….json``) to write instead of the folder's ``manifest.json``; a stream's ``path`` may be it.
        workers: processes that count; one for each processor if None.
        skip_bad: leave bad shards out of the manifest, instead of ending with an error.
        cache: folder for copies of shards at a URL (``storage.StorageConfig``, whose other settings are the defaults).

    Raises:
        ValueError: there are no shards, or bad ones: damaged, or with samples that lack what the data type needs.
    """
    storage = StorageConfig(cache=cache)
    files = Storage(storage)
    path = out or join(folder, MANIFEST)
    old: dict[str, Any] = {}
    if files.state(path) is not None:
        try:
            old = dict(json.loads(files.read(path)))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON object ({error}); delete it and run this again") from error
    if not is_url(folder) and not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}: give one that holds shards (*.tar)")
    sizes = listed_tars(files, folder)
    first = next(iter(sizes))
    made = write_manifest(
        folder,
        data_type or old.get("data_type") or found_type(storage, folder, first, sizes[first]),
        source=source or old.get("source", "not stated"),
        license=license or old.get("license", "not stated"),
        about=old.get("about"),
        out=out,
        workers=workers or cores(),
        skip_bad=skip_bad,
        storage=storage,
    )
    print(f"{folder}: {made.samples} samples of {made.data_type} in {len(made.shards)} shards")
    return made


def _rows(table: Path, folder: Path, columns: Mapping[str, str]) -> Iterator[_Item]:
    """Read a table; ``columns`` maps modalities to column names."""
    header, rows = read_table(table)
    if missing := [column for column in columns.values() if column not in header]:
        raise ValueError(f"{table} has no column {', '.join(map(repr, missing))}; its columns are {header}")
    for row in rows:
        problem = None
        if row.surplus:
            problem = f"more than {len(header)} values; put quotes around values that hold the separator"
        elif empty := [column for column in columns.values() if not row.values.get(column, "").strip()]:
            problem = f"nothing in column {', '.join(map(repr, empty))}"
        values = {name: row.values.get(column, "") for name, column in columns.items()}
        caption = values.pop(text_modality(), None)
        files = [(name, folder / value) for name, value in values.items()]
        yield _Item(f"{table.name}, line {row.line}", files, caption, problem)


def _common_type(samples: Mapping[str, Sequence[tuple[str, Path]]]) -> DataType:
    """Find the one data type of a folder's samples."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for stem, files in samples.items():
        kinds[" + ".join(sorted(name for name, _ in files))].append(stem)
    if len(kinds) > 1:
        counts = "; ".join(f"{len(stems)} of {kind} (such as {stems[0]})" for kind, stems in kinds.items())
        raise ValueError(f"the folder mixes kinds of samples: {counts}. Put each kind in a folder of its own")
    names = next(iter(kinds)).split(" + ")
    if len(set(names)) < len(names):
        raise ValueError(f"each sample has {' and '.join(names)}; keep one file of each modality per stem")
    return of_modalities(names)


def _make(
    items: Sequence[_Item],
    kind: DataType,
    out: Path,
    *,
    val_fraction: float,
    samples_per_shard: int,
    vocab_size: int,
    source: str,
    license: str,
    skip_bad: bool,
) -> None:
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; give a fraction from 0 to below 1")
    splits: dict[str, list[_Item]] = {"train": [], "val": []}
    data_type, text = str(kind), modality(text_modality()).extensions[0]
    if used := [str(folder) for split in splits if (folder := out / split / data_type).exists()]:
        raise ValueError(f"{' and '.join(used)} exist already; delete them or choose another out folder")
    captions = []
    problems = []
    for item in items:
        try:
            fields = item.fields()
        except ValueError as error:
            problems.append(f"{item.place}: {error}")
            continue
        split = "val" if _position(fields, text) < val_fraction else "train"
        splits[split].append(item)
        if text in fields and split == "train":
            captions.append(modality(text_modality())().decode(fields[text]))
    _report(problems, len(items), skip_bad)
    if not splits["train"] or (val_fraction and not splits["val"]):
        counts = ", ".join(f"{len(chosen)} for {split}" for split, chosen in splits.items())
        raise ValueError(f"not enough samples: {counts}. Give more, or another val_fraction than {val_fraction}")
    # Before anything is written: a vocabulary size may be impossible.
    tokenizer = _train_tokenizer(captions, out / "tokenizer", vocab_size)

    for split, chosen in splits.items():
        if not chosen:
            continue
        # Tables and folders are sorted by class or by image; neighbours in a shard should not be.
        random.Random(0).shuffle(chosen)
        folder = out / split / data_type
        with ShardWriter(
            folder,
            data_type,
            source=source,
            license=license,
            samples_per_shard=samples_per_shard,
            about={"split": split},
        ) as writer:
            for index, item in enumerate(chosen):
                writer.write(f"{index:08d}", item.fields())
        print(f"{folder}: {len(chosen)} samples of {data_type}")
    if tokenizer is not None:
        tokenizer.save(out / "tokenizer")
        print(f"{out / 'tokenizer'}: {tokenizer.vocab_size} token ids")


def _report(problems: Sequence[str], total: int, skip_bad: bool) -> None:
    if not problems:
        return
    shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    rest = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    told = f"{len(problems)} of {total} samples cannot be used:{shown}{rest}"
    if not skip_bad:
        raise ValueError(f"{told}\nMend them, or leave them out with skip_bad")
    print(f"left out: {told}")


def _train_tokenizer(captions: Sequence[str], folder: Path, vocab_size: int) -> SentencePieceTokenizer | None:
    if not captions:
        return None
    if folder.exists():
        print(f"{folder}: kept as it is; delete it first to have one trained on these captions")
        return None
    return SentencePieceTokenizer.train(captions, vocab_size)


def _position(fields: Mapping[str, bytes], text: str) -> float:
    """A number in [0, 1) of a sample's first file, or of its text where it has no other."""
    content = next((data for name, data in fields.items() if name not in ("json", text)), fields.get(text, b""))
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) / 2**64
