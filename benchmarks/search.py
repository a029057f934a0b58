"""Searching millions of embeddings by an index, against comparing with all of them.

Random embeddings lie in groups, as those of real things do, around centres that are drawn alike; a query is near to an
item. They are written as ``onepeace embed`` writes a folder and indexed by ``onepeace index``'s own code, in a process
of its own whose peak memory is printed. The baseline compares with all embeddings: NumPy over the same stored numbers,
piece by piece, as a search without an index does.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from pyarrow import parquet

from benchmarks.timing import fresh, own_peak
from onepeace_lightning.inference.embedding_files import (
    FORMAT_VERSION,
    Chunk,
    read_about,
    read_stored,
    to_table,
    unit_length,
)
from onepeace_lightning.inference.index import Index, index_path, nearest

PART = 65_536


def groups(items: int, width: int, per_group: int, noise: float) -> Iterator[np.ndarray]:
    """(n, width) float32 of unit length, ``PART`` at a time.

    Args:
        items: how many.
        width: of each.
        per_group: items that share a centre.
        noise: length of what is added to a centre of length 1.
    """
    rng = np.random.default_rng(0)
    centres = _unit(rng.standard_normal((max(1, items // per_group), width), np.float32))
    for start in range(0, items, PART):
        count = min(PART, items - start)
        added = rng.standard_normal((count, width), np.float32) * np.float32(noise / width**0.5)
        yield _unit(centres[rng.integers(0, len(centres), count)] + added)


def write(folder: Path, items: int, width: int, per_group: int, noise: float) -> None:
    """Write a folder of embeddings in float16."""
    start = 0
    for rows in groups(items, width, per_group, noise):
        part = {"start": start, "stop": start + len(rows), "total": items, "source": str(start), "skipped": {}}
        about: dict[str, Any] = {
            "format_version": FORMAT_VERSION, "model": "random", "modality": "image", "dtype": "float32",
            "width": width, "storage": "float16", "items": part, "found": {"kind": "files", "root": "/"},
        }  # fmt: skip
        chunk = Chunk([f"{start + row}" for row in range(len(rows))], list(rows))
        parquet.write_table(to_table(chunk, about), folder / f"part-{start:012d}.parquet")
        start += len(rows)


def built(folder: Path, connectivity: int, expansion: int, threads: int) -> tuple[float, int]:
    """Seconds to build the index, and this process's peak memory beyond what it had before, in bytes."""
    before = own_peak()
    index = Index.build(folder, connectivity=connectivity, expansion=expansion, threads=threads)
    return float(index.about["seconds"]), own_peak() - before


def run(
    items: int = 100_000,
    width: int = 128,
    queries: int = 200,
    top: int = 10,
    per_group: int = 100,
    noise: float = 0.7,
    connectivity: int = 16,
    expansion: int = 128,
    threads: int = 0,
    folder: str | None = None,
) -> None:
    """Measure.

    Args:
        items: embeddings that are searched.
        width: numbers of each.
        queries: searches; every tenth of them is also timed by comparing with all.
        top: how many of the nearest each asks for.
        per_group: items that share a centre.
        noise: of an item around its centre, whose length is 1.
        connectivity: as of ``onepeace index``.
        expansion: as of ``onepeace index``.
        threads: that build the graph; 0 for all processors.
        folder: where to write; a temporary folder if null.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "embeddings"
        path.mkdir()
        write(path, items, width, per_group, noise)
        seconds, memory = fresh(built, path, connectivity, expansion, threads)
        index = Index(path, read_about(path))
        rng = np.random.default_rng(1)
        near = unit_length(index.stored_Nd[np.sort(rng.choice(items, queries, replace=items < queries))])
        asked_Qd = _unit(near + rng.standard_normal(near.shape, np.float32) * np.float32(noise / 2 / width**0.5))
        true_QK, _ = nearest(map(unit_length, read_stored(path)), asked_Qd, top)
        found, ours, theirs = [], [], []
        for number, query_d in enumerate(asked_Qd):
            began = time.perf_counter()
            found.append(index.search(query_d, top)[0])
            ours.append(time.perf_counter() - began)
            if number % 10 == 0:
                began = time.perf_counter()
                nearest(map(unit_length, read_stored(path)), query_d[None], top)
                theirs.append(time.perf_counter() - began)
        recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, true_QK, strict=True)])
        size = sum(file.stat().st_size for file in index_path(path).iterdir())
        print(f"{items:,} random embeddings of {width} numbers, {per_group} in a group")
        print(
            f"index: built in {seconds:.1f} s ({items / seconds:.0f} a second), peak memory {memory / 2**20:.0f} MiB,"
            f" {size / 2**20:.0f} MiB on disk"
        )
        print(f"search by the index: median {1000 * median(ours):.2f} ms, recall@{top} {recall:.3f}")
        print(f"comparing with all:  median {1000 * median(theirs):.2f} ms")
        print(f"ratio: {median(theirs) / median(ours):.1f} (a search by the index against comparing with all)")


def _unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
