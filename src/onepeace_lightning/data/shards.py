"""Folders of WebDataset shards with a manifest of exact counts: writing, checking, reading.

A stream folder holds ``00000.tar, 00001.tar …`` and ``manifest.json``. A sample is the files that share one key: an
image, a recording, a caption (``txt``, UTF-8) or metadata (``json``). The manifest's counts make the position of every
sample known without opening a shard, which is what exact splitting and resuming rest on.
"""

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from webdataset import tariterators

from onepeace_lightning.data.counting import count_shards, listed_tars, sized, stated_counts
from onepeace_lightning.data.data_types import ANSWERS, DataType, of_modalities
from onepeace_lightning.data.data_types import data_type as parse_data_type
from onepeace_lightning.data.storage import Storage, StorageConfig, expand, is_url, join
from onepeace_lightning.data.tars import ShardError, ShardReader, check_plain, damage, tar_samples
from onepeace_lightning.modalities.registry import modality_of

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CAPTION = "__caption__"
"""In a raw sample, which of its captions is meant."""
UNFINISHED = ".unfinished"
"""A file that lies in a folder while shards are written into it."""


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: in the folder.
        samples: how many it holds.
        bytes: its size.
        captions: of all its samples together, where samples have several captions each.
        most_captions: of one of its samples.
        caption: which caption of each sample is meant, where a shard stands for one of them (not part of the file).
    """

    name: str
    samples: int
    bytes: int
    captions: int | None = None
    most_captions: int | None = None
    caption: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Manifest:
    """What a set of shards holds.

    Attributes:
        folder: where it is, a folder or a URL (not part of the file).
        data_type: what the samples are, see ``data_types``.
        shards: in the order of the file.
        source: where the data comes from.
        license: under which terms.
        about: anything else worth knowing, e.g. split or seed.
        storage: how shards at a URL are read (not part of the file).
    """

    folder: str | Path
    data_type: str
    shards: tuple[Shard, ...]
    source: str
    license: str
    about: dict[str, Any] = field(default_factory=dict)
    storage: StorageConfig = field(default=StorageConfig(), compare=False)

    @property
    def samples(self) -> int:
        """Samples in all shards together."""
        return int(self.sizes.sum())

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(S,) samples of each shard."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def rows(self) -> int:
        """Rows of a pass of training: every caption of a sample is one, beside the same item."""
        return sum(shard.samples if shard.captions is None else shard.captions for shard in self.shards)

    def for_training(self) -> "Manifest":
        """The shards of a pass of training: one that holds several captions of each item stands once for every caption.

        Raises:
            ShardError: samples have several captions, and the manifest does not say how many.
        """
        if not _captioned(parse_data_type(self.data_type)):
            return self
        if any(shard.most_captions is None for shard in self.shards):
            raise ShardError(
                f"{self.folder}: its manifest does not say how many captions its samples have: count them with"
                f" `onepeace shards manifest {self.folder}`"
            )
        numbered = [replace(s, caption=n) for s in self.shards for n in range(s.most_captions or 0)]
        return replace(self, shards=tuple(numbered))

    def path(self, shard: Shard) -> str:
        """Where a shard is."""
        return join(self.folder, shard.name)

    def reader(self, shard: Shard) -> ShardReader:
        """What reads a shard's samples by their index."""
        return ShardReader(Storage(self.storage), self.path(shard), shard.name, shard.samples, shard.bytes)

    def fingerprint(self) -> str:
        """Short hash of the data type and of every shard's name, count and size: equal for equal data."""
        shards = sorted((shard.name, shard.samples, shard.bytes) for shard in self.shards)
        return hashlib.sha256(json.dumps([self.data_type, shards]).encode()).hexdigest()[:16]

    def save(self, path: str | Path | None = None) -> None:
        """Write ``manifest.json`` into the folder, or a file elsewhere that says where the folder is."""
        content = {
            "data_type": self.data_type,
            "samples": self.samples,
            **({} if path is None else {"folder": str(self.folder)}),
            "shards": [shard.to_dict() for shard in self.shards],
            "source": self.source,
            "license": self.license,
            "about": self.about,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        Storage(self.storage).write(join(self.folder, MANIFEST) if path is None else str(path), text.encode())


Paths = str | Path | Sequence[str]
"""A folder of shards or its URL; a manifest that lies elsewhere (``….json``); or shards themselves (``….tar``), as a
list or with braces: ``s3://bucket/{00000..00999}.tar``."""

COUNTED_AT_START = 1000
"""Shards without a manifest that are counted when they are opened; for more, use ``onepeace shards manifest``."""

_known: dict[str, tuple[object, Manifest]] = {}


def read_manifest(paths: Paths, storage: StorageConfig = StorageConfig()) -> Manifest:  # noqa: B008 (frozen)
    """What shards there are and how many samples each has; no shard is looked at where a manifest says it.

    A local folder's manifest is checked against the names of its files; sizes are checked when a shard is opened. What
    was read before and has not changed is not read again. Without a manifest the counts come from the statistics that
    img2dataset writes, or else the samples are counted, once: the counts are kept in the cache.

    Args:
        paths: where the shards are.
        storage: how files at URLs are read.

    Raises:
        ShardError: there are no shards, or the manifest is not sound, or its files are not those of the folder.
        StorageError: the manifest cannot be read.
    """
    files, key = Storage(storage), _key(paths, storage)
    if (tars := _tar_paths(paths)) is not None:
        if key in _known:
            return _known[key][1]
        folder = os.path.commonpath(tars) if len(tars) > 1 else os.path.dirname(tars[0])
        folder = folder.replace(":/", "://", 1) if is_url(tars[0]) and not is_url(folder) else folder
        names = {path.removeprefix(folder).lstrip("/"): size for path, size in sized(files, tars).items()}
        found = _without_manifest(files, folder, names)
        _known[key] = None, found
        return found
    assert isinstance(paths, str | Path)
    elsewhere = str(paths).endswith(".json")
    file = str(paths) if elsewhere else join(paths, MANIFEST)
    state = (files.state(file), None if is_url(file) or elsewhere else files.state(str(paths)))
    if state[0] is not None and key in _known and _known[key][0] == state:
        return _known[key][1]
    if state[0] is not None:
        manifest = _parsed(file, files.read(file), None if elsewhere else paths, storage)
        _known[key] = state, manifest
        return manifest
    if elsewhere:
        raise ShardError(f"there is no manifest {file}")
    if not is_url(paths) and not Path(paths).is_dir():
        raise ShardError(f"there is no folder {paths}: give one that holds shards (*.tar) and {MANIFEST}")
    if (Path(paths) / UNFINISHED).exists():
        raise ShardError(f"{paths}: its writing was interrupted ({UNFINISHED} is there): write the shards again")
    return _without_manifest(files, str(paths), listed_tars(files, str(paths)))


def known(paths: Paths, storage: StorageConfig) -> object:
    """What this process knows of a manifest that it has read, for another one to ``remember``; None if nothing."""
    return _known.get(_key(paths, storage))


def remember(paths: Paths, storage: StorageConfig, what: Any) -> None:
    """Take over what another process knows: ``read_manifest`` then reads only what has changed since."""
    _known[_key(paths, storage)] = what


def _key(paths: Paths, storage: StorageConfig) -> str:
    return repr((str(paths) if isinstance(paths, Path) else paths, storage))


def write_manifest(
    folder: str | Path,
    data_type: str,
    *,
    source: str,
    license: str,
    about: dict[str, Any] | None = None,
    out: str | Path | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    storage: StorageConfig = StorageConfig(),  # noqa: B008 (frozen)
) -> Manifest:
    """Read every shard of a folder, count and check its samples, and write the manifest.

    What was counted is kept if it stops, or if shards are bad: only the others are read the next time.

    Args:
        folder: of the shards, or its URL.
        data_type: what the samples are.
        source: where the data comes from.
        license: under which terms.
        about: free-form notes.
        out: file to write instead of the folder's ``manifest.json``.
        workers: processes that count.
        skip_bad: leave bad shards out of the manifest.
        storage: how files at URLs are read.

    Raises:
        ShardError: no shards, or bad ones: damaged, empty, or with a sample that lacks a field of the data type.
    """
    kind = _data_type(data_type)
    if not is_url(folder) and not Path(folder).is_dir():
        raise ShardError(f"there is no folder {folder}: give one that holds shards (*.tar)")
    sizes = listed_tars(Storage(storage), str(folder))
    place = _kept_counts(storage, "") if is_url(folder) or out is not None else Path(folder)
    name = hashlib.sha256(f"{folder} {data_type}".encode()).hexdigest()[:16]
    counts, problems = count_shards(
        storage, str(folder), sizes, partial(_check_fields, kind=kind), workers=workers,
        captions=count_captions if _captioned(kind) else None, progress=place / f".manifest-{name}.jsonl",
    )  # fmt: skip
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems)
        if not skip_bad:
            raise ShardError(
                f"{folder}: {len(problems)} of {len(sizes)} shards are bad:{shown}\nMend them and run this again (the "
                "others are not read again), or leave them out with skip_bad"
            )
        log.warning("%s: %d of %d shards are left out:%s", folder, len(problems), len(sizes), shown)
    if not counts:
        raise ShardError(f"{folder}: no shard is sound")
    shards = tuple(Shard(**asdict(count)) for count in counts)
    manifest = Manifest(folder, data_type, shards, source, license, about or {}, storage)
    manifest.save(out)
    return manifest


