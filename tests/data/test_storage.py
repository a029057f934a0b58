import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from pathlib import Path

import fsspec
import pytest
import torch

from onepeace_lightning.cli import main
from onepeace_lightning.data.bad_samples import TooManyLostShardsError
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.cache import StorageError
from onepeace_lightning.data.dataloader import TrainLoader
from onepeace_lightning.data.eval_loader import EvalLoader
from onepeace_lightning.data.manifest import MANIFEST, read_manifest
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.data.storage import Storage, StorageConfig, expand, join
from onepeace_lightning.data.tars import ShardError
from tests.data.s3 import BadS3, Network

SAMPLES, PER_SHARD = 240, 10


def prepare(raw, rng):
    return raw["__key__"], raw["txt"]


def collate(rows):
    assert all(text == key.encode() * 100 for key, text in rows)
    return Batch([key for key, _ in rows], {"x": torch.zeros(len(rows))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 shards of ten samples of some 1 kB each."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    with ShardWriter(folder, "text", source="-", license="-", samples_per_shard=PER_SHARD) as writer:
        for index in range(SAMPLES):
            writer.write(f"k{index:03d}", {"txt": f"k{index:03d}".encode() * 100})
    return folder


@pytest.fixture(scope="module")
def server(folder):
    server = BadS3()
    client = server.client()
    client.create_bucket(Bucket="bucket")
    for path in folder.iterdir():
        client.upload_file(str(path), "bucket", f"train/{path.name}")
        if path.name != MANIFEST:
            client.upload_file(str(path), "bucket", f"bare/{path.name}")
    yield server
    server.close()


@pytest.fixture
def s3(server, tmp_path):
    """The server with a good network, and how to read from it."""
    server.network = Network()

    def config(**changes):
        options = {"cache": str(tmp_path / "cache"), "pause": 0.01, "block_mib": 0.005, "options": server.options()}
        return StorageConfig(**options | changes)

    return server, config


def keys(loader, steps):
    out = []
    while len(out) < steps:
        for batch in loader:
            out.append(batch.keys)
            if len(out) == steps:
                break
    return [key for each in out for key in each]


def once():
    return Counter(f"k{index:03d}" for index in range(SAMPLES))


def train(path, config, batch_size=8, **options):
    options = {"storage": config, "seed": 1, "shuffle_buffer": 300} | options
    return TrainLoader(path, batch_size, prepare, collate, **options)


# Small things


def test_braces_and_lists():
    assert expand("s3://b/{00..02}.tar") == ["s3://b/00.tar", "s3://b/01.tar", "s3://b/02.tar"]
    assert expand(["a.tar", "{b,c}.tar"]) == ["a.tar", "b.tar", "c.tar"]
    assert [join("s3://b/", "a.tar"), join("s3://b", "s3://c/a.tar"), join("x", "/y")] == [
        "s3://b/a.tar",
        "s3://c/a.tar",
        "/y",
    ]


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ValueError, match=r"cache_gib=0: above 0; retries=-1: at least 0; .*timeout=0") as error:
        StorageConfig(cache_gib=0, retries=-1, timeout=0, skip_shards=-2)
    assert "skip_shards=-2" in str(error.value)


def test_a_folder_in_memory(folder):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/there", recursive=True)
    there = read_manifest("memory://there")
    assert there.fingerprint() == read_manifest(folder).fingerprint()
    assert Counter(keys(train("memory://there", StorageConfig()), 30)) == once()


# S3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_gives_the_batches_of_the_folder(s3, folder, workers):
    _, config = s3
    local = keys(train(folder, StorageConfig(), num_workers=workers), 45)
    assert keys(train("s3://bucket/train", config(), num_workers=workers), 45) == local


def test_every_sample_once_over_a_bad_network(s3):
    server, config = s3
    server.network = Network(errors=0.1, cuts=0.05, stalls=0.01, stall=3.0, latency=0.002)
    loader = train("s3://bucket/train", config(timeout=1.0, retries=8))
    assert Counter(keys(loader, 30)) == once()
    faults = server.network.requests
    assert min(faults["errors"], faults["cuts"], faults["stalls"]) > 0


def test_a_killed_run_goes_on_in_a_bucket_on_other_ranks(s3):
    server, config = s3
    server.network = Network(errors=0.02, cuts=0.02)
    first = train("s3://bucket/train", config())
    seen = Counter(keys(first, 11))
    for rank in range(2):
        options = {"rank": rank, "world_size": 2, "num_workers": rank, "batch_size": 4}
        second = train("s3://bucket/train", config(), **options)
        second.load_state_dict(first.state_dict())
        seen += Counter(keys(second, 19))
    assert seen == once()


def test_evaluation_in_a_bucket(s3):
    _, config = s3
    options = {"world_size": 2, "storage": config()}
    loaders = [EvalLoader("s3://bucket/train", 7, prepare, collate, rank=rank, **options) for rank in range(2)]
    assert Counter(key for loader in loaders for batch in loader for key in batch.keys) == once()


def test_a_copy_is_made_once(s3):
    server, config = s3
    keys(train("s3://bucket/train", config()), 30)
    reads = server.network.requests["GET"]
    assert Counter(keys(train("s3://bucket/train", config()), 30)) == once()
    assert server.network.requests["GET"] - reads <= 2  # the manifest, at most


def test_the_cache_is_kept_below_its_limit(s3, tmp_path):
    _, config = s3
    small = config(cache_gib=60_000 / 2**30)
    assert Counter(keys(train("s3://bucket/train", small), 60)) == once() + once()
    time.sleep(0.3)  # a shard that is still fetched in advance
    assert sum(path.stat().st_size for path in (tmp_path / "cache" / "shards").iterdir()) <= 60_000 + 2 * 30_720


def test_reading_begins_before_the_shard_is_here(s3, folder):
    server, config = s3
    server.network = Network(latency=0.1)
    size = (folder / "00000.tar").stat().st_size
    files = Storage(config())
    with files.open("s3://bucket/train/00000.tar", size) as stream:
        assert stream.read(100) == (folder / "00000.tar").read_bytes()[:100]
        blocks = server.network.requests["GET"]
        assert blocks <= 2
        assert stream.read() == (folder / "00000.tar").read_bytes()[100:]
        assert server.network.requests["GET"] >= 4


def test_files_are_fetched_in_advance(s3, folder):
    server, config = s3
    files = Storage(config())
    wanted = [(f"s3://bucket/train/{name}", (folder / name).stat().st_size) for name in ("00000.tar", "00001.tar")]
    files.prefetch(wanted)
    deadline = time.monotonic() + 20
    while len(list(config().folder("shards").glob("*.tar"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = server.network.requests["GET"]
    for path, size in wanted:
        with files.open(path, size) as stream:
            assert stream.read() == (folder / path.rsplit("/")[-1]).read_bytes()
    assert server.network.requests["GET"] == before


def test_what_does_not_come_ends_the_run_and_is_named(s3):
    server, config = s3
    server.network = Network(gone={"00007.tar"})
    with pytest.raises(ShardError, match=r"s3://bucket/train/00007.tar.*\(after 3 tries\)"):
        keys(train("s3://bucket/train", config(retries=2)), 30)


def test_shards_may_be_skipped_up_to_a_number(s3, caplog):
    server, config = s3
    server.network = Network(gone={"00007.tar", "00011.tar"})
    loader = train("s3://bucket/train", config(retries=1, skip_shards=2), batch_size=4, steps_per_epoch=55)
    found = Counter(key for batch in loader for key in batch.keys)
    lost = {f"k{index:03d}" for index in (*range(70, 80), *range(110, 120))}
    assert set(found) == set(once()) - lost
    assert loader.counts[0, 3:].tolist() == [20, 2]
    for name in ("00007.tar", "00011.tar"):
        assert sum("skipped a shard" in r.getMessage() and name in r.getMessage() for r in caplog.records) == 1
    with pytest.raises(TooManyLostShardsError, match="2 shards could not be read over all ranks"):
        list(train("s3://bucket/train", config(retries=1, skip_shards=1), steps_per_epoch=27))


def test_a_stalled_answer_is_given_up(s3, folder):
    server, config = s3
    server.network = Network(stalls=1.0, stall=30)
    began = time.monotonic()
    files = Storage(config(timeout=0.3, retries=1))
    with (
        files.open("s3://bucket/train/00000.tar", 30_720) as stream,
        pytest.raises(StorageError, match="after 2 tries"),
    ):
        stream.read(10)
    assert time.monotonic() - began < 20


def test_bytes_that_are_not_there_are_no_file(s3):
    _, config = s3
    with pytest.raises(FileNotFoundError):
        Storage(config()).read("s3://bucket/train/none.json")
    with pytest.raises(ShardError, match="s3://bucket/nothing has no shards"):
        read_manifest("s3://bucket/nothing", config())
    with pytest.raises(ShardError, match=r"there is no file s3://bucket/train/99999.tar"):
        read_manifest("s3://bucket/train/{00000,99999}.tar", config())


def test_without_a_manifest_the_samples_are_counted_once(s3, folder):
    server, config = s3
    listed = [f"s3://bucket/bare/{index:05d}.tar" for index in range(24)]
    for path in ("s3://bucket/bare", "s3://bucket/bare/{00000..00023}.tar", listed):
        found = read_manifest(path, config())
        assert found.fingerprint() == read_manifest(folder).fingerprint()
        assert Counter(keys(train(path, config()), 30)) == once()
    before = server.network.requests["GET"]
    read_manifest("s3://bucket/bare", config())
    assert server.network.requests["GET"] - before <= 1  # a list of the folder


def test_the_pages_command_counts_a_bucket(s3, folder, tmp_path, monkeypatch):
    server, _ = s3
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    [command] = re.findall(r"onepeace (shards manifest s3://\S+ --out \S+)", page)
    monkeypatch.chdir(tmp_path)
    Path("counts").mkdir()
    for name, value in {"ENDPOINT_URL": server.url, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    main([*command.replace("s3://bucket/laion", "s3://bucket/bare").split(), f"--cache={tmp_path}/copies"])
    assert list((tmp_path / "copies" / "shards").iterdir())
    found = read_manifest("counts/laion.json")
    assert found.fingerprint() == read_manifest(folder).fingerprint()
    assert Counter(keys(train("counts/laion.json", StorageConfig(cache=str(tmp_path / "cache"))), 30)) == once()


def test_workers_that_are_forked_while_files_arrive(s3, folder):
    """What a process was doing does not keep a worker from its own connections and copies."""
    server, config = s3
    server.network = Network(latency=0.05)
    Storage(config()).prefetch([("s3://bucket/train/00003.tar", (folder / "00003.tar").stat().st_size)])
    assert Counter(keys(train("s3://bucket/train", config(), num_workers=2), 30)) == once()


def _read_all(config, results):
    results.put(Counter(keys(train("s3://bucket/train", config), 30)))


def test_processes_share_a_cache(s3):
    _, config = s3
    context = multiprocessing.get_context("spawn")  # this one has threads
    results = context.Queue()
    readers = [context.Process(target=_read_all, args=(config(cache_gib=100_000 / 2**30), results)) for _ in range(2)]
    for reader in readers:
        reader.start()
    assert [results.get(timeout=100) for _ in readers] == [once()] * 2
    for reader in readers:
        reader.join()


# HTTP


def test_a_server_without_ranges(folder, tmp_path):
    import http.server
    from functools import partial

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    config = StorageConfig(cache=str(tmp_path / "cache"), block_mib=0.005)
    try:
        assert Counter(keys(train(url, config), 30)) == once()
        assert read_manifest(url + "/{00000..00023}.tar", config).samples == SAMPLES
    finally:
        server.shutdown()
        server.server_close()


# img2dataset


def test_img2dataset_counts(tmp_path, folder, monkeypatch):
    for index in range(3):
        (tmp_path / f"0000{index}.tar").write_bytes((folder / f"0000{index}.tar").read_bytes())
        (tmp_path / f"0000{index}_stats.json").write_text('{"count": 12, "successes": 10, "status_dict": {}}')
    monkeypatch.setattr("onepeace_lightning.data.counting.count_shard", None)
    found = read_manifest(tmp_path)
    assert [shard.samples for shard in found.shards] == [10, 10, 10]
    assert found.data_type == "text"
    assert os.listdir(tmp_path).count(MANIFEST) == 0
