"""What a folder of shards holds: exact counts, kept in ``manifest.json``.

The counts make the position of every sample known without opening a shard, which is what exact splitting and resuming
rest on.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace_lightning.data.counting import Shard, count_shards, listed_tars, sized, stated_counts
from onepeace_lightning.data.data_types import ANSWERS, DataType, of_modalities
from onepeace_lightning.data.data_types import data_type as parse_data_type
from onepeace_lightning.data.storage import Storage, StorageConfig, expand, is_url, join
from onepeace_lightning.data.tars import ShardError, ShardReader, check_plain, damage, tar_samples
from onepeace_lightning.modalities.registry import modality_of

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""A file that lies in a folder while shards are written into it."""


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
        if not has_captions(parse_data_type(self.data_type)):
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
    uncounted = {name: size for name, size in sizes.items() if name not in stated}
    if len(uncounted) > COUNTED_AT_START:
        raise ShardError(
            f"{folder} has {len(uncounted)} shards but no {MANIFEST}: make one with `onepeace shards manifest {folder}`"
        )
    first = next(name for name in sizes if name not in stated or stated[name].samples)
    data_type = found_type(files.config, folder, first, sizes[first])
    if uncounted:
        log.warning("%s: no %s, so %d shards are counted now", folder, MANIFEST, len(uncounted))
    check = partial(check_fields, kind=known_type(data_type))
    counted, problems = count_shards(files.config, folder, uncounted, check, workers=16, processes=False)
    if problems:
        raise ShardError(f"{folder}: {len(problems)} of {len(sizes)} shards are bad:\n  " + "\n  ".join(problems))
    every = stated | {shard.name: shard for shard in counted}
    shards = tuple(every[name] for name in sizes if every[name].samples)
    manifest = Manifest(folder, data_type, shards, folder, "not stated", {}, files.config)
    manifest.save(kept)
    return manifest


def _kept_counts(storage: StorageConfig, what: str) -> Path:
    """Where counts that were made once are kept."""
    return storage.folder("counts") / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.json"


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
    known_type(manifest.data_type)
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


def count_captions(data: bytes) -> int:
    """Captions that a sample's ``json`` lists; 1 where it lists none, which whoever reads the sample will say."""
    try:
        captions = json.loads(data)["captions"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return 1
    return max(1, len(captions)) if isinstance(captions, list) else 1


def has_captions(kind: DataType) -> bool:
    """Whether a sample's answer is a list of captions."""
    return kind.answer is not None and ANSWERS[kind.answer].captions


def check_fields(key: str, fields: Collection[str], kind: DataType) -> None:
    """Refuse a sample without exactly one file of each field of its data type.

    Raises:
        ShardError: with what it needs and has.
    """
    for group in kind.fields:
        present = [ext for ext in group if ext in fields]
        if len(present) != 1:
            has = sorted(ext for ext in fields if not ext.startswith("__"))
            raise ShardError(
                f"sample {key!r} of type {str(kind)!r} needs exactly one of {', '.join(group)}; it has {', '.join(has)}"
            )


def known_type(name: str) -> DataType:
    """The data type of a name.

    Raises:
        ShardError: there is none.
    """
    try:
        return parse_data_type(name)
    except ValueError as error:
        raise ShardError(str(error)) from error


def _remake(folder: str | Path) -> str:
    return f"restore the files, or count them again with `onepeace shards manifest {folder}`"
