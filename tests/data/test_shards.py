import io
import json
import os
import tarfile

import pytest

from onepeace_lightning.data.data_types import data_type as parse
from onepeace_lightning.data.make_manifest import write_manifest
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.shards import ShardWriter, read_shard
from onepeace_lightning.data.tars import ShardError, find_sample

ABOUT = {"source": "made up", "license": "CC0-1.0"}


def write(folder, samples=7, per_shard=3, **options):
    with ShardWriter(folder, "text", samples_per_shard=per_shard, **ABOUT, **options) as writer:
        for index in range(samples):
            writer.write(f"key{index:03d}", {"txt": f"caption {index}".encode(), "json": b"{}"})
    return folder


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read(folder, index, wanted=None):
    manifest = read_manifest(folder)
    shard = manifest.shards[index]
    return list(read_shard(manifest, shard, range(shard.samples) if wanted is None else wanted))


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path, about={"split": "train"})
    manifest = read_manifest(tmp_path)
    assert [(s.name, s.samples) for s in manifest.shards] == [("00000.tar", 3), ("00001.tar", 3), ("00002.tar", 1)]
    assert (manifest.data_type, manifest.samples, manifest.about) == ("text", 7, {"split": "train"})
    assert (manifest.source, manifest.license) == ("made up", "CC0-1.0")
    assert json.loads((tmp_path / "manifest.json").read_text())["samples"] == 7
    assert read(tmp_path, 1, {0, 2}) == [
        (0, {"__key__": "key003", "__shard__": "00001.tar", "txt": b"caption 3", "json": b"{}"}),
        (2, {"__key__": "key005", "__shard__": "00001.tar", "txt": b"caption 5", "json": b"{}"}),
    ]


