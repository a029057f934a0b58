"""Where bytes come from: local files, and URLs of any kind that fsspec knows through a local cache.

``s3://`` needs ``s3fs``, ``gs://`` ``gcsfs``; ``hf://``, ``https://`` and ``memory://`` need nothing more. A file at a
URL is fetched in blocks, each tried again with growing pauses when it fails, is cut off or takes too long, and goes
into a folder from which the files that were not used for longest are deleted. It can be read while it arrives.
"""

import copy
import json
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec.asyn
from braceexpand import braceexpand

from onepeace_lightning.data.cache import Cache, StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

_systems: dict[int, Any] = {}
"""Every file system that was used, those before a fork included: a worker process that let go of its parent's would
close connections, and with them file descriptors that are its own by then."""

# A fork has no thread of fsspec's event loop: calls would hang. Newer releases of fsspec reset it themselves.
if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)

_caches: dict[tuple[int, str], Cache] = {}
"""By process and configuration: what a fork left behind has no threads."""

GIB = 1 << 30
_LONGEST_PAUSE = 30.0
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""What trying again does not mend. Everything else may be the network, for which each library has errors of its own."""


@dataclass(frozen=True)
class StorageConfig:
    """How files at URLs are read.

    Attributes:
        cache: folder for copies of shards and for counts that were made once, best on a fast local disk; shared by all
            processes of a machine. None: ``onepeace_lightning`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        cache_gib: size that the copies are kept below. They should have room for twice the shards that all workers of
            the machine read at once.
        retries: further tries of a block that failed.
        pause: seconds before the first of them; each following pause is twice as long, 30 s at most.
        timeout: seconds that a block may take.
        block_mib: size of a block.
        skip_shards: shards that may be left out of a run, over all ranks, because they cannot be read; each is logged
            by its name.
        options: for fsspec, such as ``{"anon": true}`` or ``{"endpoint_url": …}``; credentials belong into the
            environment or the provider's own files.
    """

    cache: str | None = None
    cache_gib: float = 100.0
    retries: int = 6
    pause: float = 0.5
    timeout: float = 60.0
    block_mib: float = 8.0
    skip_shards: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)}: {wanted}"
            for name, wrong, wanted in (
                ("cache_gib", self.cache_gib <= 0, "above 0"),
                ("retries", self.retries < 0, "at least 0"),
                ("pause", self.pause < 0, "at least 0"),
                ("timeout", self.timeout <= 0, "above 0"),
                ("block_mib", self.block_mib <= 0, "above 0"),
                ("skip_shards", self.skip_shards < 0, "at least 0"),
            )
            if wrong
        ]
        if problems:
            raise ValueError("storage: " + "; ".join(problems))

    def folder(self, name: str) -> Path:
        """A folder in the cache, made if missing."""
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "onepeace_lightning"
        folder = Path(self.cache or default).expanduser() / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def is_url(path: str | Path) -> bool:
    """Whether a path names a protocol."""
    return "://" in str(path)


def expand(paths: str | Sequence[str]) -> list[str]:
    """Expand braces: ``"b/{00..02}.tar"`` and ``["b/00.tar", "b/{01,02}.tar"]`` give three paths."""
    return [str(path) for one in ([paths] if isinstance(paths, str) else paths) for path in braceexpand(str(one))]


def join(folder: str | Path, name: str) -> str:
    """The path of a file that is named relative to a folder, or by a path of its own."""
    return name if is_url(name) or os.path.isabs(name) else f"{str(folder).rstrip('/')}/{name}"


class Storage:
    """Reads files by path or URL.

    Args:
        config: how those at URLs are read.
    """

    def __init__(self, config: StorageConfig) -> None:
        self.config = config

    def read(self, path: str) -> bytes:
        """All bytes of a small file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it could not be read.
        """
        if not is_url(path):
            return Path(path).read_bytes()
        return self._retry(path, lambda: cast(bytes, self._call(path, "cat_file")))

    def state(self, path: str) -> object | None:
        """What changes when a file or local folder is changed; None where there is none.

        Raises:
            StorageError: it could not be asked for.
        """
        try:
            if is_url(path):
                return repr(self._retry(path, lambda: self._call(path, "info")))
            state = Path(path).stat()
        except FileNotFoundError:
            return None
        return state.st_mtime_ns, state.st_size, state.st_ino

    def write(self, path: str, content: bytes) -> None:
        """Write a small file.

        Raises:
            StorageError: it could not be written.
        """
        if is_url(path):
            self._retry(path, lambda: self._call(path, "pipe_file", content))
        else:
            Path(path).write_bytes(content)

    def listed(self, folder: str) -> dict[str, int]:
        """Name to size in bytes of the files in a folder; empty where there is no folder.

        Raises:
            StorageError: it could not be listed.
        """
        if not is_url(folder):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            return {}
        try:
            found = self._retry(folder, lambda: cast(list[dict[str, Any]], self._call(folder, "ls", detail=True)))
        except FileNotFoundError:
            return {}
        return {Path(each["name"]).name: int(each["size"] or 0) for each in found if each["type"] == "file"}

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it could not be asked for, or the server does not say.
        """
        if not is_url(path):
            return Path(path).stat().st_size
        info = self._retry(path, lambda: cast(dict[str, Any], self._call(path, "info")))
        if info.get("size") is None:
            raise StorageError(f"{path}: the server does not say how large it is")
        return int(info["size"])

    def open(self, path: str, size: int) -> BinaryIO:
        """A file to read and seek in; one at a URL is fetched meanwhile, and a read waits for its bytes.

        Args:
            path: of the file.
            size: in bytes.

        Raises:
            FileNotFoundError: there is no local file.
        """
        if not is_url(path):
            return Path(path).open("rb")
        return cast(BinaryIO, self._cache().open(path, size))

    def prefetch(self, files: Sequence[tuple[str, int]]) -> None:
        """Fetch files in the background, one after the other; those asked for before and not begun are forgotten.

        Args:
            files: path and size of each, in the order in which they will be opened.
        """
        if remote := [each for each in files if is_url(each[0])]:
            self._cache().prefetch(remote)

    def _cache(self) -> Cache:
        """The copies of this process's configuration."""
        key = (os.getpid(), json.dumps([vars(self.config)], sort_keys=True, default=str))
        if key not in _caches:
            step = max(1, int(self.config.block_mib * (1 << 20)))
            _caches[key] = Cache(self.config.folder("shards"), self.config.cache_gib * GIB, step, self.block)
        return _caches[key]

    def block(self, url: str, start: int, stop: int, size: int) -> bytes:
        """Bytes start … stop - 1 of a file.

        Raises:
            StorageError: they could not be read, or the file has another size.
        """

        def read() -> bytes:
            data = cast(bytes, self._call(url, "cat_file", start=start, end=stop))
            if len(data) == size and stop - start < size:  # a server that knows no ranges sends everything
                data = data[start:stop]
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes came where bytes {start} to {stop} were asked for")
            return data

        return self._retry(url, read)

    def _call(self, url: str, method: str, *content: Any, **arguments: Any) -> Any:
        # Made here, and kept by fsspec for this process: connections do not survive a fork.
        system, path = fsspec.core.url_to_fs(url, **copy.deepcopy(self.config.options))  # some write into them
        _systems[id(system)] = system
        if system.async_impl:
            call = getattr(system, f"_{method}")
            return fsspec.asyn.sync(system.loop, call, path, *content, timeout=self.config.timeout, **arguments)
        return getattr(system, method)(path, *content, **arguments)

    def _retry(self, url: str, call: Callable[[], T]) -> T:
        pause = self.config.pause
        for rest in range(self.config.retries, -1, -1):
            try:
                return call()
            except _FINAL:
                raise
            except ImportError as error:
                raise ImportError(f"{url}: {error}; install onepeace-lightning[cloud]") from error
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                if not rest:
                    raise StorageError(f"{url}: {reason} (after {self.config.retries + 1} tries)") from error
                log.info("%s: %s; trying again", url, reason)
            # Not all processes at once; and from no generator that training draws from.
            time.sleep(pause * random.Random(os.urandom(8)).uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("the last try returns or raises")
