"""Every recipe of a published corpus, on a miniature in that corpus's layout."""

import importlib
import io
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_recipes import corpora, vqav2
from data_recipes.refcoco import read_references
from data_recipes.vqa_answers import normalise, scores, vocabulary
from onepeace_lightning.data.instances import decode_masks
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.shards import read_shard
from onepeace_lightning.modalities.audio_files import decode_audio
from onepeace_lightning.modalities.image import ImageModality
from tests.data_recipes import miniatures

# recipe, variant, how to write its miniature, its splits' sizes, an annotation file, a media file
CASES = {
    "coco": ("coco", None, miniatures.coco, {"train": 3, "val": 1, "test": 2}, "dataset_coco.json",
             "val2014/COCO_val2014_000000000003.jpg"),
    "coco-2014": ("coco", "2014", miniatures.coco, {"train": 2, "val": 4}, "annotations/captions_val2014.json",
                  "train2014/COCO_train2014_000000000002.jpg"),
    "coco-2017": ("coco", "2017", miniatures.coco2017, {"train": 1, "val": 1}, "annotations/captions_train2017.json",
                  "images/val2017/000000000002.jpg"),
    "coco_detection": ("coco_detection", None, miniatures.coco_instances, {"train": 2, "val": 1},
                       "annotations/instances_train2017.json", "val2017/000000000003.jpg"),
    "lvis": ("coco_detection", "lvis", miniatures.lvis, {"train": 1, "val": 1}, "lvis_v1_val.json",
             "train2017/000000000002.jpg"),
    "flickr30k": ("flickr30k", None, miniatures.flickr30k, {"train": 2, "val": 1, "test": 1}, "dataset_flickr30k.json",
                  "flickr30k_images/10002456.jpg"),
    "flickr30k-all": ("flickr30k", "all", miniatures.flickr30k, {"train": 4}, "results.csv",
                      "flickr30k_images/10002456.jpg"),
    "audiocaps": ("audiocaps", None, miniatures.audiocaps, {"train": 3, "val": 1, "test": 1}, "val.csv",
                  "audio/train/Y__d-e.flac"),
    "clotho": ("clotho", None, miniatures.clotho, {"train": 3, "val": 1, "test": 2}, "clotho_captions_evaluation.csv",
               "evaluation/Surf.wav"),
    "macs": ("macs", None, miniatures.macs, {"train": 3}, "MACS.yaml",
             "TAU-urban-acoustic-scenes-2019-development/audio/airport-barcelona-0-1-a.wav"),
    "esc50": ("esc50", None, miniatures.esc50, {"test": 10}, "meta/esc50.csv", "audio/2-100032-A-0.wav"),
    "esc50-fold": ("esc50", "fold1", miniatures.esc50, {"train": 8, "test": 2}, "meta/esc50.csv",
                   "audio/3-100032-A-0.wav"),
    "imagenet": ("imagenet", None, miniatures.imagenet, {"train": 6, "val": 3}, "LOC_synset_mapping.txt", None),
    "imagenet-21k": ("imagenet", "21k", miniatures.imagenet21k, {"train": 4}, "words.txt", None),
    "ade20k": ("ade20k", None, miniatures.ade20k, {"train": 2, "val": 1}, "objectInfo150.txt",
               "annotations/training/ADE_train_00000002.png"),
    "fsd50k": ("fsd50k", None, miniatures.fsd50k, {"train": 2, "val": 1, "test": 1}, "FSD50K.ground_truth/dev.csv",
               "FSD50K.dev_audio/7.wav"),
    "vggsound": ("vggsound", None, miniatures.vggsound, {"train": 2, "test": 1}, "vggsound.csv",
                 "audio/train/--0PQM4-hqg_000030.wav"),
    "avqa": ("avqa", None, miniatures.avqa, {"train": 2, "val": 2}, "val_qa.json", "audio/-HG3Omg_89c_000001.wav"),
    "vggsound-av": ("vggsound", "vggsound_av", miniatures.vggsound, {"train": 2, "test": 1}, "vggsound.csv",
                    "frames/--0PQM4-hqg_000030.jpg"),
    "avqa-av": ("avqa", "avqa_av", miniatures.avqa, {"train": 2, "val": 2}, "train_qa.json",
                "frames/-HG3Omg_89c_000001.jpg"),
    "refcoco": ("refcoco", None, miniatures.refcoco, {"train": 2, "val": 1, "testA": 1, "testB": 1},
                "refcoco/refs(unc).p", "images/mscoco/images/train2014/COCO_train2014_000000000003.jpg"),
    "refcoco+": ("refcoco", "refcoco+", miniatures.refcoco, {"train": 2, "val": 1, "testA": 1, "testB": 1},
                 "refcoco+/instances.json", "images/mscoco/images/train2014/COCO_train2014_000000000001.jpg"),
    "refcocog": ("refcoco", "refcocog", miniatures.refcoco, {"train": 2, "val": 1, "test": 1}, "refcocog/refs(umd).p",
                 "images/mscoco/images/train2014/COCO_train2014_000000000001.jpg"),
    "vqav2": ("vqav2", None, miniatures.vqav2, {"train": 10, "val": 1}, "v2_mscoco_val2014_annotations.json",
              "train2014/COCO_train2014_000000000002.jpg"),
    "nlvr2": ("nlvr2", None, miniatures.nlvr2, {"train": 2, "val": 1, "test": 1}, "data/test1.json",
              "images/train/37/train-10171-0-img1.png"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget_files():
    """Recipes remember files that they read; tests write them anew in folders of their own."""
    yield
    corpora._files.cache_clear()


def run(name, root, out, *options):
    recipe, variant, *_ = CASES[name]
    chosen = ["--variant", variant] if variant else []
    importlib.import_module(f"data_recipes.{recipe}").main(["--root", str(root), "--out", str(out), *chosen, *options])


@pytest.fixture
def made(tmp_path):
    """Write a corpus's miniature, run its recipe, and give its folder and its splits' samples by key."""

    def make(name, *options, write=None):
        root, out = tmp_path / "root", tmp_path / "out"
        (write or CASES[name][2])(root)
        run(name, root, out, *options)
        return root, {folder.parent.name: samples(folder) for folder in sorted(out.glob("*/*"))}

    return make


def samples(folder: Path):
    manifest = read_manifest(folder)
    found = [sample for shard in manifest.shards for _, sample in read_shard(manifest, shard, range(shard.samples))]
    by_key = {sample["__key__"]: sample for sample in found}
    assert len(by_key) == len(found) == manifest.samples
    return by_key


def facts(sample):
    return json.loads(sample["json"])


def about(tmp_path, split):
    return read_manifest(next((tmp_path / "out" / split).iterdir())).about


@pytest.mark.parametrize("name", CASES)
def test_a_miniature_becomes_splits_that_share_no_sample_and_can_be_decoded(name, made, tmp_path, capsys):
    _, splits = made(name)
    assert {split: len(found) for split, found in splits.items()} == CASES[name][3]
    keys = [key for found in splits.values() for key in found]
    assert len(set(keys)) == len(keys)
    for split, found in splits.items():
        manifest = read_manifest(next((tmp_path / "out" / split).iterdir()))
        assert manifest.license
        assert manifest.source.startswith("https://")
        assert manifest.about["listed"] == len(found)
        for sample in found.values():
            for ending, data in sample.items():
                if ending.rpartition(".")[2] in ImageModality.extensions:
                    ImageModality().decode(data)
                elif ending in ("wav", "flac", "ogg"):
                    decode_audio(data)
    assert re.search(r"warning: \w+: \d+ samples? (is|are) listed, [\d, or]+ are published", capsys.readouterr().out)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[5]])
