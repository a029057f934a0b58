from collections import Counter
from itertools import islice
from random import Random

import numpy as np
import pytest

from onepeace_lightning.data import tars
from onepeace_lightning.data.counting import Shard
from onepeace_lightning.data.manifest import Manifest, read_manifest
from onepeace_lightning.data.sampler import (
    BLOCK,
    PassOrder,
    SourceStream,
    Topology,
    _Turns,
    cut,
    rank_range,
    sample_rng,
    size,
    union,
)
from onepeace_lightning.data.shards import ShardReaders, ShardWriter


def source(sizes, **changes):
    """A source that exists only in its manifest: enough for orders."""
    manifest = Manifest("nowhere", "text", tuple(Shard(f"{i}.tar", n, 1) for i, n in enumerate(sizes)), "", "")
    return SourceStream(manifest, **{"seed": 0} | changes)


class Indices:
    """Stands for shards: a sample is (shard, index)."""

    def read(self, shard, index):
        return shard, index

    def soon(self, shards):
        assert all(isinstance(shard, int) for shard in shards)


def positions(intervals):
    return [position for start, stop in intervals.tolist() for position in range(start, stop)]


def test_intervals():
    intervals = np.array([[2, 5], [7, 8], [10, 14]])
    every = positions(intervals)
    assert size(intervals) == len(every) == 8
    for start in range(9):
        for stop in range(start, 9):
            assert positions(cut(intervals, start, stop)) == every[start:stop]
    joined = union([np.array([[5, 7], [20, 21]]), intervals, np.zeros((0, 2), np.int64)])
    assert joined.tolist() == [[2, 8], [10, 14], [20, 21]]
    assert union([]).shape == (0, 2)


