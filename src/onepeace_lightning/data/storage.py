"""Where bytes come from: local files, and URLs of any kind that fsspec knows through a local cache.

``s3://`` needs ``s3fs``, ``gs://`` ``gcsfs``; ``hf://``, ``https://`` and ``memory://`` need nothing more. A file at a
URL is fetched in blocks, each tried again with growing pauses when it fails, is cut off or takes too long, and goes
into a folder from which the files that were not used for longest are deleted. It can be read while it arrives.
"""

import copy
import hashlib
import json
import logging
import os
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec.asyn
from braceexpand import braceexpand

log = logging.getLogger(__name__)

T = TypeVar("T")

_systems: dict[int, Any] = {}
"""Every file system that was used, those before a fork included: a worker process that let go of its parent's would
close connections, and with them file descriptors that are its own by then."""

GIB = 1 << 30
_LONGEST_PAUSE = 30.0
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""What trying again does not mend. Everything else may be the network, for which each library has errors of its own."""


class StorageError(OSError):
    """A file could not be read, after as many tries as are allowed."""


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
        return cast(BinaryIO, _Cache.of(self).open(path, size))

    def prefetch(self, files: Sequence[tuple[str, int]]) -> None:
        """Fetch files in the background, one after the other; those asked for before and not begun are forgotten.

        Args:
            files: path and size of each, in the order in which they will be opened.
        """
        if remote := [each for each in files if is_url(each[0])]:
            _Cache.of(self).prefetch(remote)

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


class _Cache:
    """The copies of this process's configuration; one for each process and folder."""

    _all: dict[tuple[int, str], "_Cache"] = {}  # noqa: RUF012 (of the process, not of a class)

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._folder = storage.config.folder("shards")
        self._lock = threading.Condition()
        self._arriving: dict[Path, _Arriving] = {}
        self._soon: deque[tuple[str, int]] = deque()
        self._prefetcher: threading.Thread | None = None

    @classmethod
    def of(cls, storage: Storage) -> "_Cache":
        key = (os.getpid(), json.dumps([vars(storage.config)], sort_keys=True, default=str))
        if key not in cls._all:
            cls._all[key] = cls(storage)
        return cls._all[key]

    def open(self, url: str, size: int) -> "BinaryIO | _ArrivingFile":
        kept = self._copy(url, size)
        with self._lock:
            try:
                file = kept.open("rb")
            except FileNotFoundError:
                return self._fetch(url, size, kept).reader()
        with suppress(FileNotFoundError):  # deleted meanwhile, what is open stays readable
            os.utime(kept)
        return file

    def prefetch(self, files: Sequence[tuple[str, int]]) -> None:
        with self._lock:
            self._soon = deque(files)
            if self._prefetcher is None:
                self._prefetcher = threading.Thread(target=self._run, name="prefetch shards", daemon=True)
                self._prefetcher.start()
            self._lock.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._soon:
                    self._lock.wait()
                url, size = self._soon.popleft()
                kept = self._copy(url, size)
                if kept.exists():
                    continue
                arriving = self._fetch(url, size, kept)
            arriving.wait()

    def _copy(self, url: str, size: int) -> Path:
        return self._folder / f"{hashlib.sha256(f'{url} {size}'.encode()).hexdigest()[:32]}.tar"

    def _fetch(self, url: str, size: int, kept: Path) -> "_Arriving":
        if kept not in self._arriving:
            self._arriving[kept] = _Arriving(self._storage, url, size, kept, self._arrived)
        return self._arriving[kept]

    def _arrived(self, kept: Path) -> None:
        with self._lock:
            self._arriving.pop(kept, None)
        limit = self._storage.config.cache_gib * GIB
        found = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # deleted or renamed by another process
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit:
                break
            path.unlink(missing_ok=True)
            total -= size


class _Arriving:
    """A file on its way into the cache."""

    def __init__(self, storage: Storage, url: str, size: int, kept: Path, done: Callable[[Path], None]) -> None:
        self.url, self.size = url, size
        self._storage, self._kept, self._done = storage, kept, done
        descriptor, part = tempfile.mkstemp(".part", kept.stem + ".", kept.parent)
        self._part, self._file = Path(part), open(descriptor, "w+b", buffering=0)  # noqa: SIM115
        self._here = 0
        self._error: OSError | None = None
        self._news = threading.Condition()
        threading.Thread(target=self._run, name=f"fetch {url}", daemon=True).start()

    def reader(self) -> "_ArrivingFile":
        """The file from its beginning; it stays readable when the copy is deleted."""
        return _ArrivingFile(self, os.dup(self._file.fileno()))

    def wait(self, upto: int | None = None) -> None:
        """Wait until so many bytes are here, by default all.

        Raises:
            StorageError: they will not come.
        """
        wanted = self.size if upto is None else min(upto, self.size)
        with self._news:
            self._news.wait_for(lambda: self._here >= wanted or self._error is not None)
            if self._here < wanted and upto is not None:
                raise StorageError(str(self._error)) from self._error

    def _run(self) -> None:
        step = max(1, int(self._storage.config.block_mib * (1 << 20)))
        try:
            for start in range(0, self.size, step):
                data = self._storage.block(self.url, start, min(start + step, self.size), self.size)
                os.pwrite(self._file.fileno(), data, start)
                with self._news:
                    self._here += len(data)
                    self._news.notify_all()
            self._part.rename(self._kept)
        except (OSError, ImportError) as error:
            with self._news:
                self._error = error if isinstance(error, OSError) else StorageError(str(error))
                self._news.notify_all()
            self._part.unlink(missing_ok=True)
        finally:
            self._done(self._kept)
            self._file.close()


class _ArrivingFile:
    """Reads and seeks in a file that is arriving (what ``tarfile`` and a shard's reader use of a file)."""

    def __init__(self, arriving: _Arriving, descriptor: int) -> None:
        self._arriving, self._descriptor, self._at = arriving, descriptor, 0

    def read(self, count: int = -1) -> bytes:
        """The next bytes, once they are here."""
        stop = self._arriving.size if count < 0 else min(self._at + count, self._arriving.size)
        self._arriving.wait(stop)
        data = b"".join(self._pieces(stop))
        self._at += len(data)
        return data

    def _pieces(self, stop: int) -> Iterator[bytes]:
        at = self._at
        while at < stop and (piece := os.pread(self._descriptor, stop - at, at)):
            yield piece
            at += len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; nothing is waited for."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._arriving.size}[whence]
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def __enter__(self) -> "_ArrivingFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
