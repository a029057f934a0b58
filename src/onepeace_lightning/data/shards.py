"""Reading and writing WebDataset shards.

A stream folder holds ``00000.tar, 00001.tar …`` and ``manifest.json``. A sample is the files that share one key: an
image, a recording, a caption (``txt``, UTF-8) or metadata (``json``).
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import webdataset as wds
from webdataset import tariterators

from onepeace_lightning.data.counting import Shard
from onepeace_lightning.data.manifest import (
    MANIFEST,
    UNFINISHED,
    Manifest,
    check_fields,
    count_captions,
    has_captions,
    known_type,
)
from onepeace_lightning.data.storage import Storage, is_url
from onepeace_lightning.data.tars import ShardError, ShardReader

CAPTION = "__caption__"
"""In a raw sample, which of its captions is meant."""


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
    with closing(manifest.reader(shard)) as reader:
        for index in sorted(wanted):
            yield index, reader.read(index)


class ShardReaders:
    """The shards that one worker has open, the last used ones.

    A shard that cannot be read stays so: its samples are the error.

    Args:
        manifest: the stream folder's.
        most: open shards.
    """

    def __init__(self, manifest: Manifest, most: int) -> None:
        self._manifest, self._most, self._remote = manifest, most, is_url(manifest.folder)
        self._open: OrderedDict[int, ShardReader | ShardError] = OrderedDict()

    def read(self, shard: int, index: int) -> dict[str, Any] | ShardError:
        """A sample by the indices of its shard and in it; ``CAPTION`` says which caption is meant, if only one is."""
        reader = self._open.get(shard)
        if reader is None:
            while len(self._open) >= self._most:
                self._close(self._open.popitem(last=False)[1])
            reader = self._open[shard] = self._manifest.reader(self._manifest.shards[shard])
        self._open.move_to_end(shard)
        if isinstance(reader, ShardError):
            return reader
        try:
            sample = reader.read(index)
        except ShardError as error:
            reader.close()
            self._open[shard] = error
            return error
        if (caption := self._manifest.shards[shard].caption) is not None:
            sample[CAPTION] = caption
        return sample

    def soon(self, shards: Iterable[int]) -> None:
        """Fetch these in the background, in this order."""
        if not self._remote:
            return
        files = Storage(self._manifest.storage)
        files.prefetch([(self._manifest.path(s), s.bytes) for s in map(self._manifest.shards.__getitem__, shards)])

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
        self._kind = known_type(data_type)
        if samples_per_shard < 1:
            raise ShardError(f"samples_per_shard={samples_per_shard}: at least 1 is needed")
        self.folder = Path(folder)
        self.data_type = data_type
        self.samples_per_shard = samples_per_shard
        self._source, self._license, self._about = source, license, about or {}
        self._shards: list[Shard] = []
        self._keys: set[str] = set()
        self._captions: list[int] = []
        self._tar: wds.TarWriter | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for path in [self.folder / MANIFEST, self.folder / UNFINISHED, *self.folder.glob("*.tar")]:
                path.unlink(missing_ok=True)
        if any(self.folder.iterdir()):
            raise ShardError(
                f"{self.folder} is not empty: choose another folder, or replace its shards (overwrite=True)"
            )
        (self.folder / UNFINISHED).touch()

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
        check_fields(key, fields, self._kind)
        if self._tar is None:
            # PAX headers carry keys that are long or not ASCII.
            path = self.folder / self._name()
            self._tar = wds.TarWriter(str(path), encoder=False, mtime=0, format="PAX_FORMAT", compress=False)
        self._tar.write({"__key__": key, **fields})
        self._keys.add(key)
        if has_captions(self._kind):
            self._captions.append(count_captions(fields["json"]))
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
        (self.folder / UNFINISHED).unlink()

    def _name(self) -> str:
        return f"{len(self._shards):05d}.tar"

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        name = self._name()
        size = (self.folder / name).stat().st_size
        self._shards.append(Shard.counted(name, len(self._keys), size, self._captions))
        self._keys.clear()
        self._captions.clear()