def found_type(storage: StorageConfig, folder: str | Path, name: str, size: int) -> str:
    """What the samples of a shard are, by the files of its first one.

    Raises:
        ShardError: it is damaged or empty, or its files make no data type.
    """
    path = join(folder, name)
    with damage(path), Storage(storage).open(path, size) as stream:
        check_plain(path, stream)
        first = next(tar_samples(path, stream), None)
    if first is None:
        raise ShardError(f"{path}: a shard without a sample: delete it")
    try:
        present = {found[0] for extension, _, _ in first.files if (found := modality_of(f"_.{extension}"))}
        return str(of_modalities(present))
    except ValueError as error:
        raise ShardError(f"{path}: {error}") from error


def _tar_paths(paths: Paths) -> list[str] | None:
    """Shards that are given themselves; None for a folder or a manifest."""
    if isinstance(paths, str | Path):
        if "{" not in str(paths) and not str(paths).endswith(".tar"):
            return None
        paths = [str(paths)]
    expanded = expand(paths)
    if wrong := [path for path in expanded if not path.endswith(".tar")]:
        raise ShardError(f"{wrong[0]} is no shard: in a list or with braces, give files that end in .tar")
    if not expanded:
        raise ShardError("an empty list of shards: give at least one")
    if len(set(expanded)) < len(expanded):
        raise ShardError("a shard is given twice")
    return [path if is_url(path) else os.path.abspath(path) for path in expanded]


