"""The evaluation loader: every sample exactly once over all ranks."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from onepeace_lightning.data.bad_samples import BadSample
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.manifest import Manifest, Paths
from onepeace_lightning.data.sampler import rank_range, read_positions, sample_rng
from onepeace_lightning.data.sources import named, shared_manifest
from onepeace_lightning.data.storage import StorageConfig
from onepeace_lightning.data.workers import JoinExamples, ReadSample, check_sizes, located, worker_batches, worker_id


class EvalLoader:
    """Every sample exactly once over all ranks, in the order of the manifest, the same number of batches on each rank.

    Batches follow each other in the same order for any number of workers, and their sizes are within one of each
    other, so that collective calls match. Where a rank has no sample for a batch (a gallery of fewer samples than
    ranks), it gets one of another rank's that is marked as a filler. A bad sample is an error.

    Args:
        paths: where the shards are (``manifest.Paths``).
        batch_size: most samples in a batch.
        prepare: decodes one sample; its generator is seeded by the sample's position.
        collate: joins prepared samples.
        rank: this rank.
        world_size: ranks that share the folder.
        num_workers: worker processes; 0 prepares in this one.
        storage: how files at URLs are read.
        pin_memory: copy batches to page-locked memory.

    Raises:
        ShardError: the paths do not hold sound shards.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        paths: Paths,
        batch_size: int,
        prepare: ReadSample,
        collate: JoinExamples,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        storage: StorageConfig = StorageConfig(),  # noqa: B008 (frozen)
        pin_memory: bool = False,
    ) -> None:
        manifest = shared_manifest(paths, storage)
        check_sizes({}, named(paths), batch_size, rank, world_size, num_workers)
        steps = ceil(ceil(manifest.samples / world_size) / batch_size)
        positions = rank_range(manifest.samples, rank, world_size)
        self._dataset = _EvalBatches(manifest, positions, steps, prepare, collate)
        self.num_workers = num_workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return self._dataset.steps

    def __iter__(self) -> Iterator[Batch]:
        return worker_batches(self._dataset, self.num_workers, self._pin_memory)


class _EvalBatches(IterableDataset[Batch]):
    """A rank's part of the folder in ``steps`` batches; worker w makes every W-th of them."""

    def __init__(
        self, manifest: Manifest, positions: range, steps: int, prepare: ReadSample, collate: JoinExamples
    ) -> None:
        self.manifest, self.positions, self.steps = manifest, positions, steps
        self.prepare, self.collate = prepare, collate

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        mine = [
            self.positions[step * len(self.positions) // self.steps : (step + 1) * len(self.positions) // self.steps]
            for step in range(worker_id(), self.steps, info.num_workers if info else 1)
        ]
        samples = self._read([position for batch in mine for position in batch])
        for positions in mine:
            if positions:
                yield self.collate([self._prepared(*sample) for sample in islice(samples, len(positions))])
            else:
                nearest = min(self.positions.start, self.manifest.samples - 1)
                filler = self.collate([self._prepared(*sample) for sample in self._read([nearest])])
                yield replace(filler, filler=True)

    def _read(self, positions: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        return read_positions(self.manifest, range(len(self.manifest.shards)), positions)

    def _prepared(self, position: int, raw: dict[str, Any]) -> Any:
        try:
            return self.prepare(raw, sample_rng(0, 0, position))
        except BadSample as error:
            raise located(error, raw) from error