def test_a_missing_media_file_is_named_or_left_out_when_that_is_accepted(name, tmp_path):
    root = tmp_path / "root"
    CASES[name][2](root)
    file = root / CASES[name][5]
    file.unlink()
    with pytest.raises(SystemExit, match=r"files of \d+ of \d+ samples are missing") as caught:
        run(name, root, tmp_path / "out", "--max-missing", "0")
    assert {"audiocaps": "__d-e"}.get(name, file.stem) in str(caught.value)
    assert "max_missing" in str(caught.value)
    assert not (tmp_path / "out").exists()
    if len(CASES[name][3]) == 1 or min(CASES[name][3].values()) > 1:
        run(name, root, tmp_path / "out", "--max-missing", "0.9")
        assert sum(about(tmp_path, split)["missing"] for split in CASES[name][3]) >= 1


@pytest.mark.parametrize("name", CASES)
def test_an_annotation_file_that_is_missing_or_of_another_layout_is_named(name, tmp_path):
    root = tmp_path / "root"
    CASES[name][2](root)
    file = root / CASES[name][4]
    file.write_text("{}\n")
    with pytest.raises(SystemExit, match=re.escape(file.name)):
        run(name, root, tmp_path / "out")
    file.unlink()
    with pytest.raises(SystemExit, match=re.escape(f"{file}")):
        run(name, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_media_may_lie_elsewhere_and_must_be_there(tmp_path):
    miniatures.coco(tmp_path / "root")
    (tmp_path / "pictures").mkdir()
    for part in ("train2014", "val2014"):
        (tmp_path / "root" / part).rename(tmp_path / "pictures" / part)
    with pytest.raises(SystemExit, match=r"no folder .*train2014.*--media"):
        run("coco", tmp_path / "root", tmp_path / "out")
    run("coco", tmp_path / "root", tmp_path / "out", "--media", str(tmp_path / "pictures"))
    assert len(samples(tmp_path / "out/train/image-captions")) == 3
    with pytest.raises(SystemExit, match=r"no folder .*nowhere"):
        run("coco", tmp_path / "root", tmp_path / "out2", "--media", str(tmp_path / "nowhere"))


def test_splits_are_chosen_and_unknown_ones_refused(tmp_path):
    miniatures.coco(tmp_path / "root")
    run("coco", tmp_path / "root", tmp_path / "out", "--splits", "val")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val"]
    with pytest.raises(SystemExit, match="has no split test; it has train, val"):
        run("coco-2014", tmp_path / "root", tmp_path / "out", "--splits", "test")


def test_a_folder_in_use_is_refused_unless_overwritten(tmp_path):
    miniatures.macs(tmp_path / "root")
    run("macs", tmp_path / "root", tmp_path / "out")
    with pytest.raises(SystemExit, match="is not empty"):
        run("macs", tmp_path / "root", tmp_path / "out")
    run("macs", tmp_path / "root", tmp_path / "out", "--overwrite", "--samples-per-shard", "2")
    assert len(read_manifest(tmp_path / "out/train/audio-captions").shards) == 2


def test_a_sample_listed_twice_or_in_two_splits_is_refused(tmp_path):
    root = tmp_path / "root"
    miniatures.coco(root)
    content = json.loads((root / "dataset_coco.json").read_text())
    content["images"][3]["cocoid"] = content["images"][0]["cocoid"]
    miniatures.write_json(root / "dataset_coco.json", content)
    with pytest.raises(SystemExit, match="'1' is in the splits train and val"):
        run("coco", root, tmp_path / "out")
    content["images"][1]["cocoid"] = 1
    miniatures.write_json(root / "dataset_coco.json", content)
    with pytest.raises(SystemExit, match="train: two samples have the key '1'"):
        run("coco", root, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "coco",
            "dataset_coco.json",
            '"cocoid": 4',
            '"id": 4',
            "dataset_coco.json, image 3: 'cocoid' is None; expected: int",
        ),
        ("clotho", "clotho_captions_validation.csv", ",bell.wav heard 5", "", "line 2: 5 values instead of 6"),
        ("audiocaps", "train.csv", "youtube_id", "ytid", "train.csv has no column youtube_id; its header is"),
        (
            "macs",
            "MACS.yaml",
            "filename: airport-barcelona-0-2",
            "name: airport",
            "MACS.yaml, file 2: 'filename' is None",
        ),
        ("esc50", "meta/esc50.csv", ",5,1,", ",6,1,", "esc50.csv, line 10: fold '6'"),
        (
            "vggsound",
            "vggsound.csv",
            ",train",
            ",dev",
            "vggsound.csv, line 2: '30' must be a start .* 'dev' train or test",
        ),
        ("vqav2", "v2_mscoco_val2014_annotations.json", '"question_id": 200', '"question_id": 201', "of question 200"),
        ("refcoco", "refcoco/instances.json", '"id": 102', '"id": 999', "no picture or annotation with the id 102"),
        (
            "refcoco",
            "refcoco/instances.json",
            "6.6, 3.0",
            "-6, 3.0",
            "the box .* of annotation 101 is not in its picture",
        ),
        ("imagenet", "LOC_synset_mapping.txt", "n02012849 ", "crane ", "line 2: 'crane crane' is not 'wnid words'"),
        ("flickr30k-all", "results.csv", "10002456.jpg| 2|", "10002456.jpg 2", "line 9: .* is not 'picture| number|"),
    ],
)
def test_an_entry_that_does_not_fit_is_named_with_its_place(name, file, old, new, message, tmp_path):
    root = tmp_path / "root"
    CASES[name][2](root)
    text = (root / file).read_text(encoding="utf-8")
    assert old in text
    (root / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(SystemExit, match=message):
        run(name, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_coco_keeps_every_caption_and_drops_blank_ones(made):
    _, splits = made("coco")
    assert set(splits["train"]) == {"1", "2", "3"}
    assert facts(splits["test"]["5"]) == {"captions": [f"Caption {letter} of 5." for letter in "abcde"]}


def test_coco_2017(made):
    assert facts(made("coco-2017")[1]["val"]["2"]) == {"captions": ["A cow."]}


def test_flickrs_broken_line_is_read_like_the_others(made):
    _, splits = made("flickr30k-all")
    captions = facts(splits["train"]["2199200615"])["captions"]
    assert captions == [*(f"A dog runs , {letter} 3 ." for letter in "abcd"), "A dog runs across the grass ."]


def test_audiocaps_joins_the_captions_of_a_clip_and_knows_the_names_of_sounds(made):
    _, splits = made("audiocaps")
    assert facts(splits["val"]["xyz-70"]) == {"captions": [f"Caption {index}" for index in range(5)]}
    assert {key: next(e for e in ("wav", "flac", "ogg") if e in s) for key, s in splits["train"].items()} == {
        "abc-30": "wav", "%5F_d-e-0": "flac", "fgh-10": "ogg",
    }  # fmt: skip


def test_clothos_names_stay_distinct(made):
    root, splits = made("clotho")
    blade = splits["train"]["development-Blade Big%2Ewav"]
    assert blade["wav"] == (root / "development/Blade Big.wav").read_bytes()
    assert facts(blade)["captions"][4] == "Blade Big.wav heard 5 times"
    assert "development-Blade_Big%2Ewav" in splits["train"]


def test_macs_has_one_caption_of_each_annotator(made):
    _, splits = made("macs")
    assert sorted(len(facts(sample)["captions"]) for sample in splits["train"].values()) == [2, 3, 4]


def test_esc50_orders_its_classes_by_number_and_holds_out_a_fold(made, tmp_path):
    _, splits = made("esc50-fold")
    assert about(tmp_path, "test")["classes"] == about(tmp_path, "train")["classes"] == ["dog", "chirping birds"]
    assert {key.partition("-")[0] for key in splits["test"]} == {"1"}
    assert facts(splits["test"]["1-100032-A-1%2Ewav"]) == {"labels": ["chirping birds"]}


@pytest.mark.parametrize(
    ("top", "flat"), [("", ""), ("ILSVRC/Data/CLS-LOC", "csv"), ("", "csv"), ("ILSVRC/Data/CLS-LOC", "kit")]
)
def test_imagenets_validation_classes_come_from_folders_kaggle_or_the_kit(top, flat, made, tmp_path):
    _, splits = made("imagenet", write=lambda root: miniatures.imagenet(root, top, flat))
    names = ["tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)"]
    assert about(tmp_path, "val")["classes"] == about(tmp_path, "train")["classes"] == names
    assert about(tmp_path, "val")["wnids"] == list(miniatures.WNIDS)
    assert [facts(splits["val"][f"ILSVRC2012_val_0000000{n}"])["labels"] for n in (1, 2, 3)] == [[n] for n in names]
    assert facts(splits["train"]["n02012849_1"]) == {"labels": [names[1]]}


def test_imagenet_21k_has_the_classes_of_its_training_folders(made, tmp_path):
    _, splits = made("imagenet-21k", "--splits", "train", "val")
    assert about(tmp_path, "val")["classes"] == ["tench, Tinca tinca", "crane"]
    assert set(splits["train"]) == {"n01440764_7", "n01440764_1", "n02012849_7", "n02012849_1"}
    assert facts(splits["val"]["n02012849_8"]) == {"labels": ["crane"]}


def test_imagenet_refuses_a_folder_that_is_no_class(tmp_path):
    miniatures.imagenet(tmp_path / "root")
    miniatures.picture(tmp_path / "root/train/n99999999/n99999999_1.JPEG")
    with pytest.raises(SystemExit, match="'n99999999' is none of the 3 classes"):
        run("imagenet", tmp_path / "root", tmp_path / "out")


def test_ade20ks_masks_are_shifted(made, tmp_path):
    _, splits = made("ade20k")
    mask = np.asarray(Image.open(io.BytesIO(splits["val"]["ADE_val_00000001"]["mask.png"])))
    assert mask.dtype == np.uint8
    assert (mask[:2] == 0).all()
    assert (mask[2:4] == 149).all()
    assert (mask[4:] == 255).all()
    assert about(tmp_path, "val")["classes"][149] == "class 150, thing"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (8, 5)), r"\(8, 5\) pixels, mode L; a grey mask of \(8, 6\) pixels"),
        (Image.new("RGB", (8, 6)), "mode RGB"),
        (Image.new("L", (8, 6), 151), "holds the index 151; 150 is the greatest"),
    ],
)
def test_ade20k_refuses_a_mask_that_does_not_fit(mask, message, tmp_path):
    miniatures.ade20k(tmp_path / "root")
    mask.save(tmp_path / "root/annotations/training/ADE_train_00000001.png")
    with pytest.raises(SystemExit, match=f"ADE_train_00000001.png: .*{message}"):
        run("ade20k", tmp_path / "root", tmp_path / "out")


