"""The training loader: endless, and resumable to the sample."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.utils.data import IterableDataset

from onepeace_lightning.data.bad_samples import (
    BadSample,
    Counts,
    NoRow,
    WorkerCounts,
    as_counts,
    check_lost,
    judge,
    logged,
    no_counts,
)
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.manifest import Paths
from onepeace_lightning.data.sampler import SourceStream, Taken, Topology, sample_rng
from onepeace_lightning.data.shards import ShardReaders
from onepeace_lightning.data.sources import Source, as_sources, named, shared_manifest
from onepeace_lightning.data.storage import StorageConfig
from onepeace_lightning.data.tars import ShardError
from onepeace_lightning.data.workers import JoinExamples, ReadSample, check_sizes, located, worker_batches, worker_id

log = logging.getLogger(__name__)

JUDGED_EVERY = 100
"""Batches after which all ranks add up their bad samples; they do at the end of an epoch and in a checkpoint too."""


class TrainLoader:
    """Batches without end, in epochs of a fixed number of steps, resumable at the next sample on any topology.

    Every sample, and of samples with several captions every caption, is used exactly once per pass over all ranks and
    workers (``sampler``), and passes follow each other without a gap: an epoch is only a number of steps, and its end
    neither loses nor repeats a sample. Several sources are mixed in every batch by their weights, each with passes of
    its own. Bad samples are skipped, counted and logged, and end the run when they are too many over all ranks
    (``bad_samples.judge``).

    After ``load_state_dict`` the run goes on at the next sample, whatever the numbers of ranks, workers and samples per
    batch are now; where they are as before, the batches are those that the uninterrupted run would have made. Within a
    process group ``state_dict`` is a collective call (a checkpoint is written by one rank but serves all of them), and
    so is every ``JUDGED_EVERY``-th batch.

    Args:
        paths: where the shards are (``manifest.Paths``), or the sources to mix.
        batch_size: samples in a batch of one rank.
        prepare: decodes one sample; must be picklable where workers are spawned.
        collate: joins prepared samples.
        steps_per_epoch: batches in an epoch; by default as many as one pass needs, rounded up.
        rank: this rank.
        world_size: ranks that share the data.
        num_workers: worker processes; 0 prepares in this one.
        seed: of order, augmentation and masks.
        shuffle_buffer: samples that a worker mixes; it reads one shard at a time for every ``sampler.BLOCK`` of them.
        max_bad_fraction: greatest fraction of bad samples that is put up with.
        drop_empty_captions: leave samples with an empty caption out without calling them bad.
        storage: how files at URLs are read.
        pin_memory: copy batches to page-locked memory.

    Raises:
        ShardError: a path does not hold sound shards.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        paths: Paths | Sequence[Source],
        batch_size: int,
        prepare: ReadSample,
        collate: JoinExamples,
        *,
        steps_per_epoch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        shuffle_buffer: int = 1000,
        max_bad_fraction: float = 0.01,
        drop_empty_captions: bool = False,
        storage: StorageConfig = StorageConfig(),  # noqa: B008 (frozen)
        pin_memory: bool = False,
    ) -> None:
        given = as_sources(paths)
        self.names = [source.name or named(source.path) for source in given]
        weighted = [source.weight is not None for source in given]
        check_sizes(
            {
                f"shuffle_buffer={shuffle_buffer}: at least 1": shuffle_buffer < 1,
                f"seed={seed}: at least 0": seed < 0,
                f"max_bad_fraction={max_bad_fraction}: from 0 to 1": not 0 <= max_bad_fraction <= 1,
                f"steps_per_epoch={steps_per_epoch}: at least 1": steps_per_epoch is not None and steps_per_epoch < 1,
                "sources: give at least one": not given,
                "sources: give every source a weight, or none": any(weighted) != all(weighted),
                "sources: weights must be above 0": any(s.weight is not None and s.weight <= 0 for s in given),
            },
            ", ".join(self.names), batch_size, rank, world_size, num_workers,
        )  # fmt: skip
        manifests = [shared_manifest(source.path, storage) for source in given]
        rows = [manifest.rows for manifest in manifests]
        manifests = [manifest.for_training() for manifest in manifests]
        weights = tuple(
            float(number if source.weight is None else source.weight)
            for source, number in zip(given, rows, strict=True)
        )
        self.topology = Topology(world_size, max(1, num_workers), batch_size, shuffle_buffer, weights)
        self.sources = tuple(SourceStream(manifest, seed, index) for index, manifest in enumerate(manifests))
        self.rank, self.seed, self.num_workers = rank, seed, num_workers
        self.steps_per_epoch = steps_per_epoch or ceil(sum(rows) / (batch_size * world_size))
        self.max_bad_fraction, self.drop_empty_captions = max_bad_fraction, drop_empty_captions
        self._prepare, self._collate, self._pin_memory = prepare, collate, pin_memory
        self._done = 0  # batches since ``sources`` were as they are
        self._in_epoch = 0
        self._consumed = [[0] * len(given) for _ in range(self.topology.workers)]  # by worker and source, since then
        self._before = no_counts(len(given))  # of all ranks, in the state that was loaded
        self._own = no_counts(len(given))  # of this rank, since then
        self.counts = no_counts(len(given))
        """Counts (``bad_samples.KINDS``) of each source over all ranks, when they were last added up."""

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches that remain of the current epoch of steps.

        Raises:
            TooManyBadSamplesError: on all ranks alike.
        """
        if self._in_epoch >= self.steps_per_epoch:
            self._in_epoch = 0
        dataset = _TrainBatches(self, self.steps_per_epoch - self._in_epoch)
        for batch, progress in worker_batches(dataset, self.num_workers, self._pin_memory):
            self._done += 1
            self._in_epoch += 1
            self._consumed[progress.worker] = progress.consumed
            self._own += progress.counts
            if self._done % JUDGED_EVERY == 0 or self._in_epoch == self.steps_per_epoch:
                self.judge()
            yield batch

    def judge(self) -> None:
        """Add up what was counted on all ranks, log it where it has grown, and judge it. A collective call.

        Raises:
            TooManyBadSamplesError, TooManyLostShardsError: on all ranks alike.
        """
        own = torch.from_numpy(self._own.copy())
        if self._in_group():
            if dist.get_backend() == "nccl":
                own = own.cuda()
            dist.all_reduce(own)
        counts = self._before + own.cpu().numpy()
        if self.rank == 0:
            logged(self.names, self.counts, counts)
        self.counts = counts
        for name, source, one in zip(self.names, self.sources, counts.tolist(), strict=True):
            judge(name, one, self.max_bad_fraction, drop_empty_captions=self.drop_empty_captions)
            check_lost(name, one, source.manifest.storage.skip_shards)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: plain numbers, the same on every rank of a process group."""
        mine = {self.rank: [list(each) for each in self._consumed]}
        gathered: list[Any] = [(mine, self._own)]
        if self._in_group():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, (mine, self._own))
        counts = self._before + sum(own for _, own in gathered)
        return {
            "seed": self.seed,
            "topology": asdict(self.topology) | {"weights": list(self.topology.weights)},
            "done": self._done,
            "in_epoch": self._in_epoch,
            "steps_per_epoch": self.steps_per_epoch,
            "consumed": {rank: each for part, _ in gathered for rank, each in part.items()},
            "sources": [
                {
                    "fingerprint": source.manifest.fingerprint(),
                    "left": [[pass_index, left.tolist()] for pass_index, left in source.left],
                    "next_pass": source.next_pass,
                    "counts": each,
                }
                for source, each in zip(self.sources, counts.tolist(), strict=True)
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the next sample after another loader's state.

        Raises:
            ValueError: the state is of other data, of another seed, or lacks a rank that is needed.
        """
        what = ", ".join(self.names)
        then = [source["fingerprint"] for source in state["sources"]]
        if then != (now := [source.manifest.fingerprint() for source in self.sources]):
            raise ValueError(
                f"{what}: the state to resume from was made on other data (fingerprint {', '.join(then)}, here "
                f"{', '.join(now)}): restore the shards, or start a new run from the checkpoint's weights only"
            )
        if state["seed"] != self.seed:
            raise ValueError(
                f"{what}: the state to resume from was made with seed={state['seed']}, here seed={self.seed}: "
                f"set seed={state['seed']}, or start a new run from the checkpoint's weights only"
            )
        before = Topology(**state["topology"] | {"weights": tuple(state["topology"]["weights"])})
        same = before == self.topology
        needed = {self.rank} if same else set(range(before.world_size))
        if missing := sorted(needed - set(state["consumed"])):
            raise ValueError(
                f"{what}: the state to resume from is of rank {sorted(state['consumed'])} only, rank "
                f"{', '.join(map(str, missing))} is needed: take the state inside the process group, or on every rank"
            )
        self.sources = tuple(
            SourceStream(
                source.manifest, self.seed, index,
                tuple((pass_index, np.array(left, np.int64).reshape(-1, 2)) for pass_index, left in saved["left"]),
                saved["next_pass"],
            )
            for index, (source, saved) in enumerate(zip(self.sources, state["sources"], strict=True))
        )  # fmt: skip
        self._done = state["done"]
        # Of an epoch that has now fewer batches than were done, Lightning takes no more.
        going = state["in_epoch"] < min(state["steps_per_epoch"], self.steps_per_epoch)
        self._in_epoch = state["in_epoch"] if going else 0
        if same:
            self._consumed = [list(each) for each in state["consumed"][self.rank]]
        else:
            log.info("%s: the run was stopped with %s and goes on with %s", what, before, self.topology)
            self.sources = tuple(
                source.after(before, {r: [w[index] for w in each] for r, each in state["consumed"].items()})
                for index, source in enumerate(self.sources)
            )
            self._done = 0
            self._consumed = [[0] * len(self.sources) for _ in range(self.topology.workers)]
        self._before = self.counts = as_counts([source["counts"] for source in state["sources"]])
        self._own = no_counts(len(self.sources))

    def _in_group(self) -> bool:
        return self.topology.world_size > 1 and dist.is_available() and dist.is_initialized()


class Grouped:
    """A stream's batches in groups, each for one training step; resumed where the last whole group ended.

    Args:
        loader: whose batches they are; its epoch is a multiple of the groups' size.
        size: batches in a group.
    """

    def __init__(self, loader: TrainLoader, size: int) -> None:
        self.loader = loader
        self.size = size

    def __len__(self) -> int:
        return len(self.loader) // self.size

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self.loader)
        while group := list(islice(batches, self.size)):
            yield group

    def state_dict(self) -> dict[str, Any]:
        """As the loader's."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As the loader's."""
        self.loader.load_state_dict(state)


@dataclass
class _Progress:
    """What the training process must know about a batch: whose it is, and how far its worker has come.

    Attributes:
        worker: which data worker made it.
        consumed: how many samples of each source that worker has taken, once this batch was complete.
        counts: what it has counted since its batch before.
    """

    worker: int
    consumed: list[int]
    counts: Counts


class _TrainBatches(IterableDataset[tuple[Batch, _Progress]]):
    """The rest of an epoch; each worker makes its part of it."""

    def __init__(self, loader: TrainLoader, steps: int) -> None:
        self.topology, self.rank, self.sources, self.seed = loader.topology, loader.rank, loader.sources, loader.seed
        self.names, self.prepare, self.collate = loader.names, loader._prepare, loader._collate
        self.drop_empty_captions = loader.drop_empty_captions
        self.done, self.steps = loader._done, steps
        self.consumed = [list(each) for each in loader._consumed]

    def __iter__(self) -> Iterator[tuple[Batch, _Progress]]:
        process = worker_id()
        # A DataLoader asks its process 0 first, whoever's turn it is.
        worker = (process + self.done) % self.topology.workers
        mine = len(range(process, self.steps, self.topology.workers))
        return islice(self._worker_batches(worker), mine)

    def _worker_batches(self, worker: int) -> Iterator[tuple[Batch, _Progress]]:
        topology, consumed = self.topology, self.consumed[worker]
        counts = WorkerCounts(self.names, [source.manifest.samples for source in self.sources])
        readers = [ShardReaders(source.manifest, topology.at_once + 1) for source in self.sources]
        streams = [
            source.samples(topology, self.rank, worker, taken, reader)
            for source, taken, reader in zip(self.sources, consumed, readers, strict=True)
        ]
        number = len(range(worker, self.done, topology.workers))
        while True:
            rows: list[Any] = []
            origins: list[str] = []
            for index, stream in enumerate(streams):
                needed = topology.in_batches(index, number + 1) - topology.in_batches(index, number)
                full = len(rows) + needed
                while len(rows) < full:
                    taken = next(stream)
                    consumed[index] += 1
                    if (row := self._prepared(index, taken, counts)) is not None:
                        rows.append(row)
                origins += [self.names[index]] * needed
            batch = self.collate(rows)
            if len(self.sources) > 1:
                batch.sources = origins
            number += 1
            yield batch, _Progress(worker, list(consumed), counts.take())

    def _prepared(self, index: int, taken: Taken, counts: WorkerCounts) -> Any | None:
        if isinstance(taken.raw, ShardError):
            counts.add(index, "seen")
            self._lost(index, taken.raw, counts)
            return None
        try:
            row = self.prepare(taken.raw, sample_rng(self.seed, taken.pass_index, taken.position, index))
        except NoRow:
            return None
        except BadSample as error:
            counts.add(index, "seen")
            counts.skip(index, located(error, taken.raw), first_pass=taken.pass_index == 0)
            return None
        counts.add(index, "seen")
        counts.good(index)
        return row

    def _lost(self, index: int, error: ShardError, counts: WorkerCounts) -> None:
        if not self.sources[index].manifest.storage.skip_shards:
            raise error
        counts.lose(index, str(error))
