import logging
import multiprocessing
from collections import Counter
from itertools import islice

import pytest
import torch

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.dataloader import EvalLoader, TrainLoader
from onepeace_lightning.data.sampler import BadSample, TooManyBadSamplesError
from onepeace_lightning.data.shards import ShardError, ShardWriter


def make(folder, samples=24, per_shard=5, bad=(), name="k"):
    with ShardWriter(folder, "text", source="", license="", samples_per_shard=per_shard) as writer:
        for index in range(samples):
            writer.write(f"{name}{index:03d}", {"txt": b"bad" if index in bad else str(index).encode()})
    return folder


def prepare(raw, rng):
    if raw["txt"] == b"bad":
        raise BadSample("the caption is bad")
    return raw["__key__"], rng.random()


def collate(rows):
    return Batch([key for key, _ in rows], {"draw": torch.tensor([draw for _, draw in rows], dtype=torch.float64)})


def train(folder, batch_size=4, **options):
    return TrainLoader(folder, batch_size, prepare, collate, **{"shuffle_buffer": 6, "seed": 3} | options)


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


def evaluate(folder, batch_size, **options):
    return EvalLoader(folder, batch_size, prepare, collate, **options)


def take(loader, count):
    """The next ``count`` batches as comparable values, over as many epochs as it needs."""
    out = []
    while len(out) < count:
        out += [(batch.keys, batch.inputs["draw"].tolist()) for batch in islice(loader, count - len(out))]
    return out


def keys(batches):
    return [key for batch, _ in batches for key in batch]


# Training: exactly once


@pytest.mark.parametrize(
    ("samples", "per_shard", "batch_size", "world_size", "workers"),
    [(24, 5, 4, 1, 1), (25, 5, 4, 1, 2), (23, 50, 3, 2, 3), (7, 2, 2, 3, 2), (5, 1, 8, 2, 2), (3, 3, 1, 3, 4)],
)
def test_every_sample_once_per_pass_over_ranks_and_workers(
    tmp_path, samples, per_shard, batch_size, world_size, workers
):
    """Workers are run in this process here (the plan does not know); the resume tests use real ones."""
    make(tmp_path, samples, per_shard)
    seen = [Counter() for _ in range(6)]
    for rank in range(world_size):
        stream = train(tmp_path, batch_size, rank=rank, world_size=world_size, num_workers=workers).stream
        for worker in range(workers):
            for taken in stream.samples(worker):
                if taken.pass_index >= len(seen):
                    break
                seen[taken.pass_index][taken.raw["__key__"]] += 1
    assert seen == [Counter({f"k{index:03d}": 1 for index in range(samples)})] * 6


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_window_of_batches_is_a_pass_for_any_number_of_workers(tmp_path, workers):
    make(tmp_path, 24)
    loader = train(tmp_path, 4, num_workers=workers, steps_per_epoch=9)
    batches = take(loader, 18)
    passes = [keys(batches[begin : begin + 6]) for begin in (0, 6, 12)]
    assert [sorted(one) for one in passes] == [sorted(f"k{index:03d}" for index in range(24))] * 3
    assert passes[0] != passes[1] != passes[2]


def test_same_seed_same_batches_other_seed_others(tmp_path):
    make(tmp_path)
    assert take(train(tmp_path), 8) == take(train(tmp_path), 8) != take(train(tmp_path, seed=4), 8)


def test_augmentation_does_not_depend_on_ranks_or_workers(tmp_path):
    make(tmp_path)
    alone = {key: draw for batch, draws in take(train(tmp_path), 6) for key, draw in zip(batch, draws, strict=True)}
    assert len(set(alone.values())) == 24
    parts = [take(train(tmp_path, 2, rank=rank, world_size=2, num_workers=2), 6) for rank in range(2)]
    shared = {key: draw for part in parts for batch, draws in part for key, draw in zip(batch, draws, strict=True)}
    assert shared == alone


def test_global_random_state_is_left_alone(tmp_path):
    make(tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    take(train(tmp_path), 7)
    assert torch.rand(1) == expected


def test_length(tmp_path):
    make(tmp_path, 25)
    assert len(train(tmp_path, 4)) == 7
    assert len(train(tmp_path, 4, world_size=2)) == 4
    loader = train(tmp_path, 4, steps_per_epoch=10)
    assert len(loader) == 10
    assert [len(list(loader)), len(list(loader))] == [10, 10]


# Training: resume


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_is_bit_equal(tmp_path, workers, world_size):
    make(tmp_path, 26, bad={3, 17})
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "num_workers": workers, "steps_per_epoch": 5}
        options["max_bad_share"] = 0.5
        whole = take(train(tmp_path, **options), 17)
        for kill in (1, 5, 7, 10) if world_size == 1 else (8,):
            first = train(tmp_path, **options)
            assert take(first, kill) == whole[:kill]
            second = train(tmp_path, **options)
            second.load_state_dict(first.state_dict())
            assert take(second, 17 - kill) == whole[kill:]
            assert second.bad_samples > 0