def test_fsd50k_has_several_classes_a_clip_in_the_vocabularys_order(made, tmp_path):
    _, splits = made("fsd50k")
    assert about(tmp_path, "test")["classes"] == ["Accelerating and revving", "Bark", "Animal"]
    assert facts(splits["train"]["64760"]) == {"labels": ["Bark", "Animal"]}
    assert set(splits["val"]) == {"16399"}


def test_fsd50k_refuses_a_label_that_is_not_in_its_vocabulary(tmp_path):
    miniatures.fsd50k(tmp_path / "root")
    rows = [("fname", "labels", "mids", "split"), (7, "Bark,Purr", "x", "train")]
    miniatures.write_csv(tmp_path / "root/FSD50K.ground_truth/dev.csv", rows)
    with pytest.raises(SystemExit, match=r"dev.csv, line 2: 'Purr' is not in vocabulary.csv"):
        run("fsd50k", tmp_path / "root", tmp_path / "out")


def test_vggsounds_classes_are_those_of_both_splits(made, tmp_path):
    _, splits = made("vggsound")
    assert about(tmp_path, "test")["classes"] == ["male speech, man speaking", "people marching", "waterfall burbling"]
    assert facts(splits["train"]["%5F_underscored_000000"]) == {"labels": ["male speech, man speaking"]}


