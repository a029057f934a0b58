import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from onepeace_lightning.cli import main
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.from_folder import from_folder
from onepeace_lightning.data.from_table import from_csv, from_hf, from_parquet
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.readers.base import origin

VOCAB = 300


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 255 - colour, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(hertz):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(800) * hertz / 1000), 16000, format="WAV")
    return buffer.getvalue()


def samples(stream):
    """Every sample of a stream: its json, with the name and bytes of its other file."""
    found = []
    for shard in read_manifest(stream).shards:
        members = {}
        with tarfile.open(stream / shard.name) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                members.setdefault(key, {})[ending] = tar.extractfile(member).read()
        found += [{**json.loads(fields.pop("json")), "fields": fields} for fields in members.values()]
    return found


def table(folder, header, rows, separator=","):
    folder.mkdir(exist_ok=True)
    for row in rows:
        (folder / row[0]).write_bytes(png(len(row[0]) * 7 % 256) + row[0].encode())
    path = folder / "table.csv"
    path.write_text("\n".join(separator.join(row) for row in [header, *rows]) + "\n")
    return str(path)


# ---------------------------------------------------------------- classes of folders


def class_folders(top, names=("rose", "tulip"), each=10, splits=("",)):
    for split in splits:
        for colour, name in enumerate(names):
            folder = top / split / name
            folder.mkdir(parents=True)
            for index in range(each):
                (folder / f"{index}.png").write_bytes(png(colour * 100 + index) + split.encode())
    return str(top)


def test_folders_are_classes_when_it_is_said_and_else_a_warning(tmp_path, capsys):
    raw = class_folders(tmp_path / "raw")
    (tmp_path / "raw" / "rose" / "old").mkdir()
    (tmp_path / "raw" / "rose" / "old" / "x.png").write_bytes(png(77))
    from_folder(raw, out=str(tmp_path / "a"), labels_from_folders=True, split="0.7,0.3")
    said = capsys.readouterr().out
    assert "in 2 classes (rose, tulip)" in said
    assert "warning" not in said
    held = {split: samples(tmp_path / "a" / split / "image-label") for split in ("train", "val")}
    assert sum(map(len, held.values())) == 21
    assert all([s["from"].split("/")[0]] == s["labels"] for split in held.values() for s in split)
    for split in held:
        assert read_manifest(tmp_path / "a" / split / "image-label").about["classes"] == ["rose", "tulip"]
    from_folder(raw, out=str(tmp_path / "b"))
    assert "2 folders (rose, tulip), whose names are not kept. Are they classes?" in capsys.readouterr().out
    assert not any("labels" in sample for sample in samples(tmp_path / "b" / "train" / "image"))


def test_a_class_that_cannot_be_learned_or_measured_is_named(tmp_path, capsys):
    for split, names in (("train", ("rose", "tulip")), ("val", ("rose", "lily"))):
        class_folders(tmp_path / "raw" / split, names, each=2)
    from_folder(str(tmp_path / "raw"), out=str(tmp_path / "a"), labels_from_folders=True)
    said = capsys.readouterr().out
    assert "warning: no training sample is in lily, so this cannot be learned\n" in said
    assert "note: no sample for val is in tulip, so its scores say nothing of this\n" in said


def test_a_file_in_no_class_is_named(tmp_path):
    raw = class_folders(tmp_path / "raw")
    (tmp_path / "raw" / "loose.png").write_bytes(png(1))
    with pytest.raises(ValueError, match=r"1 files lie directly in the folder.*loose; move them"):
        from_folder(raw, out=str(tmp_path / "a"), labels_from_folders=True)


def test_folders_that_are_called_as_splits_are_splits(tmp_path):
    raw = class_folders(tmp_path / "raw", each=2, splits=("train", "valid", "Test"))
    from_folder(raw, out=str(tmp_path / "a"), labels_from_folders=True)
    counts = {split: len(samples(tmp_path / "a" / split / "image-label")) for split in ("train", "val", "test")}
    assert counts == {"train": 4, "val": 4, "test": 4}
    assert {s["labels"][0] for s in samples(tmp_path / "a" / "val" / "image-label")} == {"rose", "tulip"}
    with pytest.raises(ValueError, match="say themselves what is for test, train, val"):
        from_folder(raw, out=str(tmp_path / "b"), labels_from_folders=True, split="0.9,0.1")


