import logging
import multiprocessing
from collections import Counter
from itertools import islice
from random import Random

import pytest
import torch

from onepeace_lightning.data.bad_samples import BadSample, EmptyCaption, TooManyBadSamplesError
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.dataloader import TrainLoader
from onepeace_lightning.data.eval_loader import EvalLoader
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.data.sources import Source
from onepeace_lightning.data.tars import ShardError


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
        options["max_bad_fraction"] = 0.5
        whole = take(train(tmp_path, **options), 17)
        for kill in (1, 5, 7, 10) if world_size == 1 else (8,):
            first = train(tmp_path, **options)
            assert take(first, kill) == whole[:kill]
            second = train(tmp_path, **options)
            second.load_state_dict(first.state_dict())
            assert take(second, 17 - kill) == whole[kill:]
            second.judge()
            assert second.counts[0, 1] > 0


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


@pytest.mark.parametrize("seed", range(6))
def test_a_run_goes_on_at_the_next_sample_whatever_changes(tmp_path, seed):
    """Ranks, workers, batch size and buffer change between kills; over all of it every pass is every sample once."""
    rng = Random(seed)
    make(tmp_path, 60, per_shard=7, bad={11})
    seen, state = Counter(), None
    for _ in range(5):
        world_size = rng.randint(1, 3)
        options = {"world_size": world_size, "num_workers": rng.choice([0, 0, 2]), "max_bad_fraction": 1.0}
        options |= {"batch_size": rng.randint(1, 5), "shuffle_buffer": rng.choice([1, 200, 1000])}
        ranks = [train(tmp_path, rank=rank, **options) for rank in range(world_size)]
        steps = rng.randint(1, 5)
        states = []
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
            seen += Counter(keys(take(rank, steps)))
            states.append(rank.state_dict())
        state = states[0] | {"consumed": {rank: each for one in states for rank, each in one["consumed"].items()}}
    last = train(tmp_path, 1, max_bad_fraction=1.0)
    last.load_state_dict(state)
    passes = max(seen.values()) + 1
    rest = Counter(keys(take(last, 59 * passes - seen.total())))
    assert seen + rest == Counter({f"k{index:03d}": passes for index in range(60) if index != 11})


def test_an_epoch_under_way_is_finished_under_another_topology(tmp_path):
    make(tmp_path)
    first = train(tmp_path, steps_per_epoch=8)
    take(first, 13)
    for steps, rest in ((8, 3), (7, 2), (5, 5), (12, 7)):
        second = train(tmp_path, batch_size=2, steps_per_epoch=steps)
        second.load_state_dict(first.state_dict())
        assert [len(list(second)), len(list(second))] == [rest, steps]


def test_other_data_and_other_seeds_are_refused(tmp_path):
    state = train(make(tmp_path / "one")).state_dict()
    with pytest.raises(ValueError, match="made on other data"):
        train(make(tmp_path / "two", samples=23)).load_state_dict(state)
    with pytest.raises(ValueError, match="made with seed=3, here seed=5"):
        train(tmp_path / "one", seed=5).load_state_dict(state)


def test_a_state_without_this_rank_is_refused(tmp_path):
    make(tmp_path)
    state = train(tmp_path, rank=0, world_size=2).state_dict()
    with pytest.raises(ValueError, match=r"rank \[0\] only, rank 1 is needed"):
        train(tmp_path, rank=1, world_size=2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"rank \[0\] only, rank 1 is needed"):
        train(tmp_path).load_state_dict(state)


