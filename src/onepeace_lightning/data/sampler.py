"""Which sample goes to which rank, worker and batch: exact, and known without reading anything.

A *pass* is every sample of a folder once, its shards in an order drawn from (seed, pass); a *position* counts samples
in that order. Rank r of R owns a contiguous range of every pass, the same one each time. The ranges of all passes
laid end to end are the rank's stream: its places k·B … (k+1)·B - 1 are batch k, and batch k belongs to worker k mod W.
So of every pass a worker owns a number of samples that follows from arithmetic alone, and it takes them as one
contiguous chunk of the rank's range: few shards are opened, no sample is read twice or left out, and where batches
divide the range evenly every range/B batches are exactly one pass, whatever the number of workers.

Within its chunk a worker shuffles through a buffer. The order is drawn for positions, not for samples, so resuming
replays it without reading.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import webdataset as wds

from onepeace_lightning.data.shards import Manifest, read_shard

log = logging.getLogger(__name__)

JUDGED_AFTER = 100
"""Samples that a worker must have seen before a share of bad ones means anything (or one whole pass, if shorter)."""


class BadSample(ValueError):  # noqa: N818 - it names the sample, and is no failure of the program
    """A sample that cannot be used: undecodable, empty, or without a field.

    Whoever prepares a sample raises ``BadSample(reason)``; the stream fills in where it was.

    Attributes:
        reason: what is wrong.
        key: the sample's key.
        shard: the tar file that holds it.
    """

    def __init__(self, reason: str, key: str = "", shard: str = "") -> None:
        super().__init__(reason, key, shard)
        self.reason, self.key, self.shard = reason, key, shard

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key!r}: {self.reason}" if self.key else self.reason


class TooManyBadSamplesError(RuntimeError):
    """The share of bad samples is past what the user allows."""


@dataclass
class BadSamples:
    """Counts a worker's bad samples and stops the run when they are too many.

    The share is bad / seen over everything this worker has seen since the run began, resumed parts included. It is
    judged from ``JUDGED_AFTER`` samples on, and at the end of each pass over the worker's part of the data.

    Attributes:
        folder: for the message.
        max_share: the greatest share allowed.
        seen: samples taken, bad ones included.
        bad: samples skipped.
        last: the last one skipped, for the message.
    """

    folder: str
    max_share: float
    seen: int = 0
    bad: int = 0

    last: str = "in an earlier part of this run"

    def skip(self, error: BadSample, first_pass: bool) -> None:
        """Count one. It is met once in every pass, so warning in the first pass is warning once, whoever meets it."""
        self.bad += 1
        self.last = str(error)
        log.log(
            logging.WARNING if first_pass else logging.DEBUG, "%s: skipped a bad sample: %s", self.folder, self.last
        )

    def judge(self, end_of_pass: bool) -> None:
        """Count one sample as seen.

        Raises:
            TooManyBadSamplesError: the share is past the limit.
        """
        self.seen += 1
        if (self.seen >= JUDGED_AFTER or end_of_pass) and self.bad > self.max_share * self.seen:
            raise TooManyBadSamplesError(
                f"{self.folder}: {self.bad} of {self.seen} samples were bad, more than max_bad_share={self.max_share}; "
                f"the last one: {self.last}. Mend the data (each bad sample was logged) or raise max_bad_share."
            )


def rank_range(samples: int, rank: int, world_size: int) -> range:
    """Positions of a pass that a rank owns: contiguous, sizes within one of each other."""
    return range(rank * samples // world_size, (rank + 1) * samples // world_size)


def owned(places: int, batch_size: int, worker: int, num_workers: int) -> int:
    """How many of the first places of a rank's stream lie in batches of this worker."""
    rounds, rest = divmod(places, batch_size * num_workers)
    return rounds * batch_size + min(max(rest - worker * batch_size, 0), batch_size)


