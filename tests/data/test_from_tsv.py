"""The original's tables, each in a few lines, to shards."""

import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from onepeace_lightning.data.from_tsv import from_tsv
from onepeace_lightning.data.items import Item, shard_key
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.shards import read_shard

AUDIO = ("uniq_id", "audio", "text", "duration")
IMAGE = ("image_id", "image", "caption")
VQA = ("uniq_id", "image", "question", "refs")


@pytest.fixture
def root(tmp_path):
    """A data set root with three pictures and three sounds."""
    folder = tmp_path / "root"
    (folder / "images").mkdir(parents=True)
    (folder / "audio").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 6), (number * 50, 0, 0)).save(folder / f"images/{number}.jpg")
        soundfile.write(folder / f"audio/{number}.flac", np.sin(np.arange(400) * (number + 1) / 9), 16_000)
    return folder


def table(folder, columns, rows, name="table.tsv"):
    lines = ["\t".join(map(str, row)) for row in (columns, *rows)]
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make(task, path, root, split="train", **options):
    """Run the command's function; the samples by key."""
    out = root.parent / "out"
    from_tsv(str(path), task=task, root=str(root), out=str(out), split=split, **options)
    (folder,) = (out / split).iterdir()
    manifest = read_manifest(folder)
    found = {s["__key__"]: s for shard in manifest.shards for _, s in read_shard(manifest, shard, range(shard.samples))}
    assert len(found) == manifest.samples
    return found, manifest


def facts(sample):
    return json.loads(sample["json"])


def test_pairs_keep_their_bytes_and_quotes_mean_nothing(root, tmp_path):
    path = table(tmp_path, IMAGE, [(7, "images/0.jpg", '"Open, she said'), (8, "images/1.jpg", 'a "red" cow')])
    found, manifest = make("image-text", path, root, source="mine", license="CC0")
    assert [found[f"{line:09d}"]["txt"].decode() for line in (2, 3)] == ['"Open, she said', 'a "red" cow']
    assert found["000000002"]["jpg"] == (root / "images/0.jpg").read_bytes()
    assert (manifest.data_type, manifest.source, manifest.license) == ("image-text", "mine", "CC0")
    assert manifest.about == {"split": "train", "table": "table.tsv", "missing": 0}
    path = table(tmp_path, AUDIO, [("a", "audio/0.flac", "a dog barks", 400)])
    assert make("audio-text", path, root, split="val")[0]["000000002"]["txt"] == b"a dog barks"


def test_the_last_column_may_hold_tabs(root, tmp_path):
    path = table(tmp_path, IMAGE, [(7, "images/0.jpg", "a cow\tand a dog\t"), (8, "images/1.jpg", "a cow")])
    found, _ = make("image-text", path, root)
    assert [found[f"{line:09d}"]["txt"].decode() for line in (2, 3)] == ["a cow\tand a dog\t", "a cow"]


def test_captions_of_one_file_are_joined(root, tmp_path):
    rows = [(7, "images/0.jpg", "one"), (8, "images/1.jpg", "two"), (7, "images/0.jpg", "three")]
    found, _ = make("image-captions", table(tmp_path, IMAGE, rows), root)
    assert [facts(sample)["captions"] for _, sample in sorted(found.items())] == [["one", "three"], ["two"]]


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_captions_for_evaluation_come_from_the_texts_file(modality, root, tmp_path):
    texts = tmp_path / "val_texts.json"
    texts.write_text(json.dumps({"7": ["one", "two", " "], "9": ["unused"]}))
    if modality == "image":
        path = table(tmp_path, IMAGE, [(7, "images/0.jpg", "")])
    else:
        path = table(tmp_path, AUDIO, [(7, "audio/0.flac", "", 400)])
    found, _ = make(f"{modality}-captions", path, root, split="val", texts=str(texts))
    assert facts(found["000000002"]) == {"captions": ["one", "two"]}
    texts.write_text(json.dumps({"8": ["one"]}))
    with pytest.raises(ValueError, match="no list of captions for id '7'"):
        make(f"{modality}-captions", path, root, split="test", texts=str(texts))


def test_esc50_reads_class_ids_or_names_and_takes_the_first_name(root, tmp_path):
    labels = tmp_path / "esc50_label.json"
    labels.write_text(json.dumps({"10": ["rain"], "0": ["dog", "dog barking"]}))
    path = table(tmp_path, AUDIO, [("a", "audio/0.flac", "0", 400), ("b", "audio/1.flac", "rain", 400)])
    found, manifest = make("esc50", path, root, split="test", labels=str(labels))
    assert [facts(found[key])["labels"] for key in sorted(found)] == [["dog"], ["rain"]]
    assert manifest.about["classes"] == ["dog", "rain"]
    with pytest.raises(ValueError, match=r"needs labels: the file esc50_label.json"):
        make("esc50", path, root, split="other")