def _without_manifest(files: Storage, folder: str, sizes: Mapping[str, int]) -> Manifest:
    kept = _kept_counts(files.config, json.dumps([folder, sorted(sizes.items())]))
    if kept.exists():
        return _parsed(str(kept), kept.read_bytes(), folder, files.config)
    stated = stated_counts(files, folder, sizes)
    todo = {name: size for name, size in sizes.items() if name not in stated}
    if len(todo) > COUNTED_AT_START:
        raise ShardError(
            f"{folder} has {len(todo)} shards but no {MANIFEST}: make one with `onepeace shards manifest {folder}`"
        )
    first = next(name for name in sizes if name not in stated or stated[name].samples)
    data_type = found_type(files.config, folder, first, sizes[first])
    if todo:
        log.warning("%s: no %s, so %d shards are counted now", folder, MANIFEST, len(todo))
    check = partial(_check_fields, kind=_data_type(data_type))
    counts, problems = count_shards(files.config, folder, todo, check, workers=16, processes=False)
    if problems:
        raise ShardError(f"{folder}: {len(problems)} of {len(sizes)} shards are bad:\n  " + "\n  ".join(problems))
    every = stated | {count.name: count for count in counts}
    shards = tuple(Shard(name, every[name].samples, size) for name, size in sizes.items() if every[name].samples)
    manifest = Manifest(folder, data_type, shards, folder, "not stated", {}, files.config)
    manifest.save(kept)
    return manifest


def _kept_counts(storage: StorageConfig, what: str) -> Path:
    """Where counts that were made once are kept; the folder if they are of nothing."""
    folder = storage.folder("counts")
    return folder / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.json" if what else folder


