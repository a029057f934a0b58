"""Where the samples of a stream come from: one set of shards, or several that are mixed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import distributed as dist

from onepeace_lightning.data.manifest import Manifest, Paths, known, read_manifest, remember
from onepeace_lightning.data.storage import StorageConfig
from onepeace_lightning.data.tars import ShardError


@dataclass
class Source:
    """One of several sets of shards that a stream mixes.

    Attributes:
        path: where its shards are, see ``manifest.Paths``.
        weight: its part of every batch, beside the other sources' weights; its number of samples if None (then none
            may have one).
        name: what it is called in logs; the path if None.
    """

    path: str | list[str]
    weight: float | None = None
    name: str | None = None


def shared_manifest(paths: Paths, storage: StorageConfig = StorageConfig()) -> Manifest:  # noqa: B008 (frozen)
    """``read_manifest``; in a process group the first rank reads and tells the others, a collective call.

    Raises:
        ShardError, StorageError: on all ranks alike.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return read_manifest(paths, storage)
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            told = [(read_manifest(paths, storage), known(paths, storage))]
        except (ShardError, OSError) as error:
            told = [error]
    dist.broadcast_object_list(told)
    if isinstance(told[0], Exception):
        raise told[0]
    manifest, what = told[0]
    if what is not None:
        remember(paths, storage, what)
    return cast(Manifest, manifest)


def as_sources(paths: Paths | Sequence[Source]) -> list[Source]:
    """Sources as they are; paths as one source without a name."""
    if isinstance(paths, str | Path):
        return [Source(str(paths))]
    given = list(paths)
    if all(isinstance(each, Source) for each in given):
        return cast(list[Source], given)
    return [Source([str(each) for each in given])]


def named(paths: Paths) -> str:
    """Paths in a few words, for messages."""
    if isinstance(paths, str | Path):
        return str(paths)
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
