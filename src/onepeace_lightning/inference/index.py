"""``onepeace index``: an index over embeddings, by which the nearest are found without comparing with all.

An HNSW graph (usearch) over the embeddings in int8 gives candidates; what they are ranked by is the stored embeddings
themselves, which lie beside it to be read row by row.

N = items, Q = queries, d = embedding width, C = candidates.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onepeace_lightning.inference.embedding_files import (
    FORMAT_VERSION,
    Rows,
    read_about,
    read_embeddings,
    read_stored,
    unit_length,
)

RECALL_AT = 10
"""How many of the nearest the stated recall is over."""

_ABOUT, _GRAPH, _EMBEDDINGS = "about.json", "graph.usearch", "embeddings.npy"
_PIECE = 65_536
_CANDIDATES = 10
"""Candidates for each item that is asked for; their order by the graph is that of int8."""
_LEAST_CANDIDATES = 128


def index(
    embeddings: list[str],
    *,
    queries: str | None = None,
    recall_queries: int = 200,
    connectivity: int = 16,
    expansion: int = 128,
    threads: int = 0,
) -> None:
    """Build an index over files or folders of embeddings; ``onepeace search`` and ``serve`` then use it.

    The index of NAME is the folder NAME.index. It says how many of the 10 nearest it finds, against a comparison with
    all embeddings.

    Args:
        embeddings: files and folders that ``onepeace embed`` wrote; each gets its own index.
        queries: embeddings of the same model by which recall is stated, such as those of texts for an index of images;
            by default some of the indexed items, each without itself.
        recall_queries: how many of them; 0 states no recall.
        connectivity: edges of each item in the graph; more find more, and take memory.
        expansion: items that are looked at to place one in the graph; more find more, and take time.
        threads: that build the graph; 0 for all processors.

    Raises:
        FileNotFoundError: there are no such embeddings.
        ValueError: they are incomplete, or the queries are of another width.
    """
    for name, value, least in (
        ("connectivity", connectivity, 2), ("expansion", expansion, 1), ("threads", threads, 0),
        ("recall_queries", recall_queries, 0),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} is {value}, must be at least {least}")
    for given in embeddings:
        path = Path(given)
        built = Index.build(path, connectivity=connectivity, expansion=expansion, threads=threads)
        said = f"{index_path(path)}: {len(built)} embeddings, built in {built.about['seconds']:.1f} s"
        if recall_queries and len(built) > 1:
            found, seconds = built.recall(None if queries is None else Path(queries), recall_queries)
            built.note(recall={f"at_{RECALL_AT}": found, "queries": queries or "its own items"})
            said += (
                f"; recall@{RECALL_AT} {found:.3f} against all embeddings, {1000 * seconds:.2f} ms a query (queries:"
                f" {queries or 'its own items'})"
            )
        print(said)


def index_path(embeddings: Path) -> Path:
    """The folder of the index over a file or folder of embeddings."""
    return embeddings.with_name(f"{embeddings.name}.index")


class Index:
    """The nearest of the embeddings of one file or folder; nothing is read into memory before it is needed.

    Args:
        embeddings: the file or folder.
        about: what ``read_about`` says of it.

    Raises:
        ImportError: usearch is not installed.
        ValueError: the index is over other embeddings than are there now, or damaged.
    """

    def __init__(self, embeddings: Path, about: Mapping[str, Any]) -> None:
        folder = index_path(embeddings)
        advice = f"build it anew with `onepeace index {embeddings}`, or delete the folder to search without it"
        try:
            self.about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            self._graph = _usearch().Index.restore(str(folder / _GRAPH), view=True)
            self.stored_Nd: np.ndarray = np.load(folder / _EMBEDDINGS, mmap_mode="r")
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder} is damaged ({error}): {advice}") from error
        if self._graph is None:
            raise ValueError(f"{folder} is damaged ({_GRAPH} is no graph of usearch): {advice}")
        if self.about["format_version"] != FORMAT_VERSION or self.about["embeddings"] != about:
            raise ValueError(f"{folder} was built over other embeddings than {embeddings} holds now: {advice}")
        self._folder = folder

    @classmethod
    def build(cls, embeddings: Path, *, connectivity: int = 16, expansion: int = 128, threads: int = 0) -> "Index":
        """Write the index over a file or folder of embeddings; one that is there is replaced when the new one is whole.

        Memory holds the graph and the embeddings in int8, N · (d + about 10 · connectivity) bytes.
        """
        about, began = read_about(embeddings), time.perf_counter()
        folder = index_path(embeddings)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        graph = _usearch().Index(
            ndim=about["width"], metric="cos", dtype="i8", connectivity=connectivity, expansion_add=expansion
        )
        shape, first = (len(Rows(embeddings)), about["width"]), 0
        dtype = about.get("storage", "float32")
        stored_Nd = np.lib.format.open_memmap(partial / _EMBEDDINGS, "w+", dtype, shape)
        for piece_nd in read_stored(embeddings, _PIECE):
            rows = slice(first, first + len(piece_nd))
            stored_Nd[rows] = piece_nd
            graph.add(np.arange(rows.start, rows.stop), unit_length(piece_nd), threads=threads)
            first = rows.stop
        stored_Nd.flush()
        graph.save(str(partial / _GRAPH))
        noted = {"format_version": FORMAT_VERSION, "embeddings": about, "seconds": time.perf_counter() - began}
        (partial / _ABOUT).write_text(json.dumps(noted), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        return cls(embeddings, about)

    def __len__(self) -> int:
        return len(self.stored_Nd)

    def search(self, query_d: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k items nearest to a query of unit length.

        Args:
            query_d: float32.
            k: how many, or all where there are fewer.

        Returns:
            rows and cosines, best first; the cosines are those of the stored embeddings.
        """
        count = min(len(self), max(_LEAST_CANDIDATES, _CANDIDATES * k))
        # In their order in the file, for the disk's sake.
        rows_C = np.sort(self._graph.search(query_d, count).keys.astype(np.int64))
        rows_1k, cosines_1k = nearest([unit_length(self.stored_Nd[rows_C])], query_d[None], k)
        return rows_C[rows_1k[0]], cosines_1k[0]

    def recall(self, queries: Path | None, count: int, k: int = RECALL_AT) -> tuple[float, float]:
        """The fraction of the k nearest items that ``search`` finds, and its seconds for a query.

        Args:
            queries: embeddings of which some are the queries; None: some of the items, each without itself.
            count: of queries.
            k: how many items.

        Raises:
            ValueError: the queries are of another width.
        """
        rng = np.random.default_rng(0)
        own_Q = np.array([], np.int64)
        if queries is None:
            own_Q = np.sort(rng.choice(len(self), min(count, len(self)), replace=False))
            asked_Qd = unit_length(self.stored_Nd[own_Q])
        else:
            if (width := read_about(queries)["width"]) != self.stored_Nd.shape[1]:
                raise ValueError(f"queries of {queries} have {width} numbers, the index {self.stored_Nd.shape[1]}")
            everything = np.concatenate([embeddings_Nd for _, embeddings_Nd, _ in read_embeddings(queries)])
            asked_Qd = everything[rng.choice(len(everything), min(count, len(everything)), replace=False)]
        # Without itself k are left.
        true_QK, _ = nearest(self._pieces(), asked_Qd, k + bool(len(own_Q)))
        began = time.perf_counter()
        found = [self.search(query_d, k + bool(len(own_Q)))[0] for query_d in asked_Qd]
        seconds = (time.perf_counter() - began) / len(asked_Qd)
        rates = []
        for number, (right, ours) in enumerate(zip(true_QK, found, strict=True)):
            own = {int(own_Q[number])} if len(own_Q) else set[int]()
            wanted = [row for row in right.tolist() if row not in own][:k]
            rates.append(len(set(wanted) & set(ours.tolist())) / len(wanted))
        return float(np.mean(rates)), seconds

    def note(self, **entries: Any) -> None:
        """Add to what the index says of itself."""
        self.about |= entries
        (self._folder / _ABOUT).write_text(json.dumps(self.about), encoding="utf-8")

    def _pieces(self) -> Iterator[np.ndarray]:
        return (unit_length(self.stored_Nd[start : start + _PIECE]) for start in range(0, len(self), _PIECE))