def test_resume_in_an_epoch_yields_the_rest_of_it(tmp_path):
    make(tmp_path)
    first = train(tmp_path, steps_per_epoch=5)
    take(first, 7)
    second = train(tmp_path, steps_per_epoch=5)
    second.load_state_dict(first.state_dict())
    assert [len(list(second)), len(list(second))] == [3, 5]


def test_state_survives_a_weights_only_checkpoint(tmp_path):
    make(tmp_path / "data")
    loader = train(tmp_path / "data")
    take(loader, 3)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == loader.state_dict()


@pytest.mark.parametrize(
    "change", [{"num_workers": 2}, {"world_size": 2}, {"batch_size": 3}, {"shuffle_buffer": 5}], ids=str
)
def test_another_topology_goes_on_at_the_start_of_the_pass(tmp_path, change, caplog):
    make(tmp_path)
    first = train(tmp_path)
    take(first, 8)  # 32 of 24: pass 1 is under way
    second = train(tmp_path, **change)
    second.load_state_dict(first.state_dict())
    assert "cannot go on at the very next sample" in caplog.text
    assert "start of pass 1" in caplog.text
    fresh = list(islice(second.stream.samples(0), 1))
    assert fresh[0].pass_index == 1
    batches = take(second, 8)
    if "world_size" not in change:
        assert len(set(keys(batches[: 24 // second.stream.batch_size]))) == 24
    third = train(tmp_path, **change)
    caplog.clear()
    third.load_state_dict(second.state_dict())
    assert not caplog.records
    assert take(third, 5) == take(second, 5)


def test_other_data_and_other_seeds_are_refused(tmp_path):
    state = train(make(tmp_path / "one")).state_dict()
    with pytest.raises(ValueError, match="made on other data"):
        train(make(tmp_path / "two", samples=23)).load_state_dict(state)
    with pytest.raises(ValueError, match="made with seed=3, here seed=5"):
        train(tmp_path / "one", seed=5).load_state_dict(state)


def test_a_state_without_this_rank_is_refused(tmp_path):
    make(tmp_path)
    state = train(tmp_path, rank=0, world_size=2).state_dict()
    with pytest.raises(ValueError, match=r"rank \[0\] only, this is rank 1"):
        train(tmp_path, rank=1, world_size=2).load_state_dict(state)


def _rank_state(rank, folder, store, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    loader = train(folder, 2, rank=rank, world_size=2, max_bad_share=0.5)
    take(loader, 3)
    results.put((rank, loader.state_dict()))
    torch.distributed.destroy_process_group()


def test_in_a_process_group_every_rank_holds_the_state_of_all(tmp_path):
    """Only rank 0's checkpoint is written, and a rank that skipped bad samples is further than the others."""
    folder = make(tmp_path / "data", 20, per_shard=20, bad=set(range(14, 18)))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank_state, args=(rank, folder, tmp_path / "store", results)) for rank in range(2)]
    for process in ranks:
        process.start()
    states = dict(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()
    assert states[0] == states[1]
    assert states[0]["consumed"][0] == [6]
    assert states[0]["consumed"][1][0] > 6
    whole = take(train(folder, 2, rank=1, world_size=2, max_bad_share=0.5), 8)
    resumed = train(folder, 2, rank=1, world_size=2, max_bad_share=0.5)
    resumed.load_state_dict(states[0])
    assert take(resumed, 5) == whole[3:]


# Evaluation


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), [(25, 4, 1), (25, 4, 2), (26, 8, 3), (9, 3, 4)])
def test_evaluation_sees_every_sample_once_in_even_batches(tmp_path, samples, batch_size, world_size):
    make(tmp_path, samples)
    seen, sizes = [], []
    for rank in range(world_size):
        loader = evaluate(tmp_path, batch_size, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader) == len(evaluate(tmp_path, batch_size, world_size=world_size))
        seen += [key for batch in batches for key in batch.keys]
        sizes += [len(batch) for batch in batches]
        assert [batch.keys for batch in loader] == [batch.keys for batch in batches]
    assert seen == [f"k{index:03d}" for index in range(samples)]
    assert 0 < max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("workers", [2, 9])
def test_evaluation_order_does_not_depend_on_workers(tmp_path, workers):
    make(tmp_path, 26)
    assert take(evaluate(tmp_path, 4, num_workers=workers), 7) == take(evaluate(tmp_path, 4), 7)


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), [(5, 1, 2), (3, 4, 8), (1, 2, 3)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_rank_without_a_sample_for_a_batch_gets_a_filler(tmp_path, samples, batch_size, world_size, workers):
    make(tmp_path, samples)
    loaders = [
        evaluate(tmp_path, batch_size, rank=rank, world_size=world_size, num_workers=workers)
        for rank in range(world_size)
    ]
    batches = [list(loader) for loader in loaders]
    assert {len(part) for part in batches} == {len(loaders[0])}
    assert all(len(batch) > 0 for part in batches for batch in part)
    seen = [key for part in batches for batch in part if not batch.filler for key in batch.keys]
    assert seen == [f"k{index:03d}" for index in range(samples)]


# Bad input


def test_bad_samples_are_skipped_counted_and_logged_once(tmp_path, caplog):
    make(tmp_path, bad={7, 11})
    loader = train(tmp_path, 2, max_bad_share=0.1)
    assert sorted(keys(take(loader, 11))) == sorted(f"k{index:03d}" for index in range(24) if index not in {7, 11})
    take(loader, 11)
    assert loader.bad_samples == 4
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 2
    for part in ("00001.tar: sample 'k007': the caption is bad", "00002.tar: sample 'k011'"):
        assert sum(part in message for message in messages) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_the_run_at_the_end_of_a_short_pass(tmp_path, workers):
    make(tmp_path, bad={7, 11, 20})
    with pytest.raises(TooManyBadSamplesError, match=r"3 of 24|\d of 12") as error:
        take(train(tmp_path, 4, max_bad_share=0.1, num_workers=workers), 12)
    assert "the caption is bad" in str(error.value)
    assert "max_bad_share=0.1" in str(error.value)


def test_too_many_bad_samples_stop_a_long_pass_after_a_hundred(tmp_path):
    make(tmp_path, 300, per_shard=100, bad=set(range(10)) | set(range(100, 110)) | set(range(200, 210)))
    loader = train(tmp_path, 10, shuffle_buffer=1, max_bad_share=0.09)
    assert len(take(loader, 8)) == 8  # the first ten are bad, which says nothing yet
    with pytest.raises(TooManyBadSamplesError, match="10 of 100"):
        take(loader, 2)


def test_nothing_but_bad_samples_ends(tmp_path):
    make(tmp_path, 3, bad=range(3))
    with pytest.raises(TooManyBadSamplesError, match="3 of 3"):
        take(train(tmp_path), 1)


def test_the_share_goes_on_counting_after_a_resume(tmp_path):
    make(tmp_path, bad={7})
    first = train(tmp_path, 1, max_bad_share=0.05)
    take(first, 23)
    second = train(tmp_path, 1, max_bad_share=0.02)
    second.load_state_dict(first.state_dict())
    with pytest.raises(TooManyBadSamplesError, match="of 48"):
        take(second, 30)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_evaluation_a_bad_sample_is_an_error(tmp_path, workers):
    make(tmp_path, bad={7})
    with pytest.raises(BadSample, match=r"00001.tar: sample 'k007': the caption is bad"):
        list(evaluate(tmp_path, 4, num_workers=workers))


def test_other_errors_are_not_taken_for_bad_samples(tmp_path):
    make(tmp_path)

    def broken(raw, rng):
        raise KeyError("a mistake in the program")

    with pytest.raises(KeyError, match="a mistake"):
        list(TrainLoader(tmp_path, 4, broken, collate))


@pytest.mark.parametrize("loader", [train, evaluate])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_shard_stops_the_run(tmp_path, loader, workers):
    make(tmp_path)
    made = loader(tmp_path, 4, num_workers=workers)
    path = tmp_path / "00002.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ShardError, match=r"00002.tar"):
        list(made)


@pytest.mark.parametrize("loader", [train, evaluate])
def test_a_folder_that_is_not_as_listed_is_refused_on_opening(tmp_path, loader):
    with pytest.raises(ShardError, match="there is no folder"):
        loader(tmp_path / "nowhere", 4)
    make(tmp_path)
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(ShardError, match=r"00001.tar: listed, but"):
        loader(tmp_path, 4)


def test_all_wrong_arguments_are_named_at_once(tmp_path):
    make(tmp_path, 3)
    with pytest.raises(ValueError, match="batch_size=0") as error:
        train(tmp_path, 0, rank=4, world_size=4, num_workers=-1, seed=-1, shuffle_buffer=0, steps_per_epoch=0)
    for part in ("rank=4", "world_size=4: at most the number of samples, 3", "num_workers=-1", "seed=-1"):
        assert part in str(error.value)
    assert "shuffle_buffer=0" in str(error.value)
    assert "steps_per_epoch=0" in str(error.value)


def test_more_ranks_and_workers_than_shards(tmp_path):
    make(tmp_path, 8, per_shard=8)
    seen = [
        key for rank in range(4) for key in keys(take(train(tmp_path, 1, rank=rank, world_size=4, num_workers=2), 2))
    ]
    assert sorted(seen) == [f"k{index:03d}" for index in range(8)]
