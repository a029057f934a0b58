"""Loaders over a stream folder: endless and resumable to the sample for training, exact and even for evaluation."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.parcel import Parcel
from onepeace_lightning.data.sampler import (
    BadSample,
    BadSamples,
    TrainStream,
    owned,
    rank_range,
    read_positions,
    sample_rng,
)
from onepeace_lightning.data.shards import Manifest, read_manifest

log = logging.getLogger(__name__)

Prepare = Callable[[dict[str, Any], np.random.Generator], Any]
"""A raw sample ``{"__key__", "__shard__", extension: bytes}`` to what ``Collate`` joins; raises ``BadSample``."""
Collate = Callable[[list[Any]], Batch]

TOPOLOGY = ("world_size", "num_workers", "batch_size", "shuffle_buffer")
"""What must be as it was for a run to go on at the very next sample (no worker process counts as one worker)."""


class TrainLoader:
    """Batches for ever, in epochs of a fixed number of steps, resumable at the next sample.

    Every sample is used exactly once per pass over all ranks and workers (``stream``), and passes follow each other
    without a gap: an epoch is only a number of steps, and its end neither loses nor repeats a sample. Bad samples are
    skipped, counted and logged, and end the run when they are too many (``stream.BadSamples`` has the rule).

    After ``load_state_dict`` the batches that follow are those that the uninterrupted run would have made. Within a
    process group ``state_dict`` is a collective call (a checkpoint is written by one rank but serves all of them).

    Args:
        folder: a stream folder.
        batch_size: samples in a batch of one rank.
        prepare: decodes one sample; must be picklable where workers are spawned.
        collate: joins prepared samples.
        steps_per_epoch: batches in an epoch; by default as many as one pass needs, rounded up.
        rank: this rank.
        world_size: ranks that share the folder.
        num_workers: worker processes; 0 prepares in this one.
        seed: of order, augmentation and masks.
        shuffle_buffer: undecoded samples that a worker holds to draw from; 1 keeps the order of the shards.
        max_bad_share: greatest share of bad samples that is put up with.
        pin_memory: copy batches to page-locked memory.

    Raises:
        ShardError: the folder is not a sound stream folder.
        ValueError: an argument out of its range, or fewer samples than ranks.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int,
        prepare: Prepare,
        collate: Collate,
        *,
        steps_per_epoch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        shuffle_buffer: int = 1000,
        max_bad_share: float = 0.01,
        pin_memory: bool = False,
    ) -> None:
        manifest = read_manifest(folder)
        _check(
            {
                f"shuffle_buffer={shuffle_buffer}: at least 1 (which keeps the order)": shuffle_buffer < 1,
                f"seed={seed}: at least 0": seed < 0,
                f"max_bad_share={max_bad_share}: from 0 to 1": not 0 <= max_bad_share <= 1,
                f"steps_per_epoch={steps_per_epoch}: at least 1": steps_per_epoch is not None and steps_per_epoch < 1,
                f"world_size={world_size}: at most the number of samples, {manifest.samples}; use fewer ranks or more"
                " data": world_size > manifest.samples,
            },
            manifest, batch_size, rank, world_size, num_workers,
        )  # fmt: skip
        self.stream = TrainStream(manifest, batch_size, rank, world_size, max(1, num_workers), seed, shuffle_buffer)
        self.steps_per_epoch = steps_per_epoch or ceil(manifest.samples / (batch_size * world_size))
        self.num_workers = num_workers
        self.max_bad_share = max_bad_share
        self._prepare, self._collate, self._pin_memory = prepare, collate, pin_memory
        self._done = 0  # batches yielded since the run began
        self._first_done = 0  # … of them before ``stream.first_pass`` began
        self._consumed = [0] * self.stream.workers  # raw samples per worker since then

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches that remain of the current epoch of steps."""
        dataset = _TrainBatches(
            self.stream,
            self._prepare,
            self._collate,
            self.max_bad_share,
            done=self._done - self._first_done,
            consumed=tuple(self._consumed),
            steps=self.steps_per_epoch - self._done % self.steps_per_epoch,
        )
        for batch in _batches(dataset, self.num_workers, self._pin_memory):
            self._done += 1
            self._consumed[batch.worker] = batch.consumed
            yield batch

    @property
    def bad_samples(self) -> int:
        """Samples that this rank has skipped (since the stream began, see ``load_state_dict``)."""
        return sum(self._consumed) - (self._done - self._first_done) * self.stream.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: plain numbers, the same on every rank of a process group."""
        consumed = {self.stream.rank: list(self._consumed)}
        if self.stream.world_size > 1 and dist.is_available() and dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, consumed)
            consumed = {rank: counts for part in gathered for rank, counts in part.items()}
        return {
            "done": self._done,
            "consumed": consumed,
            "first_done": self._first_done,
            "first_pass": self.stream.first_pass,
            "seed": self.stream.seed,
            "fingerprint": self.stream.manifest.fingerprint(),
            **self._topology(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader's state says.

        With another topology (``TOPOLOGY``) there is no next sample; the run goes on at the start of the pass that
        was under way, with a warning.

        Raises:
            ValueError: the state is of other data, of another seed, or lacks this rank.
        """
        folder = self.stream.manifest.folder
        if state["fingerprint"] != (now := self.stream.manifest.fingerprint()):
            raise ValueError(
                f"{folder}: the state to resume from was made on other data (fingerprint {state['fingerprint']}, here "
                f"{now}): restore the shards, or start a new run from the checkpoint's weights only"
            )
        if state["seed"] != self.stream.seed:
            raise ValueError(
                f"{folder}: the state to resume from was made with seed={state['seed']}, here seed={self.stream.seed}: "
                f"set seed={state['seed']}, or start a new run from the checkpoint's weights only"
            )
        then = {name: state[name] for name in TOPOLOGY}
        if then != self._topology():
            used = (state["done"] - state["first_done"]) * state["batch_size"] * state["world_size"]
            first_pass = state["first_pass"] + used // self.stream.manifest.samples
            log.warning(
                "%s: the run was stopped with %s and goes on with %s, so it cannot go on at the very next sample: "
                "it goes on at the start of pass %d, which was under way",
                folder, then, self._topology(), first_pass,
            )  # fmt: skip
            first_done, consumed = state["done"], [0] * self.stream.workers
        elif self.stream.rank not in state["consumed"]:
            raise ValueError(
                f"{folder}: the state to resume from is of rank {sorted(state['consumed'])} only, this is rank "
                f"{self.stream.rank}: take the state inside the process group, or on every rank"
            )
        else:
            first_pass, first_done = state["first_pass"], state["first_done"]
            consumed = list(state["consumed"][self.stream.rank])
        self.stream = replace(self.stream, first_pass=first_pass)
        self._done, self._first_done, self._consumed = state["done"], first_done, consumed

    def _topology(self) -> dict[str, int]:
        return {
            "world_size": self.stream.world_size,
            "num_workers": self.stream.workers,  # 0 and 1 make the same batches
            "batch_size": self.stream.batch_size,
            "shuffle_buffer": self.stream.shuffle_buffer,
        }


class EvalLoader:
    """Every sample exactly once over all ranks, in the order of the manifest, the same number of batches on each rank.

    Batches follow each other in the same order for any number of workers, and their sizes are within one of each
    other, so that collective calls match. Where a rank has no sample for a batch (a gallery of fewer samples than
    ranks), it gets one of another rank's that is marked as a filler. A bad sample is an error.

    Args:
        folder: a stream folder.
        batch_size: most samples in a batch.
        prepare: decodes one sample; its generator is seeded by the sample's position.
        collate: joins prepared samples.
        rank: this rank.
        world_size: ranks that share the folder.
        num_workers: worker processes; 0 prepares in this one.
        pin_memory: copy batches to page-locked memory.

    Raises:
        ShardError: the folder is not a sound stream folder.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int,
        prepare: Prepare,
        collate: Collate,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        manifest = read_manifest(folder)
        _check({}, manifest, batch_size, rank, world_size, num_workers)
        steps = ceil(ceil(manifest.samples / world_size) / batch_size)
        positions = rank_range(manifest.samples, rank, world_size)
        self._dataset = _EvalBatches(manifest, positions, steps, prepare, collate)
        self.num_workers = num_workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return self._dataset.steps

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self._dataset, self.num_workers, self._pin_memory)


class _TrainBatches(IterableDataset[Batch]):
    """The rest of an epoch; each worker makes its share of it."""

    def __init__(
        self,
        stream: TrainStream,
        prepare: Prepare,
        collate: Collate,
        max_bad_share: float,
        *,
        done: int,
        consumed: tuple[int, ...],
        steps: int,
    ) -> None:
        self.stream, self.prepare, self.collate, self.max_bad_share = stream, prepare, collate, max_bad_share
        self.done, self.consumed, self.steps = done, consumed, steps

    def __iter__(self) -> Iterator[Batch]:
        process = _worker_id()
        # A DataLoader asks its process 0 first, whoever's turn it is.
        worker = (process + self.done) % self.stream.workers
        share = len(range(process, self.steps, self.stream.workers))
        return islice(self._worker_batches(worker), share)

    def _worker_batches(self, worker: int) -> Iterator[Batch]:
        stream, consumed = self.stream, self.consumed[worker]
        made = owned(self.done * stream.batch_size, stream.batch_size, worker, stream.workers)
        bad = BadSamples(str(stream.manifest.folder), self.max_bad_share, seen=consumed, bad=consumed - made)
        prepared = []
        for taken in stream.samples(worker, consumed):
            rng = sample_rng(stream.seed, taken.pass_index, taken.position)
            try:
                prepared.append(self.prepare(taken.raw, rng))
            except BadSample as error:
                bad.skip(_located(error, taken.raw), first_pass=taken.pass_index == stream.first_pass)
            bad.judge(taken.ends_pass)
            if len(prepared) == stream.batch_size:
                batch = self.collate(prepared)
                batch.worker, batch.consumed = worker, bad.seen
                yield batch
                prepared = []


class _EvalBatches(IterableDataset[Batch]):
    """A rank's part of the folder in ``steps`` batches; worker w makes every W-th of them."""

    def __init__(self, manifest: Manifest, positions: range, steps: int, prepare: Prepare, collate: Collate) -> None:
        self.manifest, self.positions, self.steps = manifest, positions, steps
        self.prepare, self.collate = prepare, collate

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        mine = [
            self.positions[step * len(self.positions) // self.steps : (step + 1) * len(self.positions) // self.steps]
            for step in range(_worker_id(), self.steps, info.num_workers if info else 1)
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
            raise _located(error, raw) from error


def _batches(dataset: IterableDataset[Batch], num_workers: int, pin_memory: bool) -> Iterator[Batch]:
    # A DataLoader draws from torch's global generator unless it has one: a resumed run would see other numbers.
    generator = torch.Generator()
    loader = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=Parcel if num_workers else None,  # what is done to a batch before it leaves its worker
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=generator,
    )
    try:
        yield from loader
    except Exception as error:
        if not num_workers:
            raise
        # The worker's own traceback is in the message. This process's would keep the loader in a reference cycle,
        # where its processes are waited for in vain for 5 s each.
        raise error.with_traceback(None) from None


def _worker_id() -> int:
    info = get_worker_info()
    return info.id if info else 0


def _located(error: BadSample, raw: dict[str, Any]) -> BadSample:
    return BadSample(error.reason, raw["__key__"], raw["__shard__"])


def _check(
    problems: dict[str, bool], manifest: Manifest, batch_size: int, rank: int, world_size: int, num_workers: int
) -> None:
    """Raise one error that names every problem (message to whether it holds)."""
    problems = problems | {
        f"batch_size={batch_size}: at least 1": batch_size < 1,
        f"rank={rank}: from 0 to world_size - 1 (world_size={world_size})": not 0 <= rank < world_size,
        f"num_workers={num_workers}: at least 0": num_workers < 0,
    }
    if found := [problem for problem, holds in problems.items() if holds]:
        raise ValueError(f"{manifest.folder}: " + "; ".join(found))
