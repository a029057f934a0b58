"""A folder of embeddings that any number of processes write: one Parquet file for each chunk of items."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from onepeace_lightning.inference.embedding_files import FORMAT_VERSION, Chunk, differences, read_about, to_table
from onepeace_lightning.inference.sources import Items


class Parts:
    """The parts of a folder that one of several processes writes; those that are there already stay.

    Chunk c holds the items from ``c · chunk_size`` on and lies in ``part-<first item>.parquet``; process r of W makes
    every W-th of them. Parts are complete or not there, so that any process may be stopped, and any number go on.

    Args:
        folder: made where it does not exist.
        about: says what makes the embeddings; parts of anything else are refused.
        source: whose items are embedded.
        chunk_size: items of a part.
        rank: of this process.
        world_size: processes.

    Raises:
        ValueError: the folder was begun by another model, from items that have changed since, or with another
            ``chunk_size``.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], source: Items, chunk_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.folder, self.about, self.source = folder, {"format_version": FORMAT_VERSION, **about}, source
        self.skipped: dict[str, str] = {}
        total = len(source)
        chunks = [range(start, min(start + chunk_size, total)) for start in range(0, total, chunk_size)]
        self.mine = chunks[rank::world_size]
        self.done = sum(len(chunk) for chunk in self.mine if self._is_there(chunk))
        self.missing = [chunk for chunk in self.mine if not self._path(chunk).is_file()]
        names = {self._path(chunk).name for chunk in chunks}
        if strange := sorted(path.name for path in folder.glob("part-*.parquet") if path.name not in names):
            raise ValueError(self._begun(f"{strange[0]} begins between two chunks: --chunk-size was another one"))

    def add(self, positions: range, chunk: Chunk) -> None:
        """Write the part of these items; a killed process does not lose it.

        Args:
            positions: of the items in the source.
            chunk: all of them, those that could not be embedded among ``skipped``.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(positions)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        parquet.write_table(to_table(chunk, self._about(positions, chunk.skipped)), partial)
        os.replace(partial, path)
        self.done += len(positions)
        self.skipped |= chunk.skipped

    def _about(self, positions: range, skipped: dict[str, str]) -> dict[str, Any]:
        items = {
            "start": positions.start,
            "stop": positions.stop,
            "total": len(self.source),
            "source": self.source.fingerprint(positions.start, positions.stop),
            "skipped": skipped,
        }
        found = {"kind": self.source.kind, "root": str(self.source.root.resolve())}
        return {**self.about, "items": items, "found": found}

    def _is_there(self, positions: range) -> bool:
        path = self._path(positions)
        if not path.is_file():
            return False
        about = read_about(path)
        if differing := differences(about, self.about):
            raise ValueError(self._begun(f"{path.name} was made with another {differing}"))
        items, ours = about["items"], self._about(positions, {})["items"]
        if changed := [name for name in ("stop", "total", "source") if items[name] != ours[name]]:
            why = (
                "--chunk-size was another one"
                if "stop" in changed and "total" not in changed
                else "files were added, removed or changed"
            )
            raise ValueError(self._begun(f"{path.name} holds other items: since then {why}"))
        self.skipped |= items["skipped"]
        return True

    def _path(self, positions: range) -> Path:
        return self.folder / f"part-{positions.start:012d}.parquet"

    def _begun(self, what: str) -> str:
        return f"{self.folder}: {what}. To embed everything anew, delete the folder or choose another --out"


def in_chunks(source: Items, chunks: Sequence[range], batch_size: int) -> Iterator[list[tuple[str, Any]]]:
    """The items of chunks in batches that do not reach from one chunk into the next."""
    for chunk in chunks:
        batch = []
        items = source.items(chunk.start)
        for _, item in zip(chunk, items, strict=False):
            batch.append(item)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
