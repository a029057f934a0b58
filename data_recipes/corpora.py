"""What the recipes of published corpora share: reading their files, finding their media, writing and counting splits.

A recipe says what its corpus is (``Corpus``, one per variant) and how a split is read (``Job`` to ``Part``);
``run`` is its command line.
"""

import argparse
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onepeace_lightning.data.items import Item, present, write_items
from onepeace_lightning.modalities.registry import modality


@dataclass(frozen=True)
class Corpus:
    """What is known of a corpus before it is read.

    Attributes:
        title: its name and version.
        source: where it is published.
        license: its terms.
        data_type: of its shards.
        published: split to the number of samples that it is published with, several where there are several releases,
            none where there is no such number.
        optional: splits that are written only when asked for.
        max_missing: share of samples whose files may be missing, as they are where everybody collects them anew.
    """

    title: str
    source: str
    license: str
    data_type: str
    published: Mapping[str, tuple[int, ...]]
    optional: tuple[str, ...] = ()
    max_missing: float = 0.0


@dataclass(frozen=True)
class Job:
    """What to read.

    Attributes:
        root: folder of the corpus's annotations.
        media: folder of its images or sounds, where the user names one.
        split: one of the corpus's.
        variant: which of the recipe's corpora.
    """

    root: Path
    media: Path | None
    split: str
    variant: str

    def file(self, *names: str) -> Path:
        """The first of these files below the root that is there.

        Raises:
            FileNotFoundError: none is.
        """
        return _first([self.root / name for name in names], Path.is_file, "file")

    def folder(self, *names: str) -> Path:
        """The folder of images or sounds: the user's, or the first of these below the root.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.media is not None:
            return _first([self.media], Path.is_dir, "folder")
        return _first([self.root / name for name in names], Path.is_dir, "folder", " (or name it with --media)")


@dataclass(frozen=True)
class Part:
    """A split's samples, and what its manifest says about them."""

    items: list[Item]
    about: dict[str, Any] = field(default_factory=dict)


def _first(paths: Sequence[Path], there: Callable[[Path], bool], what: str, hint: str = "") -> Path:
    for path in paths:
        if there(path):
            return path
    raise FileNotFoundError(f"there is no {what} {' or '.join(map(str, paths))}{hint}")