def test_what_img2dataset_downloads_into_folders_keeps_captions_and_metadata(tmp_path, capsys):
    for shard in ("00000", "00001"):
        (tmp_path / "raw" / shard).mkdir(parents=True)
        for index in range(2):
            stem = tmp_path / "raw" / shard / f"{shard}{index:04d}"
            stem.with_suffix(".jpg").write_bytes(png(index + 9 * int(shard)))
            stem.with_suffix(".txt").write_text(f"thing {shard} {index}")
            stem.with_suffix(".json").write_text(json.dumps({"url": f"http://x/{index}", "caption": "thing"}))
        (tmp_path / "raw" / f"{shard}_stats.json").write_text("{}")
        (tmp_path / "raw" / f"{shard}.parquet").write_bytes(b"PAR1")
    from_folder(str(tmp_path / "raw"), out=str(tmp_path / "out"), vocab_size=VOCAB)
    held = samples(tmp_path / "out" / "train" / "image-text")
    assert sorted(sample["columns"]["url"] for sample in held) == [
        "http://x/0",
        "http://x/0",
        "http://x/1",
        "http://x/1",
    ]
    assert capsys.readouterr().out.startswith("left out: 2 with .parquet\n")


def test_evaluation_names_the_files_of_its_samples(tmp_path):
    from_folder(class_folders(tmp_path / "raw"), out=str(tmp_path / "out"), labels_from_folders=True, split="0.7,0.3")
    streams = [StreamConfig(str(tmp_path / "out" / split / "image-label"), 4) for split in ("train", "val")]
    data = DataModule(streams[0], {"val": streams[1]}, preprocessing={"image": {"size": 16}})
    data.setup("fit")
    for batch in data.val_dataloader()["val"]:
        for row, [label] in enumerate(batch.targets["labels"]):
            assert re.fullmatch(rf"{label}/\d\.png, key {batch.keys[row]}", batch.named(row))
    assert set(next(iter(data.train_dataloader())).origins) == {""}


@pytest.mark.parametrize("content", ['{"from": "here"}', '{"files": ["a"], "from": "here"}', "[1]", "{", '{"from": 3}'])
def test_metadata_of_others_name_what_they_can(content):
    assert origin({"json": content.encode()}) == ("here" if "here" in content else "3" if "3" in content else "")