def test_equal_samples_give_equal_bytes(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_fingerprint_tells_folders_apart_and_ignores_where_they_are(tmp_path):
    one, same = write(tmp_path / "one"), write(tmp_path / "same")
    other = write(tmp_path / "other", per_shard=4)
    prints = [read_manifest(folder).fingerprint() for folder in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_long_and_foreign_keys_survive(tmp_path):
    key = "v1.2/größe-鐘/" + "x" * 200
    with ShardWriter(tmp_path, "text", **ABOUT) as writer:
        writer.write(key, {"txt": b"a"})
    assert read(tmp_path, 0)[0][1]["__key__"] == key


TYPES = """image-text audio-text audio-image text image-label image-audio-label audio-captions image-box image-mask
    image-question image-audio-question audio-choices image-pair"""


@pytest.mark.parametrize("data_type", TYPES.split())
def test_writer_asks_for_the_fields_of_its_data_type(tmp_path, data_type):
    full = {group[-1]: b"x" for group in parse(data_type).fields}
    with ShardWriter(tmp_path, data_type, **ABOUT) as writer:
        writer.write("full", full)
        for ext in full:
            with pytest.raises(ShardError, match=rf"'lacking'.*exactly one of .*{ext}"):
                writer.write("lacking", {name: value for name, value in full.items() if name != ext} | {"note": b"{}"})
    assert read_manifest(tmp_path).samples == 1


def test_writer_refuses_two_pictures_in_one_sample(tmp_path):
    with ShardWriter(tmp_path, "image", **ABOUT) as writer:
        writer.write("one", {"png": b"x"})
        with pytest.raises(ShardError, match=r"exactly one of jpg, jpeg, png, webp, .*; it has jpg, png"):
            writer.write("two", {"png": b"x", "jpg": b"x"})


@pytest.mark.parametrize("key", ["a.b", "", "__meta__", "dir/a.b"])
def test_writer_refuses_keys_that_would_not_come_back(tmp_path, key):
    with ShardWriter(tmp_path, "text", **ABOUT) as writer:
        writer.write("good", {"txt": b"x"})
        with pytest.raises(ShardError, match="a key needs"):
            writer.write(key, {"txt": b"x"})


def test_writer_refuses_a_key_twice_in_a_shard(tmp_path):
    with ShardWriter(tmp_path, "text", **ABOUT) as writer:
        writer.write("a", {"txt": b"x"})
        writer.write("b", {"txt": b"x"})
        with pytest.raises(ShardError, match="'a' is twice"):
            writer.write("a", {"txt": b"x"})


def test_writer_refuses_a_folder_in_use_unless_told(tmp_path):
    write(tmp_path)
    with pytest.raises(ShardError, match="overwrite=True"):
        write(tmp_path, samples=2)
    assert read_manifest(tmp_path).samples == 7
    write(tmp_path, samples=2, overwrite=True)
    assert read_manifest(tmp_path).samples == 2


def test_a_failed_write_leaves_no_manifest(tmp_path):
    with pytest.raises(ShardError, match="needs exactly one"), ShardWriter(tmp_path, "text", **ABOUT) as writer:
        [writer.write(key, {ext: b"x"}) for key, ext in [("a", "txt"), ("b", "json")]]
    with pytest.raises(ShardError, match="its writing was interrupted"):
        read_manifest(tmp_path)


def test_writing_nothing_and_unknown_types_are_errors(tmp_path):
    with pytest.raises(ShardError, match="no sample"), ShardWriter(tmp_path, "text", **ABOUT):
        pass
    with pytest.raises(ShardError, match=r"'smell' is no modality.*text, image, audio"):
        ShardWriter(tmp_path, "smell", **ABOUT)


def test_missing_empty_and_uncounted_folders(tmp_path):
    with pytest.raises(ShardError, match="there is no folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ShardError, match="has no shards"):
        read_manifest(tmp_path)
    write(tmp_path)
    before = read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    counted = read_manifest(tmp_path)
    assert (counted.shards, counted.data_type, counted.source) == (before.shards, "text", str(tmp_path))
    assert write_manifest(tmp_path, "text", **ABOUT) == before == read_manifest(tmp_path)


def test_manifest_that_disagrees_says_everything(tmp_path):
    write(tmp_path)
    (tmp_path / "00000.tar").unlink()
    (tmp_path / "extra.tar").write_bytes(b"")
    edit(tmp_path, samples=8)
    with pytest.raises(ShardError) as error:
        read_manifest(tmp_path)
    for part in (
        "00000.tar: listed, but",
        "extra.tar: not",
        "8 sa",
    ):
        assert part in str(error.value)


def test_a_shard_of_another_size_is_seen_when_it_is_opened(tmp_path):
    write(tmp_path)
    with (tmp_path / "00001.tar").open("ab") as tar:
        tar.write(b"more")
    with pytest.raises(ShardError, match=r"00001.tar: 10240 bytes listed, the file has 10244"):
        read(tmp_path, 1)


@pytest.mark.parametrize("changes", [{"shards": [{"name": "00000.tar"}]}, {"samples": None}, {"shards": 3}])
def test_broken_manifest(tmp_path, changes):
    write(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ShardError, match="is not a manifest"):
        read_manifest(tmp_path)


def test_unknown_data_type_in_the_manifest(tmp_path):
    write(tmp_path)
    edit(tmp_path, data_type="smell")
    with pytest.raises(ShardError, match="'smell'"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("listed", "wanted"), [(2, {1}), (4, {3})])
def test_a_wrong_count_is_seen_when_the_end_is_read(tmp_path, listed, wanted):
    write(tmp_path, samples=3)
    edit(tmp_path, samples=listed, shards=[{"name": "00000.tar", "samples": listed, "bytes": 10240}])
    assert [index for index, _ in read(tmp_path, 0, {0})] == [0]
    with pytest.raises(ShardError, match=rf"00000.tar: {listed} samples listed, the shard has 3"):
        read(tmp_path, 0, wanted)


def truncate(folder, size, samples=7):
    """Cut the only shard and let the manifest agree with its new size."""
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:size])
    edit(folder, samples=samples, shards=[{"name": "00000.tar", "samples": samples, "bytes": size}])


@pytest.mark.parametrize("size", [0, 100, 512, 700, 1024, 4096, 5000, 7 * 2048 - 512])
def test_truncated_shard(tmp_path, size):
    write(tmp_path, per_shard=10)
    whole = read(tmp_path, 0)
    truncate(tmp_path, size)
    seen = []
    manifest = read_manifest(tmp_path)
    with pytest.raises(ShardError, match=r"00000.tar"):
        seen.extend(read_shard(manifest, manifest.shards[0], range(7)))
    assert [raw["__key__"] for _, raw in seen] == [raw["__key__"] for _, raw in whole[: len(seen)]]
    with pytest.raises(ShardError, match=r"00000.tar: damaged shard"):
        write_manifest(tmp_path, "text", **ABOUT)


def test_a_shard_cut_off_in_a_file_is_seen_when_that_is_read(tmp_path):
    with ShardWriter(tmp_path, "text", **ABOUT) as writer:
        writer.write("long", {"txt": b"x" * 5000})
    truncate(tmp_path, 3000, samples=1)
    with pytest.raises(ShardError, match=r"00000.tar: damaged shard \(unexpected end of data\)"):
        read(tmp_path, 0, {0})


def test_folders_and_notes_in_a_shard_belong_to_no_sample(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("__notes__", "__notes__/a.txt", "one.txt", "__more__/one.png", "one.json"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        folder = tarfile.TarInfo("two.txt")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert write_manifest(tmp_path, "text", **ABOUT).samples == 1
    assert read(tmp_path, 0) == [(0, {"__key__": "one", "__shard__": "a.tar", "txt": b"", "json": b""})]


def test_sparse_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        sparse = tarfile.TarInfo("one.txt")
        sparse.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(sparse, io.BytesIO())
    with pytest.raises(ShardError, match=r"damaged shard \(one.txt is stored as a sparse file"):
        write_manifest(tmp_path, "text", **ABOUT)


def test_captions_are_counted_alike_by_who_writes_and_by_who_counts(tmp_path):
    counts = (3, 1, 2, 5, 1)
    with ShardWriter(tmp_path, "image-captions", samples_per_shard=3, **ABOUT) as writer:
        for index, count in enumerate(counts):
            captions = [f"caption {number}" for number in range(count)]
            writer.write(f"{index}", {"png": b"x" * 700, "json": json.dumps({"captions": captions}).encode()})
    manifest = read_manifest(tmp_path)
    assert [(shard.captions, shard.most_captions) for shard in manifest.shards] == [(6, 3), (6, 5)]
    assert manifest.rows == 12
    assert [(shard.name, shard.caption) for shard in manifest.for_training().shards] == [
        *(("00000.tar", number) for number in range(3)), *(("00001.tar", number) for number in range(5))
    ]  # fmt: skip
    assert write_manifest(tmp_path, "image-captions", **ABOUT).shards == manifest.shards
    assert read_manifest(write(tmp_path / "texts")).for_training().rows == read_manifest(tmp_path / "texts").samples


def test_counting_checks_the_fields(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("one.txt", "one.png", "two.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ShardError, match="'two' of type 'image-text' needs exactly one of txt"):
        write_manifest(tmp_path, "image-text", **ABOUT)
    assert write_manifest(tmp_path, "image", **ABOUT).samples == 2


def test_two_tars_in_one_file_are_read_as_one(tmp_path):
    write(tmp_path / "a", samples=3, per_shard=3)
    write(tmp_path / "b", samples=5, per_shard=5)
    (tmp_path / "c").mkdir()
    tars = [(tmp_path / name / "00000.tar").read_bytes() for name in "ab"]
    (tmp_path / "c" / "00000.tar").write_bytes(b"".join(tars))
    assert write_manifest(tmp_path / "c", "text", **ABOUT).samples == 8
    assert [sample for _, sample in read(tmp_path / "c", 0)] == [
        sample for name in "ab" for _, sample in read(tmp_path / name, 0)
    ]


def test_a_name_of_another_encoding_in_a_tar_can_be_written_down(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in (b"caf\xe9.png", b"caf\xe9.txt"):
            info = tarfile.TarInfo(os.fsdecode(name))
            info.size = 4
            tar.addfile(info, io.BytesIO(b"bell"))
    made = write_manifest(tmp_path, "image-text", source="-", license="-")
    [(_, sample)] = read_shard(made, made.shards[0], [0])
    assert sample["__key__"] == "caf\\xe9"
    assert find_sample(tmp_path / "0.tar", sample["__key__"])["txt"] == b"bell"
