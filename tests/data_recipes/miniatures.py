"""Corpora of a few samples in the layouts in which the real ones are published."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import soundfile
import yaml
from PIL import Image
from scipy.io import savemat

WNIDS = ("n01440764", "n02012849", "n03126707")
WORDS = ("tench, Tinca tinca", "crane", "crane")


def picture(path: Path, size=(8, 6), colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour % 256, 90, 30)).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def sound(path: Path, hertz=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(400) * hertz / 1000), 16_000)


def write(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content):
    write(path, json.dumps(content))


def write_csv(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def coco(root: Path):
    """Six pictures in both layouts; of Karpathy's, one is restval."""
    records, official = [], {"train": ([], []), "val": ([], [])}
    splits = ("train", "train", "restval", "val", "test", "test")
    for number, split in enumerate(splits, 1):
        part = "train" if split == "train" else "val"
        name = f"COCO_{part}2014_{number:012d}.jpg"
        picture(root / f"{part}2014" / name, colour=number)
        captions = [f"Caption {letter} of {number}." for letter in "abcde"]
        sentences = [{"raw": caption, "tokens": caption.split(), "sentid": 0} for caption in captions]
        records.append(
            {"filepath": f"{part}2014", "filename": name, "cocoid": number, "split": split, "sentences": sentences}
        )
        images, annotations = official[part]
        images.append({"id": number, "file_name": name, "width": 8, "height": 6})
        annotations += [{"image_id": number, "id": 0, "caption": caption} for caption in captions]
    write_json(root / "dataset_coco.json", {"images": records, "dataset": "coco"})
    for part, (images, annotations) in official.items():
        content = {"info": {}, "images": images, "annotations": annotations}
        write_json(root / f"annotations/captions_{part}2014.json", content)


def coco2017(root: Path):
    for part, number in (("train", 1), ("val", 2)):
        picture(root / f"images/{part}2017/{number:012d}.jpg")
        images = [{"id": number, "file_name": f"{number:012d}.jpg"}]
        annotations = [{"image_id": number, "caption": " A cow.\n"}, {"image_id": number, "caption": "  "}]
        content = {"images": images, "annotations": annotations}
        write_json(root / f"annotations/captions_{part}2017.json", content)