def test_sounds_in_videos_alone_are_refused_with_what_to_do(tmp_path):
    miniatures.vggsound(tmp_path / "root")
    for file in (tmp_path / "root/audio").rglob("*.wav"):
        file.rename(file.with_suffix(".mp4"))
    with pytest.raises(SystemExit, match=r"holds no audio.*ffmpeg"):
        run("vggsound", tmp_path / "root", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [("vggsound-av", "%5F_underscored_000000", {"jpg", "wav", "json"}), ("avqa-av", "train-1", {"jpg", "wav", "txt"})],
)
def test_a_clip_has_a_frame_beside_its_sound(made, name, key, expected):
    _, splits = made(name)
    assert expected <= set(splits["train"][key])


def test_avqa(made, tmp_path):
    root, splits = made("avqa")
    sample = splits["val"]["val-1"]
    assert sample["txt"] == b"What sounds 1?"
    assert facts(sample) == {"choices": ["bell", "drum", "dog", "rain"], "answer": 2}
    questions = json.loads((root / "val_qa.json").read_text())
    miniatures.write_json(root / "val_qa.json", [questions[0] | {"answer": 4}])
    with pytest.raises(SystemExit, match=r"val_qa.json, question 0: answer 4 is none of its 4 choices"):
        run("avqa", root, tmp_path / "other")