@pytest.mark.parametrize("samples", [0, 1, 5, 16, 17])
def test_rank_ranges_are_even_and_partition(samples):
    for world_size in range(1, 20):
        ranges = [rank_range(samples, rank, world_size) for rank in range(world_size)]
        assert [position for part in ranges for position in part] == list(range(samples))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (0.05, 0.9, 0.05), (3.0, 1.0, 1e-3, 7.0)])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_full_follow_the_weights_and_belong_to_one_worker(weights, batch_size, workers):
    topology = Topology(1, workers, batch_size, 1, weights)
    fill = np.array([[topology.in_batches(i, n) for n in range(400)] for i in range(len(weights))])
    assert (fill.sum(axis=0) == batch_size * np.arange(400)).all()
    assert (np.diff(fill) >= 0).all()
    wanted = np.array(weights)[:, None] / sum(weights) * batch_size * np.arange(400)
    assert np.abs(fill - wanted).max() <= len(weights)
    for index in range(len(weights)):
        # The places of this source in the rank's batches, in order, and whose batch each lies in.
        owners = [
            batch % workers
            for batch in range(100)
            for _ in range(fill[index, batch // workers + 1] - fill[index, batch // workers])
        ]
        for places in range(len(owners) + 1):
            counts = Counter(owners[:places])
            assert [topology.owned(index, places, worker) for worker in range(workers)] == [
                counts[worker] for worker in range(workers)
            ]


@pytest.mark.parametrize(("sizes", "at_once"), [([3, 1, 4, 1, 5, 9, 2, 6], 3), ([5], 4), ([2, 2], 1), ([], 2)])
def test_pieces_take_turns_and_any_number_can_be_skipped(sizes, at_once):
    every = list(_Turns.after(sizes, at_once, 0))
    assert Counter(every) == Counter({piece: length for piece, length in enumerate(sizes) if length})
    assert set(every[:at_once]) == set(range(min(at_once, len(sizes))))
    for taken in range(len(every) + 1):
        turns = _Turns.after(sizes, at_once, taken)
        given = Counter(every[:taken])
        assert all(given[piece] == count for piece, count in turns.open.items())
        assert all(not given[piece] for piece in range(turns.upcoming, len(sizes)))
        assert list(turns) == every[taken:]


def test_a_pass_is_every_sample_once_in_an_order_of_its_own():
    manifest = source([10, 200, 1, 65]).manifest
    orders = []
    for key in ((0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0)):
        order = PassOrder(manifest, *key)
        every = [place for piece in order.pieces(np.array([[0, 276]]), 1) for place in order.samples(piece)]
        assert sorted(every) == [
            (shard, index) for shard, count in enumerate([10, 200, 1, 65]) for index in range(count)
        ]
        orders.append(tuple(every))
        # Mixed within blocks only: a shard that arrives from far away can be used from its beginning.
        inside = [index for shard, index in every if shard == 1]
        assert all(abs(index - place) < BLOCK for place, index in enumerate(inside))
        assert inside != sorted(inside)
    assert len(set(orders)) == 4


def test_pieces_of_a_chunk_lie_in_one_shard_each_and_are_not_too_few():
    order = PassOrder(source([10, 20, 30]).manifest, 0)
    ends = np.cumsum(np.array([10, 20, 30])[order.shards]).tolist()
    chunk = np.array([[3, 7], [9, 55]])
    for at_least in (1, 4, 7, 100):
        pieces = order.pieces(chunk, at_least)
        assert [p for piece in pieces for p in piece] == positions(chunk)
        assert len(pieces) >= min(at_least, size(chunk))
        assert not any(piece.start < end < piece.stop for piece in pieces for end in ends)
        places = {
            p: place for piece in order.pieces(chunk, 1) for p, place in zip(piece, order.samples(piece), strict=True)
        }
        assert [place for piece in pieces for place in order.samples(piece)] == [places[p] for p in positions(chunk)]


@pytest.mark.parametrize(
    ("samples", "batch_size", "world_size", "workers"),
    [(24, 4, 1, 1), (25, 4, 1, 2), (23, 3, 2, 3), (7, 2, 3, 2), (5, 8, 2, 2), (3, 1, 7, 4)],
)
def test_every_sample_once_per_pass_even_with_more_workers_than_samples(samples, batch_size, world_size, workers):
    one = source([5] * (samples // 5) + [samples % 5])
    topology = Topology(world_size, workers, batch_size, 128)
    seen = [Counter() for _ in range(6)]
    for rank in range(world_size):
        for worker in range(workers):
            for taken in one.samples(topology, rank, worker, 0, Indices()):
                if taken.pass_index >= len(seen):
                    break
                seen[taken.pass_index][taken.raw] += 1
    assert all(len(each) == samples and set(each.values()) == {1} for each in seen)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize(("samples", "batch_size"), [(24, 4), (12, 12), (6, 1)])
def test_where_batches_divide_the_range_a_window_of_batches_is_a_pass(samples, batch_size, workers):
    topology = Topology(1, workers, batch_size, 64)
    streams = [source([samples]).samples(topology, 0, worker, 0, Indices()) for worker in range(workers)]
    for pass_index in range(5):
        window = range(pass_index * samples // batch_size, (pass_index + 1) * samples // batch_size)
        taken = [taken for batch in window for taken in islice(streams[batch % workers], batch_size)]
        assert {one.pass_index for one in taken} == {pass_index}
        assert len({one.raw for one in taken}) == samples


def test_a_batch_mixes_as_many_shards_as_the_buffer_allows():
    one = source([300] * 100)
    for buffer, mixed in ((1, 1), (64, 1), (65, 2), (1000, 16)):
        taken = list(islice(one.samples(Topology(1, 1, 32, buffer), 0, 0, 0, Indices()), 32))
        assert len({each.raw[0] for each in taken}) == mixed


def test_few_shards_are_cut_so_that_all_parts_of_them_are_mixed():
    taken = list(islice(source([1600]).samples(Topology(1, 1, 16, 1000), 0, 0, 0, Indices()), 16))
    assert len({each.raw[1] // 100 for each in taken}) >= 12


@pytest.mark.parametrize("seed", range(12))
def test_whatever_changes_between_kills_every_pass_is_every_sample_once(seed):
    """Topology, batch size, buffer and weights change; workers are stopped in the middle of anything."""
    rng = Random(seed)
    samples = rng.choice([1, 7, 100, 1000])
    per_shard = rng.choice([1, 3, 70, 400])
    sizes = [per_shard] * (samples // per_shard) + ([samples % per_shard] if samples % per_shard else [])
    one = source(sizes, index=rng.choice([0, 1]))
    seen = {}
    for _ in range(8):
        weights = (rng.choice([0.3, 1.0]), rng.choice([0.01, 1.0]))
        topology = Topology(
            rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 9), rng.choice([1, 130, 1000]), weights
        )
        consumed = {
            rank: [rng.choice([0, rng.randint(0, 3), rng.randint(0, samples)]) for _ in range(topology.workers)]
            for rank in range(topology.world_size)
        }
        for rank, counts in consumed.items():
            for worker, count in enumerate(counts):
                for taken in islice(one.samples(topology, rank, worker, 0, Indices()), count):
                    seen.setdefault(taken.pass_index, Counter())[taken.raw] += 1
        one = one.after(topology, consumed)
    assert all(set(each.values()) == {1} for each in seen.values())
    # What is left is what was not seen.
    left = {pass_index: size(rest) for pass_index, rest in one.left}
    for pass_index in range(one.next_pass):
        assert left.get(pass_index, 0) + len(seen.get(pass_index, ())) == samples
    assert all(pass_index < one.next_pass for pass_index in seen)


def test_what_is_left_stays_small():
    """A thousand open shards are a thousand ranges, not samples."""
    one = source([1000] * 2000)
    topology = Topology(8, 8, 16, 1000)
    left = one.after(topology, {rank: [4321] * 8 for rank in range(8)}).left
    assert len(left) == 1
    assert len(left[0][1]) <= 64 * 18
    assert size(left[0][1]) == 2_000_000 - 64 * 4321


def test_sample_rng_depends_on_seed_pass_position_and_source():
    keys = [(1, 2, 3, 0), (0, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)]
    draws = {sample_rng(*key).integers(2**60) for key in keys}
    assert len(draws) == 5
    assert sample_rng(1, 2, 3).integers(2**60) in draws


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path, "text", source="", license="", samples_per_shard=10) as writer:
        for index in range(100):
            writer.write(f"{index:03d}", {"txt": b"x"})
    return tmp_path


@pytest.mark.parametrize("consumed", [0, 1, 30, 49, 50, 51, 99, 100, 265])
def test_skipping_is_the_same_as_reading_on(folder, consumed):
    one = SourceStream(read_manifest(folder), 7)

    def read(skip):
        samples = one.samples(Topology(2, 1, 2, 200), 1, 0, skip, ShardReaders(one.manifest, 5))
        return [taken.raw["__key__"] for taken in islice(samples, 300 - skip)]

    assert read(consumed) == read(0)[consumed:]


def test_only_shards_that_are_needed_are_opened(folder, monkeypatch):
    opened = []
    samples = tars.tar_samples
    monkeypatch.setattr(tars, "tar_samples", lambda path, stream: opened.append(path) or samples(path, stream))
    one = SourceStream(read_manifest(folder), 0)
    next(one.samples(Topology(1, 1, 2, 200), 0, 0, 100 * 5 + 75, ShardReaders(one.manifest, 5)))
    assert len(opened) == 1
