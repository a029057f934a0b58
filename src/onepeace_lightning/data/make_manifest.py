"""Counting the samples of shards that were made elsewhere: ``onepeace shards manifest``."""

import hashlib
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from onepeace_lightning.data.counting import cores, count_shards, listed_tars
from onepeace_lightning.data.manifest import (
    MANIFEST,
    Manifest,
    check_fields,
    count_captions,
    found_type,
    has_captions,
    known_type,
)
from onepeace_lightning.data.storage import Storage, StorageConfig, is_url, join
from onepeace_lightning.data.tars import ShardError

log = logging.getLogger(__name__)


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
    kind = known_type(data_type)
    if not is_url(folder) and not Path(folder).is_dir():
        raise ShardError(f"there is no folder {folder}: give one that holds shards (*.tar)")
    sizes = listed_tars(Storage(storage), str(folder))
    place = storage.folder("counts") if is_url(folder) or out is not None else Path(folder)
    name = hashlib.sha256(f"{folder} {data_type}".encode()).hexdigest()[:16]
    shards, problems = count_shards(
        storage, str(folder), sizes, partial(check_fields, kind=kind), workers=workers,
        captions=count_captions if has_captions(kind) else None, progress=place / f".manifest-{name}.jsonl",
    )  # fmt: skip
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems)
        if not skip_bad:
            raise ShardError(
                f"{folder}: {len(problems)} of {len(sizes)} shards are bad:{shown}\nMend them and run this again (the "
                "others are not read again), or leave them out with skip_bad"
            )
        log.warning("%s: %d of %d shards are left out:%s", folder, len(problems), len(sizes), shown)
    if not shards:
        raise ShardError(f"{folder}: no shard is sound")
    manifest = Manifest(folder, data_type, tuple(shards), source, license, about or {}, storage)
    manifest.save(out)
    return manifest