def coco_instances(root: Path):
    """Two images and one, masks in each of COCO's forms, and an image without instances."""
    square = [[1, 1, 5, 1, 5, 4, 1, 4]]
    for part, numbers in (("train", (1, 2)), ("val", (3,))):
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 8, "height": 6} for n in numbers]
        for image in images:
            picture(root / f"{part}2017" / image["file_name"], colour=image["id"])
        common = {"image_id": numbers[0], "area": 12.0, "iscrowd": 0, "bbox": [1, 1, 4, 3]}
        annotations = [
            {**common, "id": 1, "category_id": 18, "segmentation": square},
            {**common, "id": 2, "category_id": 90, "iscrowd": 1, "bbox": [6.5, 0, 1.6, 6],
             "segmentation": {"counts": [36, 12], "size": [6, 8]}},
            {**common, "id": 3, "category_id": 18, "bbox": [2, 2, 3, 0], "segmentation": square},
        ]  # fmt: skip
        categories = [{"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / f"annotations/instances_{part}2017.json", content)


def lvis(root: Path):
    """Images of which COCO has one in its other split."""
    for part, folder, number in (("train", "train2017", 1), ("val", "train2017", 2)):
        picture(root / folder / f"{number:012d}.jpg", colour=number)
        image = {
            "id": number, "coco_url": f"http://images.cocodataset.org/{folder}/{number:012d}.jpg", "width": 8,
            "height": 6, "neg_category_ids": [2], "not_exhaustive_category_ids": [1],
        }  # fmt: skip
        annotation = {
            "image_id": number, "id": 7, "category_id": 1, "bbox": [1, 1, 4, 3], "area": 12.0,
            "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]],
        }  # fmt: skip
        categories = [{"id": 1, "name": "crane"}, {"id": 2, "name": "crane"}]
        content = {"images": [image], "annotations": [annotation], "categories": categories}
        write_json(root / f"lvis_v1_{part}.json", content)


def flickr30k(root: Path):
    """Four pictures in both layouts; the table has the published one's broken line."""
    names = ("1000092795.jpg", "10002456.jpg", "1000268201.jpg", "2199200615.jpg")
    images, lines = [], ["image_name| comment_number| comment"]
    for number, (name, split) in enumerate(zip(names, ("train", "train", "val", "test"), strict=True)):
        picture(root / "flickr30k_images" / name, colour=number)
        captions = [f"A dog runs , {letter} {number} ." for letter in "abcde"]
        images.append({"filename": name, "split": split, "sentences": [{"raw": text} for text in captions]})
        lines += [f"{name}| {index}| {text}" for index, text in enumerate(captions)]
    write_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    lines[-1] = "2199200615.jpg| 4   A dog runs across the grass ."
    write(root / "results.csv", "\n".join(lines) + "\n")


def audiocaps(root: Path):
    """Three training clips named in three ways, one clip of five captions each in val and test."""
    header = ("audiocap_id", "youtube_id", "start_time", "caption")
    train = [(1, "abc", 30, "Rain falls, hard"), (2, "__d-e", 0, "A dog barks"), (3, "fgh", 10, "A car")]
    for path in ("abc_30.wav", "train/Y__d-e.flac", "3.ogg", "val/xyz.wav", "test/uvw_20.wav"):
        sound(root / "audio" / path)
    write_csv(root / "train.csv", [header, *train])
    write_csv(root / "val.csv", [header, *[(10 + index, "xyz", 70, f"Caption {index}") for index in range(5)]])
    write_csv(root / "test.csv", [header, *[(20 + index, "uvw", 20, f"Caption {index}") for index in range(5)]])


def clotho(root: Path):
    """Names with blanks, dots and letters beyond ASCII, and two that would be one if blanks became underscores."""
    for part, names in (
        ("development", ("Blade Big.wav", "Blade_Big.wav", "rain v1.2 é.wav")),
        ("validation", ("bell.wav",)),
        ("evaluation", ("bell.wav", "Surf.wav")),
    ):
        rows = [("file_name", *(f"caption_{index}" for index in range(1, 6)))]
        for name in names:
            sound(root / part / name)
            rows.append((name, *(f"{name} heard {index} times" for index in range(1, 6))))
        write_csv(root / f"clotho_captions_{part}.csv", rows)


def macs(root: Path):
    files = []
    for number in range(3):
        name = f"airport-barcelona-0-{number}-a.wav"
        sound(root / "TAU-urban-acoustic-scenes-2019-development/audio" / name)
        annotations = [
            {"annotator_id": index, "sentence": f"people talk {index}", "tags": ["adults talking"]}
            for index in range(2 + number)
        ]
        files.append({"filename": name, "annotations": annotations})
    write(root / "MACS.yaml", yaml.safe_dump({"files": files}))


def esc50(root: Path):
    """Two classes in each of five folds; the classes' numbers are not in the order of their names."""
    rows = [("filename", "fold", "target", "category", "esc10", "src_file", "take")]
    for fold in range(1, 6):
        for target, category in ((1, "chirping_birds"), (0, "dog")):
            name = f"{fold}-100032-A-{target}.wav"
            sound(root / "audio" / name)
            rows.append((name, fold, target, category, "True", 100032, "A"))
    write_csv(root / "meta/esc50.csv", rows)


def imagenet(root: Path, top="", flat=""):
    """Three classes, two of one name. ``flat``: the validation pictures are, with "csv" or "kit" as ground truth."""
    for number, wnid in enumerate(WNIDS):
        for index in range(2):
            picture(root / top / f"train/{wnid}/{wnid}_{index}.JPEG", colour=number)
        name = f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        picture(root / top / "val" / ("" if flat else wnid) / name, colour=number)
    if flat == "kit":
        kit = root / "ILSVRC2012_devkit_t12/data"
        kinds = [("ILSVRC2012_ID", int), ("WNID", object), ("words", object), ("num_children", int)]
        # The kit's numbers are not in the order of the WordNet ids, and the last synset has children.
        rows = [(3, WNIDS[0], WORDS[0], 0), (1, WNIDS[1], WORDS[1], 0), (2, WNIDS[2], WORDS[2], 0)]
        kit.mkdir(parents=True)
        savemat(kit / "meta.mat", {"synsets": np.array([*rows, (4, "n00001740", "entity", 3)], kinds)})
        write(kit / "ILSVRC2012_validation_ground_truth.txt", "3\n1\n2\n")
        return
    lines = "".join(f"{wnid} {words}\n" for wnid, words in zip(WNIDS, WORDS, strict=True))
    write(root / "LOC_synset_mapping.txt", lines)
    if flat == "csv":
        solutions = [(f"ILSVRC2012_val_{number + 1:08d}", f"{wnid} 1 2 3 4 ") for number, wnid in enumerate(WNIDS)]
        write_csv(root / "LOC_val_solution.csv", [("ImageId", "PredictionString"), *solutions])


def imagenet21k(root: Path):
    """Two of the classes that words.txt lists; two pictures of one name in different folders."""
    for wnid in WNIDS[:2]:
        picture(root / f"imagenet21k_train/{wnid}/{wnid}_7.JPEG")
        picture(root / f"imagenet21k_train/{wnid}/1.jpg")
    picture(root / f"imagenet21k_val/{WNIDS[1]}/{WNIDS[1]}_8.JPEG")
    write(root / "words.txt", "".join(f"{wnid}\t{words}\n" for wnid, words in zip(WNIDS, WORDS, strict=True)))


def ade20k(root: Path):
    rows = [f"{number}\t0.1\t10\t1\tclass {number}, thing" for number in range(1, 151)]
    write(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows) + "\n")
    for part, kind, count in (("training", "train", 2), ("validation", "val", 1)):
        for number in range(1, count + 1):
            stem = f"ADE_{kind}_{number:08d}"
            picture(root / f"images/{part}/{stem}.jpg")
            mask = np.zeros((6, 8), np.uint8)
            mask[:2], mask[2:4] = 1, 150
            (root / f"annotations/{part}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / f"annotations/{part}/{stem}.png")


def fsd50k(root: Path):
    truth = root / "FSD50K.ground_truth"
    names = [(0, "Accelerating_and_revving", "/m/07q2z82"), (1, "Bark", "/m/05tny_"), (2, "Animal", "/m/0jbk")]
    write_csv(truth / "vocabulary.csv", names)
    dev = [
        (64760, "Bark,Animal", "x", "train"),
        (16399, "Animal", "x", "val"),
        (7, "Accelerating_and_revving", "x", "train"),
    ]
    write_csv(truth / "dev.csv", [("fname", "labels", "mids", "split"), *dev])
    write_csv(truth / "eval.csv", [("fname", "labels", "mids"), (37199, "Animal", "x")])
    for part, numbers in (("dev", (64760, 16399, 7)), ("eval", (37199,))):
        for number in numbers:
            sound(root / f"FSD50K.{part}_audio/{number}.wav")


def vggsound(root: Path):
    rows = [
        ("---g-f_I2yQ", 1, "people marching", "test"),
        ("--0PQM4-hqg", 30, "waterfall burbling", "train"),
        ("__underscored", 0, "male speech, man speaking", "train"),
    ]
    write_csv(root / "vggsound.csv", rows)
    for clip, start, _, split in rows:
        sound(root / f"audio/{split}/{clip}_{start:06d}.wav")
        picture(root / f"frames/{clip}_{start:06d}.jpg")


def avqa(root: Path):
    for split in ("train", "val"):
        questions = []
        for number in range(2):
            name = f"-HG3Omg_89c_{number:06d}"
            sound(root / "audio" / f"{name}.wav")
            picture(root / "frames" / f"{name}.jpg")
            question = {"id": number, "video_name": name, "video_id": number, "question_text": f"What sounds {number}?"}
            question |= {"multi_choice": ["bell", "drum", "dog", "rain"], "answer": 3 - number}
            questions.append(question | {"question_relation": "Both", "question_type": "Which"})
        write_json(root / f"{split}_qa.json", questions)


def refcoco(root: Path):
    """All three corpora: a reference of two expressions in train, one of one in each other split."""
    for name, file, others in (
        ("refcoco", "refs(unc).p", ("val", "testA", "testB")),
        ("refcoco+", "refs(unc).p", ("val", "testA", "testB")),
        ("refcocog", "refs(umd).p", ("val", "test")),
    ):
        references, images, annotations = [], [], []
        for number, split in enumerate(("train", *others), 1):
            picture(root / f"images/mscoco/images/train2014/COCO_train2014_{number:012d}.jpg", colour=number)
            picture_name = f"COCO_train2014_{number:012d}.jpg"
            images.append({"id": number, "file_name": picture_name, "width": 8, "height": 6})
            # COCO's boxes may reach a little over the border.
            annotations.append({"id": 100 + number, "image_id": number, "bbox": [1.5, 2.0, 6.6, 3.0]})
            sentences = [
                {"sent_id": 10 * number + index, "raw": f"LEFT One {index}", "sent": f"left one {index}", "tokens": []}
                for index in range(2 if split == "train" else 1)
            ]
            reference = {"ref_id": number, "ann_id": 100 + number, "image_id": number, "split": split}
            references.append(reference | {"sentences": sentences, "file_name": f"COCO_train2014_{number}_0.jpg"})
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / file).write_bytes(pickle.dumps(references, protocol=0))
        write_json(root / name / "instances.json", {"images": images, "annotations": annotations})


def vqav2(root: Path):
    """Nine training questions answered "net", one answered "Dogs."; one validation question with mixed answers."""

    def annotation(question, picture_number, answers):
        people = [{"answer": answer, "answer_id": index} for index, answer in enumerate(answers, 1)]
        most = max(answers, key=answers.count)
        fields = {"question_id": question, "image_id": picture_number, "answers": people}
        return fields | {"multiple_choice_answer": most, "answer_type": "other"}

    parts = {
        "train": [annotation(100 + n, 1, ["net"] * 10) for n in range(9)] + [annotation(110, 2, ["Dogs."] * 10)],
        "val": [annotation(200, 3, ["net"] * 4 + ["A  Net"] + ["two"] * 3 + ["2"] + ["blue, green"])],
    }
    for part, annotations in parts.items():
        questions = [
            {"question_id": one["question_id"], "image_id": one["image_id"], "question": "What is it?"}
            for one in annotations
        ]
        write_json(root / f"v2_OpenEnded_mscoco_{part}2014_questions.json", {"questions": questions})
        write_json(root / f"v2_mscoco_{part}2014_annotations.json", {"annotations": annotations})
        for one in annotations:
            picture(root / f"{part}2014/COCO_{part}2014_{one['image_id']:012d}.jpg")


def nlvr2(root: Path):
    """Two statements about one training pair, one pair each in dev and test1; one .png is a JPEG, as in the corpus."""
    for name, identifiers in (
        ("train", ("train-10171-0-0", "train-10171-0-1")),
        ("dev", ("dev-850-0-0",)),
        ("test1", ("test1-0-1-0",)),
    ):
        lines = []
        for number, identifier in enumerate(identifiers):
            folder = root / "images" / name / ("37" if name == "train" else "")
            for side in (0, 1):
                picture(folder / f"{identifier.rpartition('-')[0]}-img{side}.png", colour=100 * side)
            record = {
                "identifier": identifier,
                "sentence": f"There are {number} dogs.",
                "label": ["True", "False"][number],
            }
            lines.append(json.dumps(record | ({"directory": 37} if name == "train" else {})))
        write(root / f"data/{name}.json", "\n".join(lines) + "\n")
    Image.new("RGB", (5, 5)).save(root / "images/dev/dev-850-0-img1.png", "JPEG")