def worker_chunk(positions: range, batch_size: int, pass_index: int, worker: int, num_workers: int) -> range:
    """Positions that a worker reads in one pass: as many as its batches hold of it, contiguous, in worker order.

    Args:
        positions: the rank's range of a pass.
        batch_size: samples in a batch.
        pass_index: passes since the stream began; a batch may straddle passes, so shares differ from pass to pass.
        worker: 0 … num_workers - 1.
        num_workers: workers of this rank, at least 1.
    """
    begin, end = pass_index * len(positions), (pass_index + 1) * len(positions)
    sizes = [
        owned(end, batch_size, other, num_workers) - owned(begin, batch_size, other, num_workers)
        for other in range(worker + 1)
    ]
    start = positions.start + sum(sizes[:-1])
    return range(start, start + sizes[-1])


def read_positions(
    manifest: Manifest, shard_order: Sequence[int], wanted: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read samples of a pass by position, in order, opening only the shards that hold one.

    Args:
        manifest: the folder.
        shard_order: indices into ``manifest.shards``; positions count through the shards in this order.
        wanted: positions, increasing.

    Yields:
        The position and the undecoded sample (``shards.read_shard``).
    """
    places = np.asarray(wanted)
    begin = 0
    for index in shard_order:
        shard = manifest.shards[index]
        low, high = np.searchsorted(places, [begin, begin + shard.samples])
        if low < high:
            for place, sample in read_shard(manifest.folder, shard, set((places[low:high] - begin).tolist())):
                yield begin + place, sample
        begin += shard.samples


def sample_rng(seed: int, pass_index: int, position: int) -> np.random.Generator:
    """The generator for one sample's augmentation and masks: the same on every rank and worker."""
    return np.random.default_rng([seed, pass_index, position])


@dataclass(frozen=True)
class Taken:
    """One raw sample, where in the stream it comes from, and whether it is the worker's last one of its pass."""

    raw: dict[str, Any]
    pass_index: int
    position: int
    ends_pass: bool


@dataclass(frozen=True)
class TrainStream:
    """The endless stream of a rank.

    Attributes:
        manifest: the folder.
        batch_size: samples in a batch of this rank.
        rank: this rank.
        world_size: ranks that share the folder.
        workers: data workers of each rank, at least 1.
        seed: of shard orders and shuffling.
        shuffle_buffer: undecoded samples held to draw from.
        first_pass: where the stream begins.
    """

    manifest: Manifest
    batch_size: int
    rank: int
    world_size: int
    workers: int
    seed: int
    shuffle_buffer: int
    first_pass: int = 0

    def shard_order(self, pass_index: int) -> list[int]:
        """The order of the shards in a pass, the same for all ranks and workers."""
        order: list[int] = (
            np.random.default_rng([self.seed, pass_index]).permutation(len(self.manifest.shards)).tolist()
        )
        return order

    def order(self, pass_index: int, worker: int) -> list[int]:
        """The positions that a worker takes in a pass, in the order in which it takes them."""
        positions = rank_range(self.manifest.samples, self.rank, self.world_size)
        chunk = worker_chunk(positions, self.batch_size, pass_index - self.first_pass, worker, self.workers)
        rng = random.Random(f"{self.seed}/{pass_index}/{self.rank}/{worker}")
        return list(wds.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=rng)(iter(chunk)))

    def samples(self, worker: int, consumed: int = 0) -> Iterator[Taken]:
        """A worker's raw samples for ever, without the first ``consumed``, whose shards are opened only if needed."""
        positions = rank_range(self.manifest.samples, self.rank, self.world_size)
        pass_index = self.first_pass
        while True:
            chunk = worker_chunk(positions, self.batch_size, pass_index - self.first_pass, worker, self.workers)
            if consumed < len(chunk):
                yield from self._pass(pass_index, self.order(pass_index, worker)[consumed:])
            consumed = max(0, consumed - len(chunk))
            pass_index += 1

    def _pass(self, pass_index: int, order: list[int]) -> Iterator[Taken]:
        held: dict[int, dict[str, Any]] = {}
        taken = 0
        for position, raw in read_positions(self.manifest, self.shard_order(pass_index), sorted(order)):
            held[position] = raw
            while taken < len(order) and order[taken] in held:
                place = order[taken]
                taken += 1
                yield Taken(held.pop(place), pass_index, place, ends_pass=taken == len(order))