def test_fsd50k_with_the_corpuss_own_vocabulary_or_ids(root, tmp_path):
    path = table(tmp_path, AUDIO, [("a", "audio/0.flac", "1,0", 400)])
    found, manifest = make("fsd50k", path, root)
    assert facts(found["000000002"]) == {"labels": ["1", "0"]}
    assert len(manifest.about["classes"]) == 200
    vocabulary = tmp_path / "vocabulary.csv"
    vocabulary.write_text("0,Accordion,/m/0mkg\n1,Acoustic_guitar,/m/042v_gx\n")
    found, manifest = make("fsd50k", path, root, split="val", labels=str(vocabulary))
    assert facts(found["000000002"]) == {"labels": ["Acoustic guitar", "Accordion"]}
    assert manifest.about["classes"] == ["Accordion", "Acoustic guitar"]
    vocabulary.write_text("index,name\n")
    with pytest.raises(ValueError, match=r"not like FSD50K's vocabulary.csv"):
        make("fsd50k", path, root, split="test", labels=str(vocabulary))


def test_vggsound_and_imagenet_count_their_classes_from_0_and_from_1(root, tmp_path):
    path = table(tmp_path, AUDIO, [("a", "audio/0.flac", 308, 400)])
    found, manifest = make("vggsound", path, root)
    assert facts(found["000000002"]) == {"labels": ["308"]}
    assert manifest.about["classes"][::308] == ["0", "308"]
    path = table(tmp_path, ("image", "label"), [("images/0.jpg", 1000), ("images/1.jpg", 1)])
    found, manifest = make("imagenet", path, root, split="val")
    assert [facts(found[key])["labels"] for key in sorted(found)] == [["1000"], ["1"]]
    assert manifest.about["classes"][0] == "1"
    path = table(tmp_path, ("image", "label"), [("images/0.jpg", 0)])
    with pytest.raises(ValueError, match="line 2: id '0' is none of the 1000 ids 1 to 1000"):
        make("imagenet", path, root, split="test")


def test_the_manifest_of_another_split_gives_the_same_classes(root, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"2": ["drum"], "1": ["bell"]}))
    path = table(tmp_path, ("image", "label"), [("images/0.jpg", 2)])
    make("imagenet", path, root, labels=str(names))
    manifest = root.parent / "out/train/image-label/manifest.json"
    found, made = make("imagenet", path, root, split="val", labels=str(manifest))
    assert made.about["classes"] == ["bell", "drum"]
    assert facts(found["000000002"]) == {"labels": ["drum"]}


def test_avqa(root, tmp_path):
    rows = [("a", "audio/0.flac", "What sounds?&&&bell&&&drum&&&dog&&&rain&&&3", 400)]
    found, _ = make("avqa", table(tmp_path, AUDIO, rows), root)
    assert found["000000002"]["txt"] == b"What sounds?"
    assert facts(found["000000002"]) == {"choices": ["bell", "drum", "dog", "rain"], "answer": 3}


def test_refcoco(root, tmp_path):
    path = table(
        tmp_path, ("uniq_id", "image", "text", "region_coord"), [("a", "images/0.jpg", "the dog", "1,0.5,8,6")]
    )
    found, _ = make("refcoco", path, root)
    assert found["000000002"]["txt"] == b"the dog"
    assert facts(found["000000002"]) == {"box": [1.0, 0.5, 8.0, 6.0]}


def test_vqa_builds_the_vocabulary_of_the_table_and_keeps_it_for_other_splits(root, tmp_path):
    rows = [
        ("1", "images/0.jpg", "Which?", "net|!+1|!+1.0&&red|!+0|!+0.3"),
        ("2", "images/1.jpg", "What?", "cat|!+2|!+0.6"),
    ]
    found, manifest = make("vqa", table(tmp_path, VQA, rows), root)
    assert manifest.about["answers"] == ["red", "net", "cat"]
    assert facts(found["000000002"]) == {"answers": {"net": 1.0, "red": 0.3}}
    other = table(tmp_path, VQA, [("3", "images/2.jpg", "What?", "cat|!+2|!+1")])
    with pytest.raises(ValueError, match=r"2 of its ids, such as 0: give the whole vocabulary with labels"):
        make("vqa", other, root, split="val")
    labels = str(root.parent / "out/train/image-question/manifest.json")
    found, manifest = make("vqa", other, root, split="val", labels=labels)
    assert manifest.about["answers"] == ["red", "net", "cat"]
    assert facts(found["000000002"]) == {"answers": {"cat": 1.0}}
    wrong = table(tmp_path, VQA, [("3", "images/2.jpg", "What?", "dog|!+2|!+1")])
    with pytest.raises(ValueError, match="answer 2 is 'dog' here and 'cat' in the vocabulary"):
        make("vqa", wrong, root, split="test", labels=labels)