def test_half_an_emoji_in_json_is_left_out(tmp_path):
    """Cut off by what wrote it; no encoding can write it again."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.png").write_bytes(png(1))
    (tmp_path / "raw" / "x.txt").write_text("a bell")
    (tmp_path / "raw" / "x.json").write_text(r'{"title": "bell \ud83d", "whole": "\ud83d\ude00"}')
    from_folder(str(tmp_path / "raw"), out=str(tmp_path / "a"), vocab_size=VOCAB)
    [sample] = samples(tmp_path / "a" / "train" / "image-text")
    assert sample["columns"] == {"title": "bell ", "whole": "\U0001f600"}
    rows = [["a.png", r'["bell \ud83d", "drum"]', "x"], ["b.png", '["horn"]', "y"]]
    path = table(tmp_path / "cells", ["file", "said", "by"], rows, ";")
    from_csv(path, out=str(tmp_path / "b"), columns={"image": "file", "text": "said"}, vocab_size=VOCAB)
    found = samples(tmp_path / "b" / "train" / "image-captions")
    assert sorted(sample["captions"] for sample in found) == [["bell ", "drum"], ["horn"]]
    from_csv(path, out=str(tmp_path / "c"), columns={"image": "file"}, label_col="said")
    assert read_manifest(tmp_path / "c" / "train" / "image-label").about["classes"] == ["bell", "drum", "horn"]


# ---------------------------------------------------------------- columns of a table


def test_labels_of_a_column_with_what_else_the_table_says(tmp_path):
    rows = [["a.png", "cat", "Ann"], ["b.png", "dog", ""], ["c.png", " cat ", "Ben"]]
    path = table(tmp_path / "raw", ["file", "kind", "by"], rows, ";")
    from_csv(path, out=str(tmp_path / "out"), columns={"image": "file"}, label_col="kind")
    stream = tmp_path / "out" / "train" / "image-label"
    assert {s["from"]: (s["labels"], s.get("columns")) for s in samples(stream)} == {
        "table.csv, line 2": (["cat"], {"by": "Ann"}),
        "table.csv, line 3": (["dog"], None),
        "table.csv, line 4": (["cat"], {"by": "Ben"}),
    }
    assert read_manifest(stream).about == {"split": "train", "classes": ["cat", "dog"], "several_labels": False}


@pytest.mark.parametrize("cell", ["red|round", '"[""red"", ""round""]"'])
def test_several_labels_in_a_cell(tmp_path, cell):
    path = table(tmp_path / "raw", ["file", "tags"], [["a.png", cell], ["b.png", "red"]])
    separator = None if "[" in cell else "|"
    from_csv(path, out=str(tmp_path / "o"), columns={"image": "file"}, label_col="tags", label_separator=separator)
    stream = tmp_path / "o" / "train" / "image-label"
    assert sorted(s["labels"] for s in samples(stream)) == [["red"], ["red", "round"]]
    assert read_manifest(stream).about["several_labels"]


def test_cells_that_look_like_several_labels_are_told(tmp_path, capsys):
    rows = [["a.png", "red|round"], ["b.png", "red"], ["c.png", "round|red"]]
    path = table(tmp_path / "raw", ["file", "tags"], rows)
    from_csv(path, out=str(tmp_path / "o"), columns={"image": "file"}, label_col="tags")
    assert "2 of 3 class names hold '|', such as 'red|round'" in capsys.readouterr().out


def test_numbers_become_targets_with_the_mean_of_training(tmp_path):
    rows = [["a.png", "1.5", "2"], ["b.png", "2.5", "4"]]
    path = table(tmp_path / "raw", ["file", "weight", "age"], rows)
    from_csv(path, out=str(tmp_path / "o"), columns={"image": "file"}, target_col=["weight", "age"])
    stream = tmp_path / "o" / "train" / "image-target"
    assert sorted(s["targets"]["weight"] for s in samples(stream)) == [1.5, 2.5]
    assert read_manifest(stream).about["targets"] == {"weight": {"mean": 2, "std": 0.5}, "age": {"mean": 3, "std": 1}}
    path = table(tmp_path / "raw", ["file", "weight"], [["a.png", '"1,5"'], ["b.png", "nan"]])
    with pytest.raises(ValueError, match=r"line 2: column 'weight' has '1,5'; give a finite number, with a decimal"):
        from_csv(path, out=str(tmp_path / "p"), columns={"image": "file"}, target_col=["weight"])


def test_several_captions_in_a_cell(tmp_path):
    path = table(tmp_path / "raw", ["file", "says"], [["a.png", '"[""a cow"", ""a brown cow""]"'], ["b.png", "a dog"]])
    from_csv(path, out=str(tmp_path / "o"), columns={"image": "file", "text": "says"}, vocab_size=VOCAB)
    held = samples(tmp_path / "o" / "train" / "image-captions")
    assert sorted(s["captions"] for s in held) == [["a cow", "a brown cow"], ["a dog"]]
    assert (tmp_path / "o" / "tokenizer").is_dir()


def test_a_column_says_the_split(tmp_path):
    rows = [["a.png", "x", "Training"], ["bb.png", "y", "validation"], ["ccc.png", "x", "test"]]
    path = table(tmp_path / "raw", ["file", "k", "set"], rows)
    options = {"columns": {"image": "file"}, "label_col": "k", "split_col": "set"}
    from_csv(path, out=str(tmp_path / "o"), **options)
    for split, name in (("train", "a"), ("val", "bb"), ("test", "ccc")):
        [sample] = samples(tmp_path / "o" / split / "image-label")
        assert sample["fields"]["png"].endswith(f"{name}.png".encode())
    with pytest.raises(ValueError, match="--split and --split-col together"):
        from_csv(path, out=str(tmp_path / "p"), split="0.9,0.1", **options)
    path = table(tmp_path / "raw", ["file", "k", "set"], [["a.png", "x", "fold7"]])
    with pytest.raises(ValueError, match="'set' is 'fold7'; it may say train, val or test"):
        from_csv(path, out=str(tmp_path / "p"), **options)


def test_groups_stay_together_in_three_splits(tmp_path):
    rows = [[f"{'x' * (index % 30 + 1)}{index}.png", f"p{index % 12}"] for index in range(60)]
    path = table(tmp_path / "raw", ["file", "patient"], rows)
    options = {"columns": {"image": "file"}, "group_col": "patient", "split": "0.5,0.25,0.25"}
    from_csv(path, out=str(tmp_path / "o"), **options)
    patients = {split: {s["columns"]["patient"] for s in samples(tmp_path / "o" / split / "image")} for split in
                ("train", "val", "test")}  # fmt: skip
    assert sum(map(len, patients.values())) == 12
    assert all(patients.values())
    assert len(set().union(*patients.values())) == 12
    path = table(tmp_path / "raw", ["file", "patient"], [["a.png", "p1"], ["bb.png", "p1"]])
    with pytest.raises(ValueError, match="there is nothing for"):
        from_csv(path, out=str(tmp_path / "p"), **options)


def test_columns_that_do_not_go_together(tmp_path):
    path = table(tmp_path / "raw", ["file", "a", "b"], [["a.png", "x", "1"]])
    for options, said in (
        ({"label_col": "a", "target_col": ["b"]}, "choose"),
        ({"label_separator": "|"}, "no meaning without --label-col"),
        ({"label_col": "gone"}, "no column 'gone'"),
    ):
        with pytest.raises(ValueError, match=said):
            from_csv(path, out=str(tmp_path / "o"), columns={"image": "file"}, **options)


# ---------------------------------------------------------------- Parquet and Hugging Face


def features(**columns):
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


def test_parquet_in_the_layout_of_hugging_face_needs_no_column(tmp_path, capsys):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    said = features(image={"_type": "Image"}, label={"_type": "ClassLabel", "names": ["bird", "fish"]})
    schema = pa.schema([("image", struct), ("label", pa.int64()), ("by", pa.string())], metadata=said)
    for split, start in (("train", 0), ("validation", 6)):
        rows = [
            {"image": {"bytes": png(index), "path": None if index % 2 else f"{index}.png"}, "label": index % 2,
             "by": f"n{index}"}
            for index in range(start, start + 6)
        ]  # fmt: skip
        path = tmp_path / "raw" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)
    from_parquet(str(tmp_path / "raw"), out=str(tmp_path / "o"))
    assert "found: image of column 'image', classes of 'label'" in capsys.readouterr().out
    held = samples(tmp_path / "o" / "train" / "image-label")
    assert {(s["columns"]["by"], s["labels"][0], s["fields"]["png"]) for s in held} == {
        (f"n{index}", ("bird", "fish")[index % 2], png(index)) for index in range(6)
    }
    assert [s["columns"]["by"] for s in held] != [f"n{index}" for index in range(6)]
    assert len(samples(tmp_path / "o" / "val" / "image-label")) == 6


def test_parquet_of_paths_or_of_bytes(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(100))
    pq.write_table(pa.table({"file": ["a.wav"], "says": ["a hum"]}), tmp_path / "paths.parquet")
    columns = {"columns": {"audio": "file", "text": "says"}, "vocab_size": VOCAB}
    from_parquet(str(tmp_path / "paths.parquet"), out=str(tmp_path / "o"), **columns)
    pq.write_table(pa.table({"file": [wav(100), None], "says": ["a hum", "gone"]}), tmp_path / "bytes.parquet")
    with pytest.raises(ValueError, match=r"bytes\.parquet, row 1: nothing in the column of audio"):
        from_parquet(str(tmp_path / "bytes.parquet"), out=str(tmp_path / "p"), **columns)
    from_parquet(str(tmp_path / "bytes.parquet"), out=str(tmp_path / "p"), skip_bad=True, **columns)
    for out in ("o", "p"):
        [sample] = samples(tmp_path / out / "train" / "audio-text")
        assert sample["fields"] == {"wav": wav(100), "txt": b"a hum"}


def test_what_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing of the kind")
    for path, said in ((tmp_path / "x.parquet", "no Parquet file"), (tmp_path / "gone", "there is no")):
        with pytest.raises(ValueError, match=said):
            from_parquet(str(path), out=str(tmp_path / "o"), columns={"image": "x"})


def test_a_saved_data_set_with_splits(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    kinds = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["bird", "fish"]), "id": datasets.Value("int32")}
    )
    rows = [{"img": {"bytes": png(index), "path": None}, "label": index % 2, "id": index} for index in range(8)]
    made = datasets.Dataset.from_list(rows, features=kinds).train_test_split(test_size=2, seed=0)
    made.save_to_disk(str(tmp_path / "saved"))
    from_hf(str(tmp_path / "saved"), out=str(tmp_path / "o"))
    held = {split: samples(tmp_path / "o" / split / "image-label") for split in ("train", "test")}
    assert {split: len(found) for split, found in held.items()} == {"train": 6, "test": 2}
    for sample in [*held["train"], *held["test"]]:
        number = sample["columns"]["id"]
        assert sample["fields"]["png"] == png(number)
        assert sample["labels"] == [["bird", "fish"][number % 2]]
    with pytest.raises(ValueError, match="no data set that save_to_disk wrote"):
        from_hf(str(tmp_path / "o"), out=str(tmp_path / "p"))


# ---------------------------------------------------------------- the page

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
OWN = PAGE.partition("## Files of your own")[2].partition("\n## ")[0].replace("\\|", "|")
COMMANDS = re.findall(r"`(onepeace shards from-[^`]+)`", OWN)


def files_of(command, folder):
    """The files that a command of the page reads."""
    if "from-folder flowers" in command:
        class_folders(folder / "flowers")
    elif "--masks" in command:
        (folder / "names.txt").write_text("sky\nfield\n")
        for part, content in (("photos", "RGB"), ("masks", "L")):
            (folder / part).mkdir()
            for index in range(20):
                Image.new(content, (8, 8 + index), (1,) * len(content)).save(folder / part / f"{index}.png")
    elif "from-folder" in command:
        (folder / "pairs").mkdir()
        for index in range(3):
            (folder / "pairs" / f"{index}.png").write_bytes(png(index))
            (folder / "pairs" / f"{index}.txt").write_text(f"thing {index}")
    elif "from-csv" in command:
        content = wav if "--audio-col" in command else png
        lines = ["file,caption,tags,age,weight"]
        for index in range(3):
            name = f"{index}.{content.__name__}"
            (folder / name).write_bytes(content(index + 1))
            lines.append(f"{name},thing {index},a|b,{index},{index + 0.5}")
        (folder / "t.csv").write_text("\n".join(lines) + "\n")
    elif "from-parquet" in command:
        (folder / "folder").mkdir()
        pq.write_table(pa.table({"image": [png(1), png(2)], "label": ["a", "b"]}), folder / "folder" / "x.parquet")
    else:
        datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
        rows = [{"image": {"bytes": png(index), "path": None}} for index in range(2)]
        kinds = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_list(rows, features=kinds).save_to_disk(str(folder / "folder"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_make_shards(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files_of(command, tmp_path)
    words = shlex.split(command)[1:]
    main([*words, *(["--vocab-size", "300"] if "--text-col" in words or "pairs" in words else [])])
    [stream] = (tmp_path / words[words.index("--out") + 1] / "train").iterdir()
    assert samples(stream)


def test_the_page_has_a_command_for_each_reader():
    assert {command.split()[2] for command in COMMANDS} == {"from-folder", "from-csv", "from-parquet", "from-hf"}