def test_refcocos_expressions_have_boxes_within_the_picture(made):
    _, splits = made("refcoco")
    assert set(splits["train"]) == {"1-10", "1-11"}
    sample = splits["train"]["1-11"]
    assert sample["txt"] == b"left one 1"
    assert facts(sample) == {"box": [1.5, 2.0, 8.0, 5.0]}


class Hostile:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_asks_for_anything_but_plain_data_is_refused_unrun(tmp_path, capsys):
    for content in ([Hostile()], [Path("a")], [{1, 2}], {"not": "a list"}):
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(content, protocol=0))
        with pytest.raises(ValueError, match=r"refs\(unc\).p"):
            read_references(tmp_path / "refs(unc).p")
    assert "code ran" not in capsys.readouterr().out
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([{"sent": "x" * 99}])[:50])
    with pytest.raises(ValueError, match="is not a pickle of plain data"):
        read_references(tmp_path / "refs(unc).p")


def test_a_pickle_of_python_2_is_read(tmp_path):
    # pickle.dumps([{'sent': 'left', 'n': 3}], protocol=0) of Python 2
    (tmp_path / "r.p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'left'\np3\nsS'n'\np4\nI3\nsa.")
    assert read_references(tmp_path / "r.p") == [{"sent": "left", "n": 3}]