def test_nlvr2(root, tmp_path):
    columns = ("uniq_id", "text", "image1", "image2", "label")
    found, manifest = make(
        "nlvr2", table(tmp_path, columns, [("a", "two cows", "images/0.jpg", "images/2.jpg", "False")]), root
    )
    assert found["000000002"]["second.jpg"] == (root / "images/2.jpg").read_bytes()
    assert facts(found["000000002"]) == {"labels": ["False"]}
    assert manifest.about["classes"] == ["True", "False"]


@pytest.mark.parametrize(
    ("task", "columns", "row", "message"),
    [
        ("image-text", IMAGE, (1, "images/0.jpg", " "), "line 2: nothing in column 'caption'"),
        ("image-text", IMAGE, (1, "images/notes.txt", "a cow"), r"notes.txt: as image a file named \*.jpg, \*.jpeg, "),
        ("vggsound", AUDIO, (1, "audio/0.flac", 309, 4), "line 2: id '309' is none of the 309 ids 0 to 308"),
        ("avqa", AUDIO, (1, "audio/0.flac", "What?&&&a&&&b&&&c&&&0", 4), "line 2: .* is not 'question&&&answer 1&&&"),
        ("avqa", AUDIO, (1, "audio/0.flac", "What?&&&a&&&b&&&c&&&d&&&4", 4), "line 2: .* index is '4'; it is one"),
        ("refcoco", ("image", "text", "region_coord"), ("images/0.jpg", "dog", "1,2,3"), "line 2: .* is not 'x0,y0"),
        ("refcoco", ("image", "text", "region_coord"), ("images/0.jpg", "dog", "5,2,3,4"), "line 2: .*0 <= x0 < x1"),
        ("vqa", VQA, (1, "images/0.jpg", "What?", "cat|!+0"), r"line 2: refs 'cat\|!\+0' is not 'answer"),
        ("vqa", VQA, (1, "images/0.jpg", "What?", "cat|!+0|!+2"), "line 2: the score of 'cat' is 2; it must be"),
        ("vqa", VQA, (1, "images/0.jpg", "What?", ""), "line 2: refs '' is not 'answer"),
        ("nlvr2", ("uniq_id", "text", "image1", "image2", "label"),
         (1, "two", "images/0.jpg", "images/1.jpg", "0"), "line 2: label '0' is neither True nor False"),
    ],
)  # fmt: skip
def test_lines_that_do_not_fit_are_named_and_nothing_is_written(task, columns, row, message, root, tmp_path):
    (root / "images/notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=message):
        make(task, table(tmp_path, columns, [row]), root)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["image-text", "audio-text", "esc50", "refcoco", "vqa", "nlvr2", "imagenet"])
def test_another_header_is_refused_with_the_one_that_is_expected(task, root, tmp_path):
    path = table(tmp_path, ("path", "caption"), [("images/0.jpg", "a cow")])
    with pytest.raises(ValueError, match=rf"a table for {task} has the tab-separated columns .*its header is \['path'"):
        make(task, path, root)


def test_a_line_of_another_length_and_a_wrong_encoding_are_refused(root, tmp_path):
    path = table(tmp_path, IMAGE, [(1, "images/0.jpg")])
    with pytest.raises(ValueError, match="line 2: 2 tab-separated values, the header has 3"):
        make("image-text", path, root)
    path.write_bytes("image_id\timage\tcaption\n1\timages/0.jpg\té\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is no UTF-8 table"):
        make("image-text", path, root)


def test_missing_files_are_named_or_left_out(root, tmp_path, capsys):
    rows = [(1, "images/0.jpg", "a"), (2, "images/gone.jpg", "b"), (3, "images/1.jpg", "c")]
    path = table(tmp_path, IMAGE, rows)
    with pytest.raises(ValueError, match=r"files of 1 of 3 samples are missing(.|\n)*gone.jpg"):
        make("image-text", path, root)
    found, manifest = make("image-text", path, root, max_missing=0.5)
    assert set(found) == {"000000002", "000000004"}
    assert manifest.about["missing"] == 1
    assert "1 left out for missing files" in capsys.readouterr().out


def test_options_that_do_not_go_together_are_refused(root, tmp_path):
    path = table(tmp_path, IMAGE, [(1, "images/0.jpg", "a")])
    with pytest.raises(ValueError, match="texts goes with"):
        make("image-text", path, root, texts="x.json")
    with pytest.raises(ValueError, match="labels goes with"):
        make("image-text", path, root, labels="x.json")
    with pytest.raises(ValueError, match="task 'images': choose one of image-text, audio-text"):
        make("images", path, root)


def test_keys_of_different_names_differ_and_are_accepted():
    names = ["a b", "a_b", "a.b", "a/b", "a%2Fb", "__a", "_a", "é", "-"]
    keys = [shard_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert not any("." in key or "/" in key or key.startswith("__") for key in keys)


def test_an_item_refuses_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"video")
    with pytest.raises(ValueError, match=r"a.mp4: as audio a file named \*.flac, \*.wav, .* is accepted"):
        Item("a", (("audio", tmp_path / "a.mp4"),)).fields()
