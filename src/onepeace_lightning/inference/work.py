"""What one process embeds: items of a source, read and decoded ahead of the model, in batches."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from onepeace_lightning.data.prefetch import ahead
from onepeace_lightning.data.workers import end_with_parent
from onepeace_lightning.inference.embedding_files import Chunk
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.inference.parts import Parts, in_chunks
from onepeace_lightning.inference.sources import Items, Read
from onepeace_lightning.modalities.base import Modality


@dataclass(frozen=True)
class Work:
    """Batches of a source, read ahead, in the order of its items.

    Attributes:
        modality: of the items.
        source: the items.
        batch_size: items that run through the model together.
        skip_bad: whether to leave out items that cannot be read.
        workers: processes that decode; 0 for two threads.
        width: numbers of an embedding that are kept.
    """

    modality: Modality
    source: Items
    batch_size: int
    skip_bad: bool
    workers: int
    width: int

    def batches(self, onepeace: OnePeace, chunks: Sequence[range]) -> Iterator[Chunk]:
        """Embed the items of chunks, a batch at a time, none of which reaches from one chunk into the next.

        Raises:
            ValueError: naming the items of a batch that cannot be read, unless they may be skipped.
        """
        read = partial(_read, self.modality)
        pool = None
        if self.workers:
            # Not forked: a process that has used a GPU or threads cannot be.
            pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _begin)
        for rows in ahead(in_chunks(self.source, chunks, self.batch_size), read, pool):
            good = [(key, content, inputs) for key, content, inputs, _ in rows if inputs is not None]
            chunk = Chunk(skipped={key: error for key, _, inputs, error in rows if inputs is None})
            if chunk.skipped and not self.skip_bad:
                named = "".join(f"\n  {key}: {error}" for key, error in chunk.skipped.items())
                raise ValueError(
                    f"there are items that cannot be embedded:{named}\nMend them and run this again, which goes"
                    " on from here, or leave them out with --skip-bad"
                )
            if good:
                inputs = self.modality.collate([inputs for _, _, inputs in good])
                chunk.ids = [key for key, _, _ in good]
                embeddings_BD = onepeace.embed_inputs(self.modality.name, inputs)[:, : self.width]
                chunk.embeddings = list(F.normalize(embeddings_BD, dim=1).numpy())
                chunk.texts = [content for _, content, _ in good] if self.modality.reads_text else []
            yield chunk

    def write_parts(self, onepeace: OnePeace, parts: Parts, chunks: Sequence[range]) -> None:
        """Embed chunks, and write the part of each as soon as it is complete."""
        waiting, chunk = iter(chunks), Chunk()
        current = next(waiting, None)
        for batch in self.batches(onepeace, chunks):
            chunk.extend(batch)
            if current is not None and len(chunk) == len(current):
                parts.add(current, chunk)
                current, chunk = next(waiting, None), Chunk()


def _read(modality: Modality, item: tuple[str, Read]) -> tuple[str, str, Any, str]:
    """The id, the text where it is one, the model's input or None, and what was wrong."""
    key, read = item
    try:
        content = modality.decode(read())
        return key, content if isinstance(content, str) else "", modality.transform(content), ""
    except (ValueError, OSError) as error:
        return key, "", None, str(error)


def _begin() -> None:
    """What each process that decodes does first."""
    torch.set_num_threads(1)
    end_with_parent()
