"""Folders of WebDataset shards with a manifest of exact counts: writing, checking, reading.

A stream folder holds ``00000.tar, 00001.tar …`` and ``manifest.json``. A sample is the files that share one key: an
image, a recording, a caption (``txt``, UTF-8) or metadata (``json``). The manifest's counts make the position of every
sample known without opening a shard, which is what exact splitting and resuming rest on.
"""

import hashlib
import json
import re
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from webdataset import tariterators

from onepeace_lightning.data.data_types import DataType
from onepeace_lightning.data.data_types import data_type as parse_data_type
from onepeace_lightning.files import check_fetched, printable

MANIFEST = "manifest.json"

# Files that webdataset takes for notes about a shard: in no sample.
_META = re.compile(r"__[^/]*__($|/)")
# Files that programs keep for themselves, and the folder of notes that macOS adds to archives.
_HIDDEN = re.compile(r"(^|/)(\.[^/.]|\.\.[^/]|__MACOSX/)")


class ShardError(ValueError):
    """A stream folder, its manifest or one of its shards is not what it should be."""


@dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, its number of samples and its size in bytes."""

    name: str
    samples: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a stream folder holds.

    Attributes:
        folder: where it is (not part of the file).
        data_type: what the samples are, see ``data_types``.
        shards: in the order of the file.
        source: where the data comes from.
        license: under which terms.
        about: anything else worth knowing, e.g. split or seed.
    """

    folder: Path
    data_type: str
    shards: tuple[Shard, ...]
    source: str
    license: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples in all shards together."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(S,) samples of each shard."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    def fingerprint(self) -> str:
        """Short hash of the data type and of every shard's name, count and size: equal for equal data."""
        shards = sorted((shard.name, shard.samples, shard.bytes) for shard in self.shards)
        return hashlib.sha256(json.dumps([self.data_type, shards]).encode()).hexdigest()[:16]

    def save(self) -> None:
        """Write ``manifest.json`` into the folder."""
        content = {
            "data_type": self.data_type,
            "samples": self.samples,
            "shards": [asdict(shard) for shard in self.shards],
            "source": self.source,
            "license": self.license,
            "about": self.about,
        }
        (self.folder / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> Manifest:
    """Read a stream folder's manifest and check it against the files (names and sizes; nothing is opened).

    Raises:
        ShardError: the folder is missing or empty, has no manifest, or its files are not those of the manifest.
    """
    folder = Path(folder)
    found = {path.name for path in tars(folder)}
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardError(f"{folder} has shards but no {MANIFEST}: make one with `onepeace shards manifest {folder}`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(Shard(str(s["name"]), int(s["samples"]), int(s["bytes"])) for s in content["shards"])
        total = int(content["samples"])
        manifest = Manifest(
            folder, content["data_type"], shards, content["source"], content["license"], content.get("about", {})
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{path} is not a manifest ({type(error).__name__}: {error}): {_remake(folder)}") from error
    _data_type(manifest.data_type)
    listed = {shard.name for shard in shards}
    wrong = [f"{name}: listed, but there is no such file" for name in sorted(listed - found)]
    wrong += [f"{name}: not listed" for name in sorted(found - listed)]
    if len(listed) < len(shards):
        wrong.append("a shard is listed twice")
    for shard in shards:
        if shard.name in found and (size := (folder / shard.name).stat().st_size) != shard.bytes:
            wrong.append(f"{shard.name}: {shard.bytes} bytes listed, the file has {size}")
        if shard.samples < 1:
            wrong.append(f"{shard.name}: {shard.samples} samples listed, at least 1 is needed")
    if total != manifest.samples:
        wrong.append(f"{total} samples listed in all, the shards' counts add up to {manifest.samples}")
    if wrong:
        raise ShardError(f"{path} disagrees with its folder:\n  " + "\n  ".join(wrong) + f"\n{_remake(folder)}")
    return manifest


def write_manifest(
    folder: str | Path, data_type: str, *, source: str, license: str, about: dict[str, Any] | None = None
) -> Manifest:
    """Read every shard of a folder, count and check its samples, and write the manifest.

    Raises:
        ShardError: no shards, a damaged shard, or a sample without a field that the data type needs.
    """
    folder = Path(folder)
    kind = _data_type(data_type)
    shards = []
    for path in tars(folder):
        _check_end(path)
        count = 0
        with _damage(path), path.open("rb") as stream:
            for sample in _samples(path, stream):
                _check_fields(sample.key, [extension for extension, _, _ in sample.files], kind)
                count += 1
        shards.append(Shard(path.name, count, path.stat().st_size))
    if empty := [shard.name for shard in shards if not shard.samples]:
        raise ShardError(f"{folder}: shards without a sample: {', '.join(empty)}: delete them")
    manifest = Manifest(folder, data_type, tuple(shards), source, license, about or {})
    manifest.save()
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
    with closing(ShardReader(manifest, shard)) as reader:
        for index in sorted(wanted):
            yield index, reader.read(index)


class ShardReader:
    """Reads a shard's samples by index, in any order. Headers are read once, as far as needed.

    Args:
        manifest: the stream folder's.
        shard: one of its shards.
    """

    def __init__(self, manifest: Manifest, shard: Shard) -> None:
        self._shard, self._path = shard, manifest.folder / shard.name
        self._stream: BinaryIO | None = None
        self._members: Iterator[_Sample] = iter(())
        self._found: list[_Sample] = []

    def read(self, index: int) -> dict[str, Any]:
        """A sample without decoding, as ``read_shard`` gives it.

        Raises:
            ShardError: the tar is damaged, or (seen when its end is read) holds another number of samples than listed.
        """
        with _damage(self._path):
            if self._stream is None:
                self._stream = self._path.open("rb")
                self._members = _samples(self._path, self._stream)
            # Looking past the last sample before handing it out: nobody need ask for one more for the check to happen.
            upto = index + 1 if index < self._shard.samples - 1 else self._shard.samples + 1
            self._found.extend(islice(self._members, max(0, upto - len(self._found))))
            if len(self._found) <= index or len(self._found) > self._shard.samples:
                found = len(self._found) + sum(1 for _ in self._members)
                raise ShardError(
                    f"{self._path}: {self._shard.samples} samples listed in {MANIFEST}, the shard has {found}: "
                    f"{_remake(self._path.parent)}"
                )
            return self._found[index].read(self._stream, self._shard.name)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


class ShardReaders:
    """The shards that one worker has open, the last used ones.

    A shard that cannot be read stays so: its samples are the error.

    Args:
        manifest: the stream folder's.
        most: open shards.
    """

    def __init__(self, manifest: Manifest, most: int) -> None:
        self._manifest, self._most = manifest, most
        self._open: OrderedDict[int, ShardReader | ShardError] = OrderedDict()

    def read(self, shard: int, index: int) -> dict[str, Any] | ShardError:
        """A sample by the indices of its shard and in it."""
        reader = self._open.get(shard)
        if reader is None:
            while len(self._open) >= self._most:
                self._close(self._open.popitem(last=False)[1])
            reader = self._open[shard] = ShardReader(self._manifest, self._manifest.shards[shard])
        self._open.move_to_end(shard)
        if isinstance(reader, ShardError):
            return reader
        try:
            return reader.read(index)
        except ShardError as error:
            reader.close()
            self._open[shard] = error
            return error

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
        self._tar: wds.TarWriter | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for path in [self.folder / MANIFEST, *self.folder.glob("*.tar")]:
                path.unlink(missing_ok=True)
        if any(self.folder.iterdir()):
            raise ShardError(
                f"{self.folder} is not empty: choose another folder, or replace its shards (overwrite=True)"
            )

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

    def _name(self) -> str:
        return f"{len(self._shards):05d}.tar"

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        name = self._name()
        self._shards.append(Shard(name, len(self._keys), (self.folder / name).stat().st_size))
        self._keys.clear()


def tars(folder: Path) -> list[Path]:
    """The shards of a folder by name; ShardError where there is no folder or none in it."""
    if not folder.is_dir():
        raise ShardError(f"there is no folder {folder}: give one that holds shards (*.tar) and {MANIFEST}")
    found = sorted(folder.glob("*.tar"))
    if not found:
        compressed = sorted(path.name for pattern in ("*.tar.*", "*.tgz") for path in folder.glob(pattern))
        hint = f"; it has {compressed[0]}, which must be decompressed" if compressed else ""
        raise ShardError(f"{folder} has no shards (*.tar): write some with `onepeace shards`{hint}")
    return found


@dataclass(frozen=True, slots=True)
class _Sample:
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


def _samples(path: Path, stream: BinaryIO) -> Iterator[_Sample]:
    """Every sample of a tar, with webdataset's grouping of its members. Only their headers are read."""
    for members in tariterators.group_by_keys(_members(path, stream)):
        del members["__url__"]
        key = members.pop("__key__")
        yield _Sample(key, tuple((sys.intern(ext), info.offset_data, info.size) for ext, info in members.items()))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What goes wrong with a tar says which one, and what to do."""
    try:
        yield
    except ShardError:
        raise
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
    with path.open("rb") as stream, _damage(path):
        found = (sample.read(stream, path.name) for sample in _samples(path, stream) if sample.key == key)
        return next(found, {})


def _members(path: Path, stream: BinaryIO) -> Iterator[dict[str, Any]]:
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
                    yield {"fname": printable(member.name), "data": member, "__url__": path.name}
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            end = tar.offset  # type: ignore[attr-defined]
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


def _check_whole(path: Path) -> None:
    """Refuse what is no plain tar, with the way to make it one."""
    with path.open("rb") as stream:
        start = stream.read(4)
    kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    for begin, kind in kinds.items():
        if start.startswith(begin):
            raise ShardError(
                f"{path} is compressed ({kind}), so its samples cannot be read one by one: decompress it. Images and"
                " audio hardly get smaller by it"
            )
    check_fetched(path)


def _check_end(path: Path) -> None:
    """A tar ends with two blocks of zeros; without them tarfile would end at a cut header without a word."""
    _check_whole(path)
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 1024))
        tail = stream.read()
    if len(tail) < 1024 or any(tail):
        raise ShardError(f"{path}: damaged shard (cut off: no end-of-archive mark): restore the file")


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


def _remake(folder: Path) -> str:
    return f"restore the files, or count them again with `onepeace shards manifest {folder}`"
