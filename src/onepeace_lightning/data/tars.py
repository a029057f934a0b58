"""Tar files of samples: read by index, without extracting what is not wanted.

A sample is the files that share a key, the name up to its first dot, one after the other.
"""

import re
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from webdataset import tariterators

from onepeace_lightning.data.cache import StorageError
from onepeace_lightning.data.storage import Storage, is_url
from onepeace_lightning.files import check_fetched, is_lfs_pointer, printable

RECOUNT = "restore the file, or count the folder again with `onepeace shards manifest`"

# Files that webdataset takes for notes about a shard: in no sample.
_META = re.compile(r"__[^/]*__($|/)")
# Files that programs keep for themselves, and the folder of notes that macOS adds to archives.
_HIDDEN = re.compile(r"(^|/)(\.[^/.]|\.\.[^/]|__MACOSX/)")


class ShardError(ValueError):
    """A stream folder, its manifest or one of its shards is not what it should be."""


class ShardReader:
    """Reads a shard's samples by index, in any order. Headers are read once, as far as needed.

    Args:
        storage: where it is.
        path: of the tar.
        name: what samples say that their shard is.
        samples: that it should have.
        size: in bytes, that it should have.
    """

    def __init__(self, storage: Storage, path: str, name: str, samples: int, size: int) -> None:
        self._storage, self._path, self._name, self._samples, self._size = storage, path, name, samples, size
        self._stream: BinaryIO | None = None
        self._members: Iterator[TarSample] = iter(())
        self._found: list[TarSample] = []

    def read(self, index: int) -> dict[str, Any]:
        """A sample without decoding: ``{"__key__": …, "__shard__": name, extension: bytes …}``.

        Raises:
            ShardError: the tar is not there, not of its size, damaged, or (seen when its end is read) holds another
                number of samples.
        """
        with damage(self._path):
            if self._stream is None:
                self._stream = self._open()
                self._members = tar_samples(self._path, self._stream)
            # Looking past the last sample before handing it out: nobody need ask for one more for the check to happen.
            upto = index + 1 if index < self._samples - 1 else self._samples + 1
            self._found.extend(islice(self._members, max(0, upto - len(self._found))))
            if len(self._found) <= index or len(self._found) > self._samples:
                found = len(self._found) + sum(1 for _ in self._members)
                raise ShardError(f"{self._path}: {self._samples} samples listed, the shard has {found}: {RECOUNT}")
            return self._found[index].read(self._stream, self._name)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _open(self) -> BinaryIO:
        if not is_url(self._path):
            try:
                size = self._storage.size(self._path)
            except FileNotFoundError:
                raise ShardError(f"{self._path}: listed, but there is no such file: {RECOUNT}") from None
            if size != self._size:
                raise ShardError(f"{self._path}: {self._size} bytes listed, the file has {size}: {RECOUNT}")
        return self._storage.open(self._path, self._size)


@dataclass(frozen=True, slots=True)
class TarSample:
    """A sample whose place is known: its key, and where the file of each extension begins and how long it is."""

    key: str
    files: tuple[tuple[str, int, int], ...]

    def read(self, stream: BinaryIO, shard: str) -> dict[str, Any]:
        """``read_shard``'s sample."""
        sample: dict[str, Any] = {"__key__": self.key, "__shard__": shard}
        for extension, start, length in self.files:
            stream.seek(start)
            # All of it is there: the header that follows has been looked for.
            sample[extension] = stream.read(length)
        return sample


def tar_samples(path: str, stream: BinaryIO) -> Iterator[TarSample]:
    """Every sample of a tar, with webdataset's grouping of its members. Only their headers are read."""
    for members in tariterators.group_by_keys(_members(path, stream)):
        del members["__url__"]
        key = members.pop("__key__")
        yield TarSample(key, tuple((sys.intern(ext), info.offset_data, info.size) for ext, info in members.items()))


@contextmanager
def damage(path: str) -> Iterator[None]:
    """What goes wrong with a tar says which one, and what to do."""
    try:
        yield
    except ShardError:
        raise
    except StorageError as error:
        raise ShardError(f"{error}: is the storage there, and may it be read?") from error
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        # webdataset adds to the error's arguments, which an OSError does not print.
        reason = error if isinstance(error, OSError) else error.args[0]
        raise ShardError(f"{path}: damaged shard ({reason}): restore the file or write the shards again") from error


def find_sample(path: Path, key: str) -> dict[str, Any]:
    """A sample of a tar by its key, as ``read_shard`` gives it; empty where there is none.

    Raises:
        ShardError: the tar is damaged.
        OSError: it cannot be opened.
    """
    with path.open("rb") as stream, damage(str(path)):
        found = (sample.read(stream, path.name) for sample in tar_samples(str(path), stream) if sample.key == key)
        return next(found, {})


def _members(path: str, stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """A tar's plain files in the form that webdataset groups, with their headers for their content.

    webdataset's own reader copies every file, wanted or not, in pieces of 10 kB. Hidden files (``.DS_Store``) are in no
    sample. Behind the end of a tar another one may follow (``cat a.tar b.tar > c.tar``).
    """
    while True:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.isreg() and not _META.match(member.name) and not _HIDDEN.search(member.name):
                    if member.issparse():
                        raise tarfile.ReadError(f"{member.name} is stored as a sparse file")
                    yield {"fname": printable(member.name), "data": member, "__url__": path}
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            end = tar.offset
        if not _skip_zeros(stream, end):
            return


def _skip_zeros(stream: BinaryIO, end: int) -> bool:
    """Go to the first block from a position on that is not empty; whether there is one."""
    stream.seek(end)
    while block := stream.read(tarfile.BLOCKSIZE):
        if any(block):
            stream.seek(-len(block), 1)
            return True
    return False


def check_plain(path: str, stream: BinaryIO) -> None:
    """Refuse what is no plain tar, by its first bytes, and go back to the beginning.

    Raises:
        ShardError: it is compressed, or a pointer of Git; and how to mend it.
    """
    start = stream.read(64)
    kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    for begin, kind in kinds.items():
        if start.startswith(begin):
            raise ShardError(
                f"{path} is compressed ({kind}), so its samples cannot be read one by one: decompress it. Images and"
                " audio hardly get smaller by it"
            )
    if is_lfs_pointer(start):
        check_fetched(Path(path))
    stream.seek(0)


def check_end(path: str, stream: BinaryIO, size: int) -> None:
    """Refuse what is not there to its end, and go back to the beginning.

    A tar ends with two blocks of zeros; without them tarfile would end at a cut header without a word.

    Raises:
        ShardError: it is cut off.
    """
    stream.seek(max(0, size - 1024))
    tail = stream.read(1024)
    if len(tail) < 1024 or any(tail):
        raise ShardError(f"{path}: damaged shard (cut off: no end-of-archive mark): restore the file")
    stream.seek(0)
