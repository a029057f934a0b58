"""Copies of files at URLs in a folder that is kept below a size; a file can be read while it arrives."""

import hashlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

Block = Callable[[str, int, int, int], bytes]
"""Bytes start … stop - 1 of a URL's file, which has a size; raises ``StorageError`` where they cannot be read."""


class StorageError(OSError):
    """A file could not be read, after as many tries as are allowed."""


class Cache:
    """Copies of files at URLs; the least recently used ones are deleted. One process has one for each configuration.

    Args:
        folder: of the copies, shared with other processes.
        limit: bytes that they are kept below.
        step: bytes that are fetched at once.
        block: fetches them.
    """

    def __init__(self, folder: Path, limit: float, step: int, block: Block) -> None:
        self._folder, self._limit, self._step, self._block = folder, limit, step, block
        self._lock = threading.Condition()
        self._arriving: dict[Path, Arriving] = {}
        self._soon: deque[tuple[str, int]] = deque()
        self._prefetcher: threading.Thread | None = None

    def open(self, url: str, size: int) -> "BinaryIO | ArrivingFile":
        """The copy, or the file on its way."""
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
        """Fetch files (URL and size) one after the other; those asked for before and not begun are forgotten."""
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

    def _fetch(self, url: str, size: int, kept: Path) -> "Arriving":
        if kept not in self._arriving:
            self._arriving[kept] = Arriving(url, size, kept, self._step, self._block, self._arrived)
        return self._arriving[kept]

    def _arrived(self, kept: Path) -> None:
        with self._lock:
            self._arriving.pop(kept, None)
        found = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # deleted or renamed by another process
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= size


class Arriving:
    """A file on its way into the cache."""

    def __init__(self, url: str, size: int, kept: Path, step: int, block: Block, done: Callable[[Path], None]) -> None:
        self.url, self.size = url, size
        self._kept, self._step, self._block, self._done = kept, step, block, done
        descriptor, part = tempfile.mkstemp(".part", kept.stem + ".", kept.parent)
        self._part, self._file = Path(part), open(descriptor, "w+b", buffering=0)  # noqa: SIM115
        self._here = 0
        self._error: OSError | None = None
        self._news = threading.Condition()
        threading.Thread(target=self._run, name=f"fetch {url}", daemon=True).start()

    def reader(self) -> "ArrivingFile":
        """The file from its beginning; it stays readable when the copy is deleted."""
        return ArrivingFile(self, os.dup(self._file.fileno()))

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
        try:
            for start in range(0, self.size, self._step):
                data = self._block(self.url, start, min(start + self._step, self.size), self.size)
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


class ArrivingFile:
    """Reads and seeks in a file that is arriving (what ``tarfile`` and a shard's reader use of a file)."""

    def __init__(self, arriving: Arriving, descriptor: int) -> None:
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

    def __enter__(self) -> "ArrivingFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
