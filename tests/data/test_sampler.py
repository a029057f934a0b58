from collections import Counter
from itertools import islice

import pytest

from onepeace_lightning.data import shards
from onepeace_lightning.data.sampler import TrainStream, owned, rank_range, sample_rng, worker_chunk
from onepeace_lightning.data.shards import Manifest, Shard, ShardWriter, read_manifest


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 12, 24, 37])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_chunks_follow_the_batches_and_partition_every_pass(samples, batch_size, workers):
    positions = range(100, 100 + samples)
    for pass_index in range(12):
        places = range(pass_index * samples, (pass_index + 1) * samples)
        owners = Counter(place // batch_size % workers for place in places)
        chunks = [worker_chunk(positions, batch_size, pass_index, worker, workers) for worker in range(workers)]
        assert [len(chunk) for chunk in chunks] == [owners[worker] for worker in range(workers)]
        assert [position for chunk in chunks for position in chunk] == list(positions)


def test_owned_counts_places():
    assert [owned(places, 2, 1, 3) for places in range(13)] == [0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 4, 4, 4]


@pytest.mark.parametrize("samples", [1, 5, 16, 17])
def test_rank_ranges_are_even_and_partition(samples):
    for world_size in range(1, samples + 1):
        ranges = [rank_range(samples, rank, world_size) for rank in range(world_size)]
        assert [position for part in ranges for position in part] == list(range(samples))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize(("samples", "batch_size"), [(24, 4), (12, 12), (6, 1)])
def test_where_batches_divide_the_range_a_window_of_batches_is_a_pass(samples, batch_size, workers):
    """The batches of pass p, dealt to the workers in turn, come out of their chunks of pass p alone."""
    for pass_index in range(5):
        before = [sum(len(worker_chunk(range(samples), batch_size, p, w, workers)) for p in range(pass_index))
                  for w in range(workers)]  # fmt: skip
        for batch in range(pass_index * samples // batch_size, (pass_index + 1) * samples // batch_size):
            begin = batch // workers * batch_size - before[batch % workers]
            chunk = worker_chunk(range(samples), batch_size, pass_index, batch % workers, workers)
            assert 0 <= begin <= len(chunk) - batch_size


def stream(tmp_path, sizes, **changes):
    """A stream over a folder that exists only in its manifest: enough for orders."""
    manifest = Manifest(tmp_path, "text", tuple(Shard(f"{i}.tar", n, 1) for i, n in enumerate(sizes)), "", "")
    options = {"batch_size": 2, "rank": 0, "world_size": 1, "workers": 1, "seed": 0, "shuffle_buffer": 5}
    return TrainStream(manifest, **options | changes)


def test_order_is_a_permutation_that_changes_with_pass_and_seed_only(tmp_path):
    one = stream(tmp_path, [10, 10])
    orders = [one.order(index, 0) for index in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders == [stream(tmp_path, [10, 10]).order(index, 0) for index in range(3)]
    assert orders[0] != stream(tmp_path, [10, 10], seed=1).order(0, 0)
    assert stream(tmp_path, [10, 10], shuffle_buffer=1).order(0, 0) == list(range(20))


def test_shuffling_reaches_no_further_ahead_than_the_buffer(tmp_path):
    order = stream(tmp_path, [200], shuffle_buffer=20).order(0, 0)
    assert all(position < taken + 20 for taken, position in enumerate(order))
    assert any(position > taken + 10 for taken, position in enumerate(order))


def test_shard_order_is_drawn_per_pass(tmp_path):
    one = stream(tmp_path, [1] * 20)
    orders = [one.shard_order(index) for index in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert stream(tmp_path, [1] * 20, rank=1, world_size=2, workers=3).shard_order(0) == orders[0]


def test_sample_rng_depends_on_seed_pass_and_position():
    draws = {sample_rng(*key).integers(2**60) for key in [(1, 2, 3), (0, 2, 3), (1, 3, 3), (1, 2, 4)]}
    assert len(draws) == 4
    assert sample_rng(1, 2, 3).integers(2**60) in draws


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path, "text", source="", license="", samples_per_shard=10) as writer:
        for index in range(100):
            writer.write(f"{index:03d}", {"txt": b"x"})
    return tmp_path


@pytest.mark.parametrize("consumed", [0, 1, 30, 49, 50, 51, 99, 100, 265])
def test_skipping_is_the_same_as_reading_on(folder, consumed):
    one = TrainStream(read_manifest(folder), 2, 1, 2, 1, 7, 8)
    whole = list(islice(one.samples(0), 300))
    assert list(islice(one.samples(0, consumed), 300 - consumed)) == whole[consumed:]
    assert [taken.pass_index for taken in whole] == [index // 50 for index in range(300)]
    assert [taken.ends_pass for taken in whole] == [index % 50 == 49 for index in range(300)]


def test_skipping_opens_only_the_shards_it_needs(folder, monkeypatch):
    opened = []
    samples = shards._samples
    monkeypatch.setattr(shards, "_samples", lambda path: opened.append(path.name) or samples(path))
    one = TrainStream(read_manifest(folder), 2, 0, 1, 1, 0, 8)
    next(one.samples(0, consumed=100 * 5 + 75))
    assert 1 <= len(opened) <= 3