def test_vqav2_scores_every_answer_and_learns_the_frequent_ones(made, tmp_path, capsys):
    _, splits = made("vqav2")
    assert about(tmp_path, "train")["answers"] == about(tmp_path, "val")["answers"] == ["net"]
    assert facts(splits["val"]["200"]) == {"answers": {"net": 1.0, "2": 1.0, "blue green": 0.3}}
    assert facts(splits["train"]["110"]) == {"answers": {"dogs": 1.0}}
    assert "warning: the vocabulary has 1 answers, 3129 are published" in capsys.readouterr().out


def test_vqav2_with_visual_genome_learns_from_most_of_val(tmp_path):
    """The picture 105 of val is kept back, and with it what Visual Genome asks about it."""
    root = tmp_path / "raw"
    miniatures.vqav2(root)
    for name, key in (("v2_OpenEnded_mscoco_val2014_questions", "questions"),
                      ("v2_mscoco_val2014_annotations", "annotations")):  # fmt: skip
        path = root / f"{name}.json"
        content = json.loads(path.read_text())
        content[key].append(content[key][0] | {"question_id": 201, "image_id": 105})
        path.write_text(json.dumps(content))
    miniatures.picture(root / "val2014/COCO_val2014_000000000105.jpg")
    for number in (1, 2):
        miniatures.picture(root / f"visual_genome/VG_100K_2/{number}.jpg")
    images = [
        {"image_id": n, "url": f"https://x/VG_100K_2/{n}.jpg", "coco_id": coco} for n, coco in ((1, None), (2, 105))
    ]
    asked = [
        {"image_id": n, "qas": [{"qa_id": 10 * n + i, "image_id": n, "question": "What?", "answer": answer}
                                for i, answer in enumerate(("A net.", "Clouds."))]}
        for n in (1, 2)
    ]  # fmt: skip
    (root / "visual_genome/image_data.json").write_text(json.dumps(images))
    (root / "visual_genome/question_answers.json").write_text(json.dumps(asked))
    assert vqav2.kept_back(105)
    assert not vqav2.kept_back(3)
    vqav2.main(["--root", str(root), "--out", str(tmp_path / "out"), "--variant", "vqav2-vg"])
    found = {}
    for split in ("train", "val"):
        manifest = read_manifest(tmp_path / "out" / split / "image-question")
        assert manifest.about["answers"] == ["net"]
        samples = (s for shard in manifest.shards for _, s in read_shard(manifest, shard, range(shard.samples)))
        found[split] = {sample["__key__"]: sample for sample in samples}
    assert list(found["val"]) == ["201"]
    assert set(found["train"]) == {*map(str, range(100, 109)), "110", "200", "vg000000010"}
    assert json.loads(found["train"]["vg000000010"]["json"])["answers"] == {"net": 1.0}


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"),
        ("a red  hat", "red hat"),
        ("the one on the left", "1 on left"),
        ("none", "0"),
        ("t-shirt", "t shirt"),
        ("red, white", "red white"),
        ("1,000", "1000"),
        ("2.00", "2.00"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("st. patrick's day", "st patrick's day"),
        ("at&t", "at&t"),
        ("12:35", "12:35"),
        ("1/4", "1 4"),
        ("a", ""),
    ],
)
def test_answers_are_normalised_and_a_normal_form_stays(answer, normal):
    assert normalise(answer) == normal
    assert normalise(normal) == normal


