"""Embedded files, to be searched and shown.

d = embedding width, N = items.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace_lightning.inference.embedding_files import Rows, read_about, read_embeddings
from onepeace_lightning.inference.index import Index, index_path, nearest
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.inference.sources import read_item


class Hit(NamedTuple):
    """An item that was found, its cosine to the query, and the text itself where it is one."""

    row: int
    cosine: float
    modality: str
    id: str
    text: str


class Gallery:
    """Embeddings of several files, one after the other.

    A file that has an index (``onepeace index``) is searched by it, any other by comparing with all of its embeddings.

    Args:
        paths: files or folders that ``onepeace embed`` wrote.
        model: which must have made them.
        root: where the items' files are now, if they were moved.
        name: of the model, for errors.
        exact: compare with all embeddings even where there is an index.
        keep: hold embeddings without an index in memory, for many searches; else each reads them piece by piece.

    Attributes:
        width: numbers of an embedding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, another model made it, its index is of something else, or widths differ.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        model: OnePeace,
        root: str | None = None,
        *,
        name: str = "the given one",
        exact: bool = False,
        keep: bool = False,
    ) -> None:
        if not paths:
            raise ValueError("no embeddings are given; make some with `onepeace embed`")
        abouts = {Path(path): read_about(Path(path)) for path in paths}
        for path, about in abouts.items():
            check_model(path, about, model, name)
        if len(widths := {about["width"] for about in abouts.values()}) > 1:
            raise ValueError(
                f"embeddings of {', '.join(map(str, sorted(widths)))} numbers cannot be searched together: embed all"
                " with the same --dim"
            )
        self.width: int = widths.pop()
        self.model = model
        self._files = [_File(path, about, root, exact, keep) for path, about in abouts.items()]
        self._starts = [0, *accumulate(len(file.rows) for file in self._files)]
        if not len(self):
            raise ValueError(f"{', '.join(map(str, paths))}: there is no item to search")

    def __len__(self) -> int:
        return self._starts[-1]

    def query(self, embedding_d: np.ndarray) -> np.ndarray:
        """(width,) of unit length: an embedding of the model, or a sum of some, as ``search`` takes it.

        Raises:
            ValueError: its length is 0.
        """
        cut_d = embedding_d[: self.width].astype(np.float32)
        if (length := float(np.linalg.norm(cut_d))) < 1e-6:
            raise ValueError("the weighted queries add up to nothing; give other weights")
        return cut_d / length

    def search(self, query_d: np.ndarray, k: int) -> list[Hit]:
        """The k items with the greatest cosine to a query of unit length, best first."""
        found: list[tuple[float, int]] = []
        for file, start in zip(self._files, self._starts, strict=False):
            rows, cosines = file.search(query_d, k)
            found += zip(cosines.tolist(), (rows + start).tolist(), strict=True)
        found.sort(key=lambda pair: (-pair[0], pair[1]))
        return [self._hit(row, cosine) for cosine, row in found[:k]]

    def embedding(self, row: int) -> np.ndarray:
        """(d,) float32 of unit length."""
        file, at = self._find(row)
        return file.rows.embedding(at)

    def html(self, hit: Hit) -> str:
        """An item as HTML: a small image, a player, or the text.

        Raises:
            OSError: its file is not there any more.
            ValueError: it cannot be read any more.
        """
        modality = self.model.preprocessing.modality(hit.modality)
        if modality.reads_text:
            return modality.html(hit.text, hit.id)
        found = self._find(hit.row)[0].found
        data = read_item(found["kind"], Path(found["root"]), modality.name, hit.id)
        return modality.html(modality.decode(data), hit.id)

    def item(self, row: int) -> Hit:
        """An item as if it was what was searched for."""
        return self._hit(row, 1.0)

    def _hit(self, row: int, cosine: float) -> Hit:
        file, at = self._find(row)
        key, text = file.rows.item(at)
        return Hit(row, cosine, file.modality, key, text)

    def _find(self, row: int) -> "tuple[_File, int]":
        number = bisect_right(self._starts, row) - 1
        return self._files[number], row - self._starts[number]


class _File:
    """One file or folder of embeddings."""

    def __init__(self, path: Path, about: Mapping[str, Any], root: str | None, exact: bool, keep: bool) -> None:
        self.path, self.modality = path, about["modality"]
        self.found = about["found"] if root is None else {**about["found"], "root": root}
        self.rows = Rows(path)
        self.index = Index(path, about) if index_path(path).exists() and not exact else None
        self.kept = [np.concatenate([*self._read()])] if keep and self.index is None and len(self.rows) else None

    def search(self, query_d: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self.index is not None:
            return self.index.search(query_d, k)
        rows_1k, cosines_1k = nearest(self._read() if self.kept is None else self.kept, query_d[None], k)
        return rows_1k[0], cosines_1k[0]

    def _read(self) -> Iterator[np.ndarray]:
        return (embeddings_Nd for _, embeddings_Nd, _ in read_embeddings(self.path))


def check_model(path: Path, about: Mapping[str, Any], model: OnePeace, name: str) -> None:
    """Raise ValueError where another model made a file of embeddings."""
    modality = about["modality"]
    model.backbone.adapter(modality)
    if (ours := model.fingerprint(modality)) != about["model"]:
        raise ValueError(
            f"{path} was made by another model (fingerprint {about['model']} in {about['dtype']}) than {name} ({ours}"
            f" in {str(model.dtype).removeprefix('torch.')}): their embeddings cannot be compared. Search with the"
            " model that made it, or embed anew"
        )