def _rank_state(rank, folder, store, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    loader = train(folder, 2, rank=rank, world_size=2, max_bad_fraction=0.5)
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
    assert sorted(taken for [[taken]] in states[0]["consumed"].values())[0] >= 6
    bad = sum(taken for [[taken]] in states[0]["consumed"].values()) - 12
    assert states[0]["sources"][0]["counts"] == [12 + bad, bad, 0, 0, 0]
    assert bad > 0
    whole = take(train(folder, 2, rank=1, world_size=2, max_bad_fraction=0.5), 8)
    resumed = train(folder, 2, rank=1, world_size=2, max_bad_fraction=0.5)
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
    loader = train(tmp_path, 2, max_bad_fraction=0.1)
    caplog.set_level(logging.INFO)
    assert sorted(keys(take(loader, 11))) == sorted(f"k{index:03d}" for index in range(24) if index not in {7, 11})
    take(loader, 11)
    loader.judge()
    assert loader.counts.tolist() == [[48, 4, 0, 0, 0]]
    assert "of 48 samples over all ranks, 4 bad" in caplog.text
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 2
    for part in ("00001.tar: sample 'k007': the caption is bad", "00002.tar: sample 'k011'"):
        assert sum(part in message for message in messages) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_the_run_at_the_end_of_an_epoch(tmp_path, workers):
    make(tmp_path, 100, bad=set(range(0, 100, 3)))
    with pytest.raises(TooManyBadSamplesError, match=r"\d\d of \d+ samples were bad over all ranks") as error:
        take(train(tmp_path, 4, max_bad_fraction=0.02, num_workers=workers), 25)
    assert "max_bad_fraction=0.02" in str(error.value)


def test_bad_luck_stops_nothing(tmp_path):
    """A fifth of a small part is bad, a fraction that says nothing about the whole."""
    make(tmp_path, bad={0, 1, 5})
    assert len(take(train(tmp_path, 4, max_bad_fraction=0.1), 6)) == 6


@pytest.mark.parametrize("samples", [3, 5000])
def test_nothing_but_bad_samples_ends(tmp_path, samples):
    make(tmp_path, samples, per_shard=400, bad=range(samples))
    with pytest.raises(TooManyBadSamplesError, match=r"none of the last .* the caption is bad"):
        take(train(tmp_path, max_bad_fraction=1.0), 1)


def test_counting_goes_on_after_a_resume(tmp_path):
    make(tmp_path, bad={7})
    first = train(tmp_path, 1, max_bad_fraction=0.05)
    take(first, 22)
    second = train(tmp_path, 1, max_bad_fraction=0.05)
    second.load_state_dict(first.state_dict())
    take(second, 24)
    second.judge()
    assert second.counts.tolist() == [[48, 2, 0, 0, 0]]


@pytest.mark.parametrize("drop", [False, True])
def test_an_empty_caption_is_a_kind_of_its_own(tmp_path, drop):
    make(tmp_path, bad=set(range(12)))

    def empty(raw, rng):
        if raw["txt"] == b"bad":
            raise EmptyCaption("the caption has no words")
        return prepare(raw, rng)

    loader = TrainLoader(tmp_path, 1, empty, collate, steps_per_epoch=50, seed=3, drop_empty_captions=drop)
    if drop:
        take(loader, 50)
        seen, bad, empty, *_ = loader.counts[0].tolist()
        assert (bad, seen - empty) == (0, 50)
        assert empty > 40
    else:
        with pytest.raises(TooManyBadSamplesError, match=r"\d\d of \d+ samples were bad"):
            take(loader, 50)


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
    for part in ("rank=4", "num_workers=-1", "seed=-1"):
        assert part in str(error.value)
    assert "shuffle_buffer=0" in str(error.value)
    assert "steps_per_epoch=0" in str(error.value)


# Several sources


def mixed(tmp_path, weights=(3.0, 1.0), **options):
    for index, samples in enumerate((30, 7)):
        if not (tmp_path / str(index)).exists():
            make(tmp_path / str(index), samples, name="ab"[index])
    sources = [
        Source(str(tmp_path / str(index)), weight, name)
        for index, (weight, name) in enumerate(zip(weights, "AB", strict=True))
    ]
    return TrainLoader(sources, options.pop("batch_size", 4), prepare, collate, **{"seed": 3} | options)


def test_sources_are_mixed_by_weight_in_every_batch(tmp_path):
    loader = mixed(tmp_path, steps_per_epoch=20)
    for batch in loader:
        assert batch.sources == ["A", "A", "A", "B"]
        assert [key[0] for key in batch.keys] == ["a", "a", "a", "b"]
    assert loader.counts[:, 0].tolist() == [60, 20]
    assert Counter(key[0] for key in keys(take(mixed(tmp_path, (None, None)), 37))) == {"a": 120, "b": 28}
    with pytest.raises(ValueError, match="every source a weight, or none"):
        mixed(tmp_path, (None, 1.0))
    with pytest.raises(ValueError, match="weights must be above 0"):
        mixed(tmp_path, (0.0, 1.0))


@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_sources_resume_bit_equal(tmp_path, workers):
    whole = take(mixed(tmp_path, num_workers=workers, batch_size=3), 31)
    first = mixed(tmp_path, num_workers=workers, batch_size=3)
    assert take(first, 17) == whole[:17]
    second = mixed(tmp_path, num_workers=workers, batch_size=3)
    second.load_state_dict(first.state_dict())
    assert take(second, 14) == whole[17:]


def test_each_source_is_every_sample_once_a_pass_whatever_changes(tmp_path):
    seen, state = Counter(), None
    for world_size, workers, batch_size, weights in ((2, 2, 3, (3, 1)), (1, 0, 5, (1, 1)), (3, 0, 1, (10, 1))):
        options = {"world_size": world_size, "num_workers": workers, "batch_size": batch_size}
        ranks = [mixed(tmp_path, weights, rank=rank, **options) for rank in range(world_size)]
        states = []
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
            seen += Counter(keys(take(rank, 5)))
            states.append(rank.state_dict())
        state = states[0] | {"consumed": {rank: each for one in states for rank, each in one["consumed"].items()}}
    for name, samples in (("a", 30), ("b", 7)):
        counts = [seen[f"{name}{index:03d}"] for index in range(samples)]
        last = mixed(tmp_path, (1, 1), batch_size=2)
        last.load_state_dict(state)
        rest = Counter(key for key in keys(take(last, samples * (max(counts) + 1) - sum(counts))) if key[0] == name)
        assert {seen[f"{name}{i:03d}"] + rest[f"{name}{i:03d}"] for i in range(samples)} == {max(counts) + 1}


def test_more_ranks_and_workers_than_shards(tmp_path):
    make(tmp_path, 8, per_shard=8)
    seen = [
        key for rank in range(4) for key in keys(take(train(tmp_path, 1, rank=rank, world_size=4, num_workers=2), 2))
    ]
    assert sorted(seen) == [f"k{index:03d}" for index in range(8)]
