"""``onepeace shards manifest``: counting shards that were made elsewhere."""

import json
from pathlib import Path
from typing import Any

from onepeace_lightning.data.counting import cores, listed_tars
from onepeace_lightning.data.shards import MANIFEST, Manifest, found_type, write_manifest
from onepeace_lightning.data.storage import Storage, StorageConfig, is_url, join


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