def test_the_vocabulary_has_answers_of_nine_questions_and_more():
    questions = ["No"] * 9 + ["yes."] * 12 + ["blue"] * 8 + ["cat"] * 9
    assert vocabulary(questions) == ["yes", "cat", "no"]


def test_an_answer_scores_what_leaving_one_of_ten_people_out_gives_on_average():
    for given in range(1, 11):
        expected = np.mean([min(1, (given - (person < given)) / 3) for person in range(10)])
        assert scores(["x"] * given + ["y"] * (10 - given))["x"] == pytest.approx(expected)


def test_nlvr2_pairs_pictures_whatever_they_are_encoded_as(made, tmp_path):
    root, splits = made("nlvr2")
    sample = splits["train"]["train-10171-0-1"]
    assert sample["png"] == (root / "images/train/37/train-10171-0-img0.png").read_bytes()
    assert sample["second.png"] == (root / "images/train/37/train-10171-0-img1.png").read_bytes()
    assert (sample["txt"], facts(sample)) == (b"There are 1 dogs.", {"labels": ["False"]})
    assert about(tmp_path, "val")["classes"] == ["True", "False"]
    miniatures.write(root / "data/dev.json", '{"identifier": "dev-850-0-0", "sentence": "x", "label": "Maybe"}\n')
    with pytest.raises(SystemExit, match=r"dev.json, line 1: label 'Maybe' is neither True nor False"):
        run("nlvr2", root, tmp_path / "other")


def test_no_warning_where_the_counts_are_the_published_ones(tmp_path, capsys):
    corpus = corpora.Corpus("Mini", "https://example.org", "CC0", "audio-captions", {"train": (99, 3)})
    miniatures.macs(tmp_path / "root")
    from data_recipes.macs import read_split

    corpora.run(
        "macs", {"mini": corpus}, read_split, ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    )
    printed = capsys.readouterr().out
    assert "warning" not in printed
    assert "99 or 3" in printed


def test_instances_become_run_lengths_whatever_they_were(made, tmp_path):
    _, splits = made("coco_detection")
    dog, crowd = facts(splits["train"]["1"])["instances"]
    assert (dog["label"], dog["box"], dog["area"], dog["crowd"]) == ("dog", [1, 1, 5, 4], 12.0, False)
    assert (crowd["label"], crowd["box"], crowd["crowd"]) == ("toothbrush", [6.5, 0, 8, 6], True)
    masks = decode_masks([dog["mask"], crowd["mask"]], (6, 8))
    expected = np.zeros((2, 6, 8), bool)
    expected[0, 1:4, 1:5] = expected[1, :, 6:] = True
    assert np.array_equal(masks, expected)
    assert facts(splits["train"]["2"]) == {"instances": []}
    assert about(tmp_path, "train")["classes"] == ["dog", "toothbrush"]
    assert about(tmp_path, "train")["no_extent"] == 1


def test_lvis_keeps_what_was_looked_for_and_takes_images_from_either_folder(made, tmp_path):
    _, splits = made("lvis")
    assert facts(splits["val"]["2"])["absent"] == ["crane (2)"]
    assert facts(splits["val"]["2"])["not_exhaustive"] == ["crane (1)"]
    assert facts(splits["val"]["2"])["instances"][0]["label"] == "crane (1)"
    assert about(tmp_path, "val")["classes"] == ["crane (1)", "crane (2)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": [["x", 1, 2, 3, 4, 5]]}, "neither polygons"),
        ({"segmentation": {"counts": [9], "size": [3, 3]}}, r"of \[3, 3\] rows and columns, the image of \[6, 8\]"),
        ({"segmentation": {"counts": "7230", "size": [6, 8]}}, "neither polygons"),
        ({"bbox": [1, 2, 3]}, "four numbers x, y, width, height"),
        ({"category_id": 5}, "category_id 5 is none of the 2 categories"),
        ({"area": None}, "'area' is None"),
    ],
)
def test_broken_instances_are_named(made, tmp_path, change, message):
    def write(root):
        miniatures.coco_instances(root)
        path = root / "annotations/instances_train2017.json"
        content = json.loads(path.read_text())
        content["annotations"][0] |= change
        path.write_text(json.dumps(content))

    with pytest.raises(SystemExit, match=message) as stopped:
        made("coco_detection", write=write)
    assert "annotation 0" in str(stopped.value)
