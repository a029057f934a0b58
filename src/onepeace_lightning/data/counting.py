"""Counting the samples of shards that somebody else made: in parallel, going on where it stopped, past bad shards."""

import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from onepeace_lightning.data.cache import StorageError
from onepeace_lightning.data.storage import Storage, StorageConfig, join
from onepeace_lightning.data.tars import ShardError, check_end, check_plain, damage, tar_samples
from onepeace_lightning.data.workers import end_with_parent

log = logging.getLogger(__name__)

Check = Callable[[str, Collection[str]], None]
"""Raises ``ShardError`` for a sample's key and extensions that are not as they should be."""

Captions = Callable[[bytes], int]
"""How many captions a sample's ``json`` lists."""

STATS = "_stats.json"
"""What follows a shard's stem in the file in which img2dataset writes how many samples the shard has."""


@dataclass(frozen=True)
class Shard:
    """One tar file, and what was counted of it.

    Attributes:
        name: in the folder.
        samples: how many it holds.
        bytes: its size.
        captions: of all its samples together, where samples have several captions each.
        most_captions: of one of its samples.
        caption: which caption of each sample is meant, where a shard stands for one of them (in no file).
    """

    name: str
    samples: int
    bytes: int
    captions: int | None = None
    most_captions: int | None = None
    caption: int | None = None

    @classmethod
    def counted(cls, name: str, samples: int, size: int, captions: Sequence[int]) -> Self:
        """A shard of so many bytes, with the captions of each sample where they have several."""
        return cls(name, samples, size, *((sum(captions), max(captions)) if captions else ()))

    def to_dict(self) -> dict[str, Any]:
        """What a file says of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def count_shard(
    config: StorageConfig, folder: str, name: str, size: int, check: Check, captions: Captions | None = None
) -> Shard:
    """Count and check the samples of one shard, and their captions where they have several.

    Raises:
        ShardError: it is damaged, or ``check`` says so, or it has no sample.
    """
    path = join(folder, name)
    with damage(path), Storage(config).open(path, size) as stream:
        check_plain(path, stream)
        check_end(path, stream, size)
        samples, counted = 0, []
        for sample in tar_samples(path, stream):
            check(sample.key, [extension for extension, _, _ in sample.files])
            samples += 1
            if captions is not None:
                behind = stream.tell()
                counted.append(captions(sample.read(stream, name)["json"]))
                stream.seek(behind)
    if not samples:
        raise ShardError(f"{path}: a shard without a sample: delete it")
    return Shard.counted(name, samples, size, counted)


def count_shards(
    config: StorageConfig,
    folder: str,
    sizes: Mapping[str, int],
    check: Check,
    *,
    workers: int,
    processes: bool = True,
    captions: Captions | None = None,
    progress: Path | None = None,
) -> tuple[list[Shard], list[str]]:
    """Count shards, several at a time.

    Args:
        config: how they are read.
        folder: that their names are relative to.
        sizes: name to bytes of each shard.
        check: of every sample; must be picklable with processes.
        workers: shards at a time; 1 counts here.
        processes: count in processes, else in threads.
        captions: counts those of a sample; None: samples have no list of captions.
        progress: keeps what was counted, for a call after this one was interrupted; deleted once all is counted
            without an error. Shards whose size has changed are counted again.

    Returns:
        The counts in the order of ``sizes``, and what is wrong with each shard that has none.
    """
    found = {count.name: count for count in _kept(progress) if sizes.get(count.name) == count.bytes}
    if found:
        log.info("%s: %d of %d shards are counted already", folder, len(found), len(sizes))
    uncounted = [name for name in sizes if name not in found]
    problems: dict[str, str] = {}
    count = partial(_tried, config, folder, check=check, captions=captions)
    for name, result in _results(count, {name: sizes[name] for name in uncounted}, workers, processes):
        if isinstance(result, Shard):
            found[name] = result
            if progress is not None:
                with progress.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result.to_dict()) + "\n")
        else:
            problems[name] = result
        if not (len(found) + len(problems)) % 1000:
            log.info("%s: %d of %d shards counted", folder, len(found), len(sizes))
    if progress is not None and not problems:
        progress.unlink(missing_ok=True)
    return [found[name] for name in sizes if name in found], [problems[name] for name in sizes if name in problems]


def stated_counts(storage: Storage, folder: str, sizes: Mapping[str, int]) -> dict[str, Shard]:
    """Counts that img2dataset has written beside its shards; a shard that has none, or is empty, is left out."""

    def stated(name: str) -> Shard | None:
        path = join(folder, name.removesuffix(".tar") + STATS)
        try:
            samples = int(json.loads(storage.read(path))["successes"])
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{path} is no statistics of img2dataset ({type(error).__name__}: {error})") from error
        return Shard(name, samples, sizes[name])

    with ThreadPoolExecutor(32) as pool:
        return {count.name: count for count in pool.map(stated, sizes) if count is not None}


def _results(
    count: Callable[[str, int], Shard | str], sizes: Mapping[str, int], workers: int, processes: bool
) -> Iterator[tuple[str, Shard | str]]:
    if workers <= 1:
        for name, size in sizes.items():
            yield name, count(name, size)
        return
    pool: Executor = (
        ProcessPoolExecutor(workers, initializer=end_with_parent) if processes else ThreadPoolExecutor(workers)
    )
    with pool:
        try:
            futures = {pool.submit(count, name, size): name for name, size in sizes.items()}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _tried(
    config: StorageConfig, folder: str, name: str, size: int, *, check: Check, captions: Captions | None
) -> Shard | str:
    try:
        return count_shard(config, folder, name, size, check, captions)
    except (ShardError, StorageError, FileNotFoundError) as error:
        return str(error)


def _kept(progress: Path | None) -> Iterable[Shard]:
    if progress is None or not progress.exists():
        return
    for line in progress.read_text(encoding="utf-8").splitlines():
        try:
            yield Shard(**json.loads(line))
        except (TypeError, ValueError):  # cut off where the process was killed
            continue


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def listed_tars(storage: Storage, folder: str) -> dict[str, int]:
    """Name to size of the shards in a folder, by name.

    Raises:
        ShardError: there are none, and what is there instead.
    """
    files = storage.listed(folder)
    found = {name: files[name] for name in sorted(files) if name.endswith(".tar")}
    if not found:
        compressed = sorted(name for name in files if ".tar." in name or name.endswith(".tgz"))
        hint = f"; it has {compressed[0]}, which must be decompressed" if compressed else ""
        raise ShardError(f"{folder} has no shards (*.tar): write some with `onepeace shards`{hint}")
    return found


def sized(storage: Storage, paths: Sequence[str]) -> dict[str, int]:
    """Path to size of files; ShardError where there is no such file."""

    def size(path: str) -> int:
        try:
            return storage.size(path)
        except FileNotFoundError:
            raise ShardError(f"there is no file {path}") from None

    with ThreadPoolExecutor(32) as pool:
        return dict(zip(paths, pool.map(size, paths), strict=True))