def _parsed(file: str, text: bytes, folder: str | Path | None, storage: StorageConfig) -> Manifest:
    """A manifest's content; a folder that it is not the manifest of is named in it."""
    remake = _remake(folder or file)
    try:
        content = json.loads(text)
        folder = folder or content["folder"]
        shards = tuple(
            Shard(str(s["name"]), int(s["samples"]), int(s["bytes"]), s.get("captions"), s.get("most_captions"))
            for s in content["shards"]
        )
        total = int(content["samples"])
        about = content.get("about", {})
        manifest = Manifest(folder, content["data_type"], shards, content["source"], content["license"], about, storage)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{file} is not a manifest ({type(error).__name__}: {error}): {remake}") from error
    _data_type(manifest.data_type)
    listed = {shard.name for shard in shards}
    wrong = []
    if file == join(folder, MANIFEST) and not is_url(folder):
        found = {name for name in os.listdir(folder) if name.endswith(".tar")}
        wrong += [f"{name}: listed, but there is no such file" for name in sorted(listed - found) if "/" not in name]
        wrong += [f"{name}: not listed" for name in sorted(found - listed)]
    if len(listed) < len(shards):
        wrong.append("a shard is listed twice")
    wrong += [f"{s.name}: {s.samples} samples listed, at least 1 is needed" for s in shards if s.samples < 1]
    if total != manifest.samples:
        wrong.append(f"{total} samples listed in all, the shards' counts add up to {manifest.samples}")
    if wrong:
        raise ShardError(f"{file} disagrees with its folder:\n  " + "\n  ".join(wrong) + f"\n{remake}")
    return manifest