def nearest(pieces: Iterable[np.ndarray], asked_Qd: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k of all embeddings with the greatest cosine to each query, in one pass over them.

    Args:
        pieces: (n, d) float32 of unit length each, one after the other.
        asked_Qd: queries, float32 of unit length.
        k: how many, or all where there are fewer.

    Returns:
        (Q, k) rows, counted over all pieces, and cosines, best first; of equal ones at the end any.
    """
    queries, start = len(asked_Qd), 0
    rows_Qk, best_Qk = np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32)
    for piece_nd in pieces:
        cosines = np.concatenate([best_Qk, asked_Qd @ piece_nd.T], axis=1)
        numbers = np.broadcast_to(np.arange(start, start + len(piece_nd)), (queries, len(piece_nd)))
        rows = np.concatenate([rows_Qk, numbers], axis=1)
        start += len(piece_nd)
        if cosines.shape[1] > k:
            kept = np.argpartition(-cosines, k, axis=1)[:, :k]
            rows, cosines = np.take_along_axis(rows, kept, 1), np.take_along_axis(cosines, kept, 1)
        order = np.lexsort((rows, -cosines))
        rows_Qk, best_Qk = np.take_along_axis(rows, order, 1), np.take_along_axis(cosines, order, 1)
    return rows_Qk, best_Qk


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise ImportError(
            f"an index needs usearch, which is an extra: pip install 'onepeace-lightning[index]' ({error})"
        ) from error
    return usearch.index