def read_csv(
    path: Path, columns: Sequence[str], *, header: bool = True, delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """Read a table.

    Args:
        path: the file, UTF-8.
        columns: those that it must have; all that it has, in order, where it has no header.
        header: whether its first line names its columns.
        delimiter: between values.

    Yields:
        Where the line is ("name, line 3"), and its values by column.

    Raises:
        ValueError: another header, a line with another number of values, or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            names = [name.strip() for name in next(reader, [])] if header else list(columns)
            if missing := [column for column in columns if column not in names]:
                raise ValueError(f"{path} has no column {', '.join(missing)}; its header is {names}")
            for values in reader:
                place = f"{path}, line {reader.line_num}"
                if len(values) != len(names):
                    raise ValueError(f"{place}: {len(values)} values instead of {len(names)} ({', '.join(names)})")
                yield place, dict(zip(names, values, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no UTF-8 table: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def entry(record: Any, name: str, kind: type | tuple[type, ...], place: object) -> Any:
    """An entry of a record that was read.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if value is None or not isinstance(value, kind):
        kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{place}: {name!r} is {value!r}; expected: {kinds}")
    return value


def spoken(captions: Iterable[str], place: object) -> dict[str, Any]:
    """The ``json`` of an image or sound with captions; blank ones are left out.

    Raises:
        ValueError: none is left.
    """
    stripped = [caption.strip() for caption in captions if caption.strip()]
    if not stripped:
        raise ValueError(f"{place}: there is no caption")
    return {"captions": stripped}


def distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Id to class name, with the id added where several have one name."""
    counts = Counter(names.values())
    return {number: name if counts[name] == 1 else f"{name} ({number})" for number, name in names.items()}


@cache
def _files(folder: Path, name: str) -> dict[str, Path]:
    """Every file of a modality below a folder by its name without extension.

    Raises:
        ValueError: there is none.
    """
    extensions = tuple(f".{extension}" for extension in modality(name).extensions)
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in extensions:
            found.setdefault(path.stem, path)
    if not found:
        raise ValueError(f"{folder} holds no {name} (*{', *'.join(extensions)}); take it out of videos with ffmpeg")
    return found


def find_file(folder: Path, name: str, *stems: str) -> Path:
    """The first file of a modality below a folder that has one of these names without extension.

    A file that is missing if none has.
    """
    files = _files(folder, name)
    return next((files[stem] for stem in stems if stem in files), folder / f"{stems[0]}.{modality(name).extensions[0]}")


def audio_visual(job: "Job", stem: str, *, frame: bool) -> tuple[tuple[str, Path], ...]:
    """The sound of a clip and, if asked for, a frame of it, both called as the clip is."""
    files = (("audio", find_file(job.folder("audio"), "audio", stem)),)
    return (("image", find_file(job.folder("frames"), "image", stem)), *files) if frame else files


def run(
    recipe: str,
    corpora: Mapping[str, Corpus],
    read: Callable[[Job], Part],
    arguments: Sequence[str] | None = None,
    *,
    fields: Callable[[Item], dict[str, bytes]] = Item.fields,
) -> None:
    """A recipe's command line: read every split, then write them, then print their counts beside the published ones.

    Args:
        recipe: the module's name.
        corpora: variant to what it is; the first is the default.
        read: reads one split of one variant.
        arguments: the command line; None takes the process's own.
        fields: an item's bytes by file extension.

    Raises:
        SystemExit: the files are not as they should be; the message says which.
    """
    options = _parser(recipe, corpora).parse_args(arguments)
    variant = getattr(options, "variant", next(iter(corpora)))
    corpus = corpora[variant]
    try:
        splits = _splits(corpus, options.splits)
        limit = corpus.max_missing if options.max_missing is None else options.max_missing
        parts = {split: read(Job(options.root, options.media, split, variant)) for split in splits}
        there = {split: present(part.items, split, limit) for split, part in parts.items()}
        _check_disjoint(parts)
        for split, part in parts.items():
            about = {
                "corpus": corpus.title,
                "split": split,
                "listed": len(part.items),
                "missing": len(part.items) - len(there[split]),
                "published": list(corpus.published[split]),
            }
            write_items(
                options.out / split / corpus.data_type,
                there[split],
                corpus.data_type,
                source=corpus.source,
                license=corpus.license,
                about={**about, **part.about},
                samples_per_shard=options.samples_per_shard,
                overwrite=options.overwrite,
                read=fields,
            )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    _report(corpus, {split: (len(part.items), len(there[split])) for split, part in parts.items()})


def _parser(recipe: str, corpora: Mapping[str, Corpus]) -> argparse.ArgumentParser:
    corpus = next(iter(corpora.values()))
    parser = argparse.ArgumentParser(
        prog=f"python -m data_recipes.{recipe}", description=f"Make shards of {corpus.title.partition(',')[0]}."
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the corpus, as it is published")
    parser.add_argument("--out", type=Path, required=True, help="folder to write <split>/<data type>/ into")
    if len(corpora) > 1:
        parser.add_argument(
            "--variant", choices=list(corpora), default=next(iter(corpora)), help="(default: %(default)s)"
        )
    names = list(dict.fromkeys(split for each in corpora.values() for split in each.published))
    parser.add_argument("--splits", nargs="+", choices=names, help="which to write")
    parser.add_argument("--media", type=Path, help="folder of the images or sounds, where it is not below --root")
    parser.add_argument(
        "--max-missing",
        type=float,
        help=f"greatest share of samples whose files may be missing (default: {corpus.max_missing:g})",
    )
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are there")
    return parser


def _splits(corpus: Corpus, asked: list[str] | None) -> list[str]:
    if asked is None:
        return [split for split in corpus.published if split not in corpus.optional]
    if unknown := [split for split in asked if split not in corpus.published]:
        raise ValueError(f"{corpus.title} has no split {', '.join(unknown)}; it has {', '.join(corpus.published)}")
    return asked


def _check_disjoint(parts: Mapping[str, Part]) -> None:
    owners: dict[str, str] = {}
    for split, part in parts.items():
        for item in part.items:
            if owners.setdefault(item.key, split) != split:
                raise ValueError(f"the sample {item.key!r} is in the splits {owners[item.key]} and {split}")


def _report(corpus: Corpus, counts: Mapping[str, tuple[int, int]]) -> None:
    """Print what was listed and written beside what is published, and a warning where they differ."""
    table = Table("split", "listed", "published", "missing", "written", title=corpus.title)
    warnings = []
    for split, (listed, written) in counts.items():
        published = " or ".join(f"{count:,}" for count in corpus.published[split])
        table.add_row(split, f"{listed:,}", published or "-", f"{listed - written:,}", f"{written:,}")
        if published and listed not in corpus.published[split]:
            warnings.append(f"warning: {split}: {listed:,} samples are listed, {published} are published")
    Console().print(table)
    for warning in warnings:
        print(warning)
