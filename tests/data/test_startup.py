"""What a start costs with very many shards: calls to the file system are counted, by Python's own audit hooks."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.dataloader import TrainLoader
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.shards import ShardWriter

SHARDS, SAMPLES = 150_000, 10_000

COUNTED = ("open", "os.scandir", "os.listdir", "os.stat", "glob.glob")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A manifest of 150 000 shards, whose files are links to one tar."""
    folder = tmp_path_factory.mktemp("many")
    with ShardWriter(folder / "one", "text", source="-", license="-", samples_per_shard=50) as writer:
        for index in range(50):
            writer.write(f"{index:02d}", {"txt": b"a cow"})
    tar = folder / "one" / "00000.tar"
    many = folder / "many"
    many.mkdir()
    listed = []
    for index in range(SHARDS):
        name = f"{index:06d}.tar"
        os.symlink(tar, many / name)
        listed.append({"name": name, "samples": SAMPLES, "bytes": tar.stat().st_size})
    content = {"data_type": "text", "samples": SHARDS * SAMPLES, "shards": listed, "source": "-", "license": "-"}
    (many / "manifest.json").write_text(json.dumps(content))
    return many


def prepare(raw, rng):
    return raw["__key__"]


def collate(keys):
    return Batch(keys, {"x": torch.zeros(len(keys))})


def _calls(rank, folder, store, results):
    """What this rank asks of the file system while its loader is made and resumed in the middle of a pass."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    counts = {"stat": 0, "other": 0}
    here = str(folder)
    stat, lstat = os.stat, os.lstat

    def counted(path, *args, **kwargs):
        counts["stat"] += str(path).startswith(here)
        return stat(path, *args, **kwargs)

    os.stat = counted

    def hook(event, args):
        if event in COUNTED and args and str(args[0]).startswith(here):
            counts["other"] += 1

    sys.addaudithook(hook)
    loader = TrainLoader(folder, 64, prepare, collate, rank=rank, world_size=2, seed=1)
    state = loader.state_dict()
    state["consumed"] = {each: [[SHARDS * SAMPLES // 4 + each]] for each in range(2)}
    other = TrainLoader(folder, 48, prepare, collate, rank=rank, world_size=2, num_workers=3, seed=1)
    other.load_state_dict(state)
    os.stat, os.lstat = stat, lstat
    left = sum(stop - start for _, part in other.sources[0].left for start, stop in part.tolist())
    results.put((rank, counts, left))
    torch.distributed.destroy_process_group()


def test_a_start_asks_the_file_system_little(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_calls, args=(rank, folder, tmp_path / "store", results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = {rank: (counts, left) for rank, counts, left in (results.get(timeout=200) for _ in ranks)}
    for process in ranks:
        process.join()
    for rank, (counts, left) in found.items():
        assert sum(counts.values()) < 100, (rank, counts)
        assert left == SHARDS * SAMPLES // 2 - 1
    assert sum(found[1][0].values()) == 0  # the first rank has told it


def test_counting_goes_on_where_it_stopped_and_past_bad_shards(tmp_path, monkeypatch):
    from onepeace_lightning.data import counting
    from onepeace_lightning.data.make_manifest import manifest

    with ShardWriter(tmp_path, "text", source="-", license="-", samples_per_shard=2) as writer:
        for index in range(20):
            writer.write(f"{index:02d}", {"txt": b"a cow"})
    whole = read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    good = {}
    for name in ("00003.tar", "00007.tar"):
        good[name] = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(good[name][:-9000])
    with pytest.raises(ValueError, match="2 of 10 shards are bad") as error:
        manifest(str(tmp_path), workers=2)
    assert "00003.tar: damaged" in str(error.value)
    assert "00007.tar: damaged" in str(error.value)
    assert not (tmp_path / "manifest.json").exists()
    assert manifest(str(tmp_path), workers=1, skip_bad=True, out=str(tmp_path / "other.json")).samples == 16
    assert read_manifest(tmp_path / "other.json").samples == 16
    (tmp_path / "other.json").unlink()

    for name, content in good.items():
        (tmp_path / name).write_bytes(content)
    read = []
    count = counting.count_shard
    monkeypatch.setattr(counting, "count_shard", lambda *args: read.append(args[2]) or count(*args))
    assert manifest(str(tmp_path), workers=1, source="-", license="-").shards == whole.shards
    assert read == ["00003.tar", "00007.tar"]
    assert not list(Path(tmp_path).glob(".manifest*"))