def read_shard(manifest: Manifest, shard: Shard, wanted: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read some samples of a shard, in order, without decoding.

    Args:
        manifest: the stream folder's.
        shard: one of its shards.
        wanted: indices in the shard.

    Yields:
        Index in the shard and ``{"__key__": …, "__shard__": name, extension: bytes …}``.

    Raises:
        ShardError: the tar is damaged, or (seen when its end is read) holds another number of samples than listed.
    """
    with closing(manifest.reader(shard)) as reader:
        for index in sorted(wanted):
            yield index, reader.read(index)


class ShardReaders:
    """The shards that one worker has open, the last used ones.

    A shard that cannot be read stays so: its samples are the error.

    Args:
        manifest: the stream folder's.
        most: open shards.
    """

    def __init__(self, manifest: Manifest, most: int) -> None:
        self._manifest, self._most, self._remote = manifest, most, is_url(manifest.folder)
        self._open: OrderedDict[int, ShardReader | ShardError] = OrderedDict()

    def read(self, shard: int, index: int) -> dict[str, Any] | ShardError:
        """A sample by the indices of its shard and in it; ``CAPTION`` says which caption is meant, if only one is."""
        reader = self._open.get(shard)
        if reader is None:
            while len(self._open) >= self._most:
                self._close(self._open.popitem(last=False)[1])
            reader = self._open[shard] = self._manifest.reader(self._manifest.shards[shard])
        self._open.move_to_end(shard)
        if isinstance(reader, ShardError):
            return reader
        try:
            sample = reader.read(index)
        except ShardError as error:
            reader.close()
            self._open[shard] = error
            return error
        if (caption := self._manifest.shards[shard].caption) is not None:
            sample[CAPTION] = caption
        return sample

    def soon(self, shards: Iterable[int]) -> None:
        """Fetch these in the background, in this order."""
        if not self._remote:
            return
        files = Storage(self._manifest.storage)
        files.prefetch([(self._manifest.path(s), s.bytes) for s in map(self._manifest.shards.__getitem__, shards)])

    def close(self) -> None:
        """Close all files."""
        for reader in self._open.values():
            self._close(reader)

    def _close(self, reader: ShardReader | ShardError) -> None:
        if isinstance(reader, ShardReader):
            reader.close()


class ShardWriter:
    """Write samples into shards; the manifest is written on leaving the ``with`` block without an error.

    The same samples give the same bytes: no times, users or machine names are stored.

    Args:
        folder: made if missing.
        data_type: what the samples are, see ``data_types``.
        source: where the data comes from.
        license: under which terms.
        samples_per_shard: the last shard may have fewer.
        about: free-form notes for the manifest.
        overwrite: delete the shards and manifest that are there, instead of refusing.

    Raises:
        ShardError: unknown data type, folder in use, or nothing written.
    """

    def __init__(
        self,
        folder: str | Path,
        data_type: str,
        *,
        source: str,
        license: str,
        samples_per_shard: int = 1000,
        about: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self._kind = _data_type(data_type)
        if samples_per_shard < 1:
            raise ShardError(f"samples_per_shard={samples_per_shard}: at least 1 is needed")
        self.folder = Path(folder)
        self.data_type = data_type
        self.samples_per_shard = samples_per_shard
        self._source, self._license, self._about = source, license, about or {}
        self._shards: list[Shard] = []
        self._keys: set[str] = set()
        self._captions: list[int] = []
        self._tar: wds.TarWriter | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for path in [self.folder / MANIFEST, self.folder / UNFINISHED, *self.folder.glob("*.tar")]:
                path.unlink(missing_ok=True)
        if any(self.folder.iterdir()):
            raise ShardError(
                f"{self.folder} is not empty: choose another folder, or replace its shards (overwrite=True)"
            )
        (self.folder / UNFINISHED).touch()

    def write(self, key: str, fields: dict[str, bytes]) -> None:
        """Add a sample.

        Args:
            key: no dot after its last slash, and not twice in one shard.
            fields: extension (lower case) to the file's bytes.

        Raises:
            ShardError: a bad key, or a field that the data type needs is missing or there twice.
        """
        if any(tariterators.base_plus_ext(f"{key}.{ext}") != (key, ext) for ext in fields) or key.startswith("__"):
            raise ShardError(f"key {key!r}: a key needs a character, no dot after its last slash and no leading '__'")
        if key in self._keys:
            raise ShardError(f"key {key!r} is twice in one shard: give every sample a key of its own")
        if upper := [ext for ext in fields if ext != ext.lower()]:
            raise ShardError(f"key {key!r}: extensions {upper} must be lower case")
        _check_fields(key, fields, self._kind)
        if self._tar is None:
            # PAX headers carry keys that are long or not ASCII.
            path = self.folder / self._name()
            self._tar = wds.TarWriter(str(path), encoder=False, mtime=0, format="PAX_FORMAT", compress=False)
        self._tar.write({"__key__": key, **fields})
        self._keys.add(key)
        if _captioned(self._kind):
            self._captions.append(count_captions(fields["json"]))
        if len(self._keys) == self.samples_per_shard:
            self._finish_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_shard()
        if error is not None:
            return
        if not self._shards:
            raise ShardError(f"{self.folder}: no sample was written")
        Manifest(self.folder, self.data_type, tuple(self._shards), self._source, self._license, self._about).save()
        (self.folder / UNFINISHED).unlink()

    def _name(self) -> str:
        return f"{len(self._shards):05d}.tar"

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        name = self._name()
        captions = (sum(self._captions), max(self._captions)) if self._captions else (None, None)
        self._shards.append(Shard(name, len(self._keys), (self.folder / name).stat().st_size, *captions))
        self._keys.clear()
        self._captions.clear()


def count_captions(data: bytes) -> int:
    """Captions that a sample's ``json`` lists; 1 where it lists none, which whoever reads the sample will say."""
    try:
        captions = json.loads(data)["captions"]
    except (KeyError, TypeError, ValueError):
        return 1
    return max(1, len(captions)) if isinstance(captions, list) else 1


def _captioned(kind: DataType) -> bool:
    """Whether a sample's answer is a list of captions."""
    return kind.answer is not None and ANSWERS[kind.answer].captions


def _check_fields(key: str, fields: Collection[str], kind: DataType) -> None:
    for group in kind.fields:
        present = [ext for ext in group if ext in fields]
        if len(present) != 1:
            has = sorted(ext for ext in fields if not ext.startswith("__"))
            raise ShardError(
                f"sample {key!r} of type {str(kind)!r} needs exactly one of {', '.join(group)}; it has {', '.join(has)}"
            )


def _data_type(name: str) -> DataType:
    try:
        return parse_data_type(name)
    except ValueError as error:
        raise ShardError(str(error)) from error


def _remake(folder: str | Path) -> str:
    return f"restore the files, or count them again with `onepeace shards manifest {folder}`"
