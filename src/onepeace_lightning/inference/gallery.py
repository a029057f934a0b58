"""Embedded files, to be searched and shown.

d = embedding width, N = items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from onepeace_lightning.inference.embedding_files import read_about, read_embeddings
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.inference.search import check_model
from onepeace_lightning.inference.sources import read_item
from onepeace_lightning.modalities.preprocessing import Preprocessing


class GalleryHit(NamedTuple):
    """An item that was found, its cosine to the query, and the text itself where it is one."""

    row: int
    cosine: float
    modality: str
    id: str
    text: str


@dataclass(frozen=True)
class Gallery:
    """Embeddings of several files, one after the other.

    Attributes:
        ids: of the items.
        modalities: of the items.
        texts: of the items, "" where they are none.
        embeddings_Nd: float32, of unit length.
        found: of each item, where it comes from (``kind`` and ``root``).
        preprocessing: of the model, which is what is shown.
    """

    ids: Sequence[str]
    modalities: Sequence[str]
    texts: Sequence[str]
    embeddings_Nd: np.ndarray
    found: Sequence[Mapping[str, Any]]
    preprocessing: Preprocessing

    @classmethod
    def open(cls, paths: Sequence[str | Path], model: OnePeace, root: str | None = None) -> Self:
        """Read files of embeddings.

        Args:
            paths: files that ``onepeace embed`` wrote.
            model: which must have made them.
            root: where the items' files are now, if they were moved.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is none, or another model made it.
        """
        ids: list[str] = []
        modalities: list[str] = []
        texts: list[str] = []
        found: list[Mapping[str, Any]] = []
        parts: list[np.ndarray] = []
        for path in map(Path, paths):
            about = read_about(path)
            check_model(path, about, model, "the given model")
            origin = about["found"] if root is None else {**about["found"], "root": root}
            for some_ids, embeddings_Nd, some_texts in read_embeddings(path):
                ids += some_ids
                texts += some_texts or [""] * len(some_ids)
                modalities += [about["modality"]] * len(some_ids)
                found += [origin] * len(some_ids)
                parts.append(embeddings_Nd)
        if not ids:
            raise ValueError("no index is given, or it has no item; make one with `onepeace embed`")
        return cls(ids, modalities, texts, np.concatenate(parts), found, model.preprocessing)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, query_d: np.ndarray, k: int) -> list[GalleryHit]:
        """The k items with the greatest cosine to a query of unit length, best first."""
        cosines_N = self.embeddings_Nd @ query_d
        k = min(k, len(cosines_N))
        best = np.argpartition(-cosines_N, k - 1)[:k]
        best = best[np.argsort(-cosines_N[best], kind="stable")]
        return [
            GalleryHit(row, float(cosines_N[row]), self.modalities[row], self.ids[row], self.texts[row])
            for row in best.tolist()
        ]

    def html(self, row: int) -> str:
        """An item as HTML: a small image, a player, or the text.

        Raises:
            OSError: its file is not there any more.
        """
        modality, found = self.preprocessing.modality(self.modalities[row]), self.found[row]
        if self.texts[row]:
            return modality.html(self.texts[row], self.ids[row])
        data = read_item(found["kind"], Path(found["root"]), modality.name, self.ids[row])
        return modality.html(modality.decode(data), self.ids[row])
