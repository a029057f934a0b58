"""``onepeace embed --engine ray``: parts of a folder of embeddings made by actors of Ray Data.

A row of the dataset is a few chunks of items, an actor holds the model on a GPU of its own, reads and decodes ahead of
it in threads or in processes of its machine, and writes a part for each chunk. What moves between the machines are
numbers of chunks only. A part is complete or not there, so that Ray may give the chunks of a lost machine to another.
"""

from collections.abc import Callable
from typing import Any

import torch

from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.inference.parts import Parts
from onepeace_lightning.inference.work import Work

try:
    import ray
    import ray.data
except ImportError as error:
    raise ImportError(
        f"--engine ray needs Ray Data, which is an extra: pip install 'onepeace-lightning[ray]' ({error})"
    ) from error

_MOST_CHUNKS = 16
"""Of a row; they share the processes that decode."""


class EmbedChunks:
    """An actor that embeds chunks of items.

    Args:
        load: opens the model.
        work: how to embed.
        parts: of the folder.
    """

    def __init__(self, load: Callable[[], OnePeace], work: Work, parts: Parts) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(1 + work.workers)
        self.onepeace, self.work, self.parts = load(), work, parts

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed a row's chunks and say how many items there were, which were left out, and what ends the run."""
        done, self.parts.skipped, fault = self.parts.done, {}, ""
        try:
            self.work.write_parts(self.onepeace, self.parts, [range(*pair) for pair in row["chunks"]])
        except ValueError as error:  # Ray would bury it below the frames of its own
            fault = str(error)
        skipped = self.parts.skipped
        return {
            "items": self.parts.done - done, "keys": list(skipped), "errors": list(skipped.values()), "fault": fault,
        }  # fmt: skip


def embed_parts(load: Callable[[], OnePeace], work: Work, parts: Parts) -> None:
    """Make the missing parts of a folder, on the cluster that Ray is connected to.

    Args:
        load: opens the model in an actor.
        work: how to embed.
        parts: of the folder; counts what the actors have done.

    Raises:
        ValueError: naming items that cannot be read, unless they may be skipped.
    """
    if not parts.missing:
        return
    if not ray.is_initialized():
        ray.init()
    found = ray.cluster_resources()
    gpus, cpus = int(found.get("GPU", 0)), 1 + work.workers
    actors = gpus or max(1, int(found.get("CPU", 1)) // cpus)
    size = max(1, min(_MOST_CHUNKS, len(parts.missing) // (4 * actors)))
    rows = [
        {"chunks": [(chunk.start, chunk.stop) for chunk in parts.missing[first : first + size]]}
        for first in range(0, len(parts.missing), size)
    ]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        EmbedChunks,  # type: ignore[arg-type]  # a class makes actors
        fn_constructor_args=(load, work, parts),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(rows))),
        num_cpus=cpus,
        num_gpus=1 if gpus else 0,
    )
    for row in made.iter_rows():
        parts.done += row["items"]
        parts.skipped |= dict(zip(row["keys"], row["errors"], strict=True))
        if row["fault"]:
            raise ValueError(row["fault"])
