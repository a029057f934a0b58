"""Which sample goes to which rank, worker and batch: exact on any topology, and known without reading anything.

A *pass* is every sample of a source once. Its order, the *positions*, is a function of (data, seed, pass) alone: the
shards in a drawn order, the samples of each shard mixed within blocks of ``BLOCK``. Topology only says who reads what:

* Each rank gets a contiguous range of the positions, ranges are within one of each other and move on by one rank from
  pass to pass.
* Each of its workers gets a contiguous chunk of that: as many as its batches hold of this pass. So where batches divide
  the range evenly, every range/B batches are exactly one pass, whatever the number of workers.
* A worker cuts its chunk into *pieces*, the parts of a chunk in one shard (or smaller ones, where it has few shards),
  and reads ``Topology.at_once`` of them in turn, one sample of each. A piece that ends is replaced by the next one.

So what a worker has given of a chunk are the beginnings of pieces, and a number says how far it is. What is left of the
passes under way is a list of ranges of positions, and any other topology can divide that list in the same way: a run
goes on at the next sample on any number of ranks and workers, and every pass remains every sample once.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace_lightning.data.manifest import Manifest
from onepeace_lightning.data.shards import ShardReaders, read_shard
from onepeace_lightning.data.tars import ShardError

BLOCK = 64
"""Neighbours in a shard among which its samples are mixed."""

Intervals = NDArray[np.int64]
"""(K, 2): ranges [start, stop) of positions, increasing."""


def size(intervals: Intervals) -> int:
    """Number of positions."""
    return int((intervals[:, 1] - intervals[:, 0]).sum())


def cut(intervals: Intervals, start: int, stop: int) -> Intervals:
    """The start-th to stop-th (exclusive) of the positions."""
    ends = np.cumsum(intervals[:, 1] - intervals[:, 0])
    begins = ends - (intervals[:, 1] - intervals[:, 0])
    low = intervals[:, 0] + np.maximum(start - begins, 0)
    high = intervals[:, 1] - np.maximum(ends - stop, 0)
    return np.stack([low, high], axis=1)[low < high]


def union(parts: Sequence[Intervals]) -> Intervals:
    """All positions of disjoint intervals, those that touch joined."""
    every = np.concatenate([np.zeros((0, 2), np.int64), *parts])
    every = every[np.argsort(every[:, 0])]
    if not len(every):
        return every
    first = np.concatenate([[True], every[1:, 0] != every[:-1, 1]])
    return np.stack([every[first, 0], every[np.roll(first, -1), 1]], axis=1)


def rank_range(samples: int, rank: int, world_size: int) -> range:
    """Which of so many positions a rank owns: contiguous, sizes within one of each other."""
    return range(rank * samples // world_size, (rank + 1) * samples // world_size)


@dataclass(frozen=True)
class Topology:
    """Who reads a stream, and how.

    Attributes:
        world_size: ranks that share it.
        workers: data workers of each rank, at least 1.
        batch_size: samples in a batch of one rank.
        shuffle_buffer: samples that each worker mixes; it reads one shard at a time for every ``BLOCK`` of them.
        weights: what fraction of every batch each source has, in any unit.
    """

    world_size: int
    workers: int
    batch_size: int
    shuffle_buffer: int
    weights: tuple[float, ...] = (1.0,)

    @property
    def at_once(self) -> int:
        """Pieces that a worker reads in turn."""
        return -(-self.shuffle_buffer // BLOCK)

    def in_batches(self, source: int, batches: int) -> int:
        """Samples of a source in the first so many batches of any worker.

        The first source gets its fraction, rounded, the second its fraction of what is left, and so on: each number
        grows with the batches, and together they fill them.
        """
        places = self.batch_size * batches
        for before in range(source):
            places -= self._given(before, places)
        return self._given(source, places)

    def owned(self, source: int, places: int, worker: int) -> int:
        """How many of a rank's first so many samples of a source lie in batches of this worker.

        Worker w makes the rank's batches w, w + W, … .
        """
        fraction = self.weights[source] / sum(self.weights)
        most = (places / self.workers + len(self.weights) + 1) / (self.batch_size * fraction)
        rounds = range(int(most) + 2)
        done = max(0, bisect.bisect_right(rounds, places, key=lambda n: self.workers * self.in_batches(source, n)) - 1)
        before = self.in_batches(source, done)
        batch = self.in_batches(source, done + 1) - before
        return before + min(max(places - self.workers * before - worker * batch, 0), batch)

    def _given(self, source: int, places: int) -> int:
        return int(self.weights[source] / sum(self.weights[source:]) * places + 0.5)


class PassOrder:
    """The order of all samples in one pass.

    Args:
        manifest: the source.
        key: draws the order: the seed, the source's index and the pass.
    """

    def __init__(self, manifest: Manifest, *key: int) -> None:
        self._key = key
        self.shards = np.random.default_rng(self._key).permutation(len(manifest.shards))
        self._ends = np.cumsum(manifest.sizes[self.shards])
        self._starts = self._ends - manifest.sizes[self.shards]

    def pieces(self, chunk: Intervals, at_least: int) -> list[range]:
        """Cut a chunk where shards begin, and further if that gives fewer pieces than there should be."""
        pieces = []
        for start, stop in chunk.tolist():
            first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
            edges = [start, *self._ends[first:last].tolist(), stop]
            pieces += [range(low, high) for low, high in pairwise(edges) if low < high]
        parts = -(-at_least // max(1, len(pieces)))
        if parts == 1:
            return pieces
        cuts = [
            [piece[part * len(piece) // parts : (part + 1) * len(piece) // parts] for part in range(parts)]
            for piece in pieces
        ]
        return [part for parts in cuts for part in parts if part]

    def shard(self, piece: range) -> int:
        """Index of the shard in which a piece lies."""
        return int(self.shards[np.searchsorted(self._ends, piece.start, side="right")])

    def samples(self, piece: range) -> Iterator[tuple[int, int]]:
        """Index of the shard and index in the shard of each position of a piece."""
        place = int(np.searchsorted(self._ends, piece.start, side="right"))
        shard, start, samples = int(self.shards[place]), int(self._starts[place]), int(self._ends[place])
        samples -= start
        for block in range((piece.start - start) // BLOCK * BLOCK, piece.stop - start, BLOCK):
            mixed = np.random.default_rng([*self._key, shard, block]).permutation(min(BLOCK, samples - block))
            low, high = max(piece.start - start - block, 0), min(piece.stop - start - block, BLOCK)
            yield from ((shard, block + index) for index in mixed[low:high].tolist())


@dataclass
class _Turns:
    """Where a worker is in its chunk: open pieces and what each has given, whose turn it is, which opens next."""

    sizes: Sequence[int]
    open: dict[int, int]
    turn: int
    upcoming: int

    @classmethod
    def after(cls, sizes: Sequence[int], at_once: int, taken: int) -> "_Turns":
        """Advance by whole rounds. In a round each open piece gives one; at its end finished ones are replaced."""
        first = min(at_once, len(sizes))
        turns = cls(sizes, dict.fromkeys(range(first), 0), 0, first)
        while turns.open:
            least = min(sizes[piece] - given for piece, given in turns.open.items())
            rounds = min(taken // len(turns.open), least)
            turns.open = {piece: given + rounds for piece, given in turns.open.items()}
            taken -= rounds * len(turns.open)
            if rounds < least:
                break
            turns._replace()
        turns.turn = taken
        for piece in list(turns.open)[:taken]:
            turns.open[piece] += 1
        return turns

    def __iter__(self) -> Iterator[int]:
        """The pieces that give the next samples, to the end of the chunk."""
        while self.open:
            for piece in list(self.open)[self.turn :]:
                self.open[piece] += 1
                yield piece
            self.turn = 0
            self._replace()

    def _replace(self) -> None:
        still = {}
        for piece, given in self.open.items():
            if given < self.sizes[piece]:
                still[piece] = given
            elif self.upcoming < len(self.sizes):
                still[self.upcoming] = 0
                self.upcoming += 1
        self.open = still


@dataclass(frozen=True)
class Taken:
    """One sample where it is in the stream; ``raw`` is the error where its shard could not be read."""

    raw: dict[str, Any] | ShardError
    pass_index: int
    position: int


@dataclass(frozen=True)
class SourceStream:
    """What one source still has to give.

    Attributes:
        manifest: the source.
        seed: draws its orders.
        index: which of the stream's sources it is.
        left: passes under way, one after the other, and the positions of each that are left.
        next_pass: the first pass that is whole, all later ones are.
    """

    manifest: Manifest
    seed: int
    index: int = 0
    left: tuple[tuple[int, Intervals], ...] = ()
    next_pass: int = 0

    def chunks(self, topology: Topology, rank: int, worker: int) -> Iterator[tuple[int, Intervals]]:
        """The chunk of every pass that a worker reads, without end."""
        begin = 0
        for part in count():
            pass_index, left = self._part(part)
            slot = (rank + pass_index) % topology.world_size
            mine = rank_range(size(left), slot, topology.world_size)
            end = begin + len(mine)
            owned = [
                topology.owned(self.index, end, other) - topology.owned(self.index, begin, other)
                for other in range(worker + 1)
            ]
            start = mine.start + sum(owned[:-1])
            yield pass_index, cut(left, start, start + owned[-1])
            begin = end

    def samples(
        self, topology: Topology, rank: int, worker: int, consumed: int, readers: ShardReaders
    ) -> Iterator[Taken]:
        """A worker's samples without end, but not the first ``consumed``, whose shards are opened only if needed.

        Args:
            topology: who else reads.
            rank: of the process.
            worker: of the rank.
            consumed: samples that it has given since this state.
            readers: opens the source's shards.

        Yields:
            What was read, in the order in which it goes into batches.
        """
        for pass_index, chunk in self.chunks(topology, rank, worker):
            if consumed < (length := size(chunk)):
                yield from self._read(pass_index, chunk, topology.at_once, consumed, readers)
            consumed = max(0, consumed - length)

    def after(self, topology: Topology, consumed: Mapping[int, Sequence[int]]) -> "SourceStream":
        """What is left once every worker of every rank has given so many samples.

        Args:
            topology: that they were given under.
            consumed: rank to the samples of each of its workers.
        """
        workers = [(rank, worker) for rank in range(topology.world_size) for worker in range(topology.workers)]
        chunks = [self.chunks(topology, rank, worker) for rank, worker in workers]
        given = [consumed[rank][worker] for rank, worker in workers]
        left: list[tuple[int, Intervals]] = []
        for part in count():
            pass_index, _ = self._part(part)
            if part >= len(self.left) and not any(given):
                return replace(self, left=tuple(left), next_pass=pass_index)
            order = PassOrder(self.manifest, self.seed, self.index, pass_index)
            rest = []
            for place, every in enumerate(chunks):
                _, chunk = next(every)
                taken = min(given[place], size(chunk))
                given[place] -= taken
                rest.append(_rest(order, chunk, topology.at_once, taken))
            remaining = union(rest)
            if left or len(remaining):
                left.append((pass_index, remaining))
        raise AssertionError("passes never end")

    def _part(self, part: int) -> tuple[int, Intervals]:
        if part < len(self.left):
            return self.left[part]
        return self.next_pass + part - len(self.left), np.array([[0, self.manifest.samples]], np.int64)

    def _read(
        self, pass_index: int, chunk: Intervals, at_once: int, taken: int, readers: ShardReaders
    ) -> Iterator[Taken]:
        order = PassOrder(self.manifest, self.seed, self.index, pass_index)
        pieces = order.pieces(chunk, at_once)
        turns = _Turns.after([len(piece) for piece in pieces], at_once, taken)
        given = dict(turns.open)
        places: dict[int, Iterator[tuple[int, tuple[int, int]]]] = {}
        for piece in turns:
            if piece not in places:
                rest = pieces[piece][given.get(piece, 0) :]
                places[piece] = zip(rest, order.samples(rest), strict=True)
                readers.soon(map(order.shard, pieces[piece + 1 : piece + 1 + at_once]))
            position, (shard, index) = next(places[piece])
            if position == pieces[piece].stop - 1:
                del places[piece]
            yield Taken(readers.read(shard, index), pass_index, position)


def _rest(order: PassOrder, chunk: Intervals, at_once: int, taken: int) -> Intervals:
    """What a worker has left of a chunk of which it has given so many samples."""
    if taken in (0, size(chunk)):
        return chunk[: 0 if taken else None]
    pieces = order.pieces(chunk, at_once)
    turns = _Turns.after([len(piece) for piece in pieces], at_once, taken)
    rest = [pieces[piece][given:] for piece, given in turns.open.items()] + pieces[turns.upcoming :]
    return np.array([[piece.start, piece.stop] for piece in rest if piece], np.int64).reshape(-1, 2)


def sample_rng(seed: int, pass_index: int, position: int, source: int = 0) -> np.random.Generator:
    """The generator for one sample's augmentation and masks: the same on every rank and worker."""
    return np.random.default_rng([seed, pass_index, position, source])


def read_positions(
    manifest: Manifest, shard_order: Sequence[int], wanted: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read samples by position, in order, opening only the shards that hold one.

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
            for place, sample in read_shard(manifest, shard, (places[low:high] - begin).tolist()):
                yield begin + place, sample
        begin += shard.samples
