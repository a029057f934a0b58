"""VQAv2: questions about COCO's images with ten people's answers.

    python -m data_recipes.vqav2 --root VQA --out data/vqav2 [--media COCO] [--variant vqav2|vqav2-vg]

reads ``v2_OpenEnded_mscoco_{train2014,val2014}_questions.json``, ``v2_mscoco_{train2014,val2014}_annotations.json`` and
images in ``train2014/`` and ``val2014/``. (The answers to the test questions are not published.)

The vocabulary is built from train and val together; all answers that were given are stored, also those outside it.
The key of a sample is its question_id.

``vqav2-vg`` is what published fine-tuning learned from: train, most of val, and Visual Genome's questions whose answer
is in the vocabulary; what is left of val validates. It also reads ``question_answers.json``, ``image_data.json`` and
images in ``VG_100K/`` and ``VG_100K_2/``, all in ``visual_genome/``. Which part of val the authors kept back is not
known: here it is the questions about one in forty of its images, drawn by their ids, and Visual Genome has none about
the same images. (The authors' own split: ``onepeace shards from-tsv --task vqa`` with their tables.)
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from data_recipes.coco import picture_folder
from data_recipes.corpora import Corpus, Job, Part, entry, read_json, run
from data_recipes.vqa_answers import normalise, scores, vocabulary
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "vqav2": Corpus(
        "VQAv2",
        "https://visualqa.org",
        "questions and answers: CC BY 4.0; pictures: Flickr's terms of use, each under its owner's licence",
        "image-question",
        {"train": (443_757,), "val": (214_354,)},
    ),
    "vqav2-vg": Corpus(
        "VQAv2 and Visual Genome",
        "https://visualqa.org; https://homes.cs.washington.edu/~ranjay/visualgenome",
        "questions and answers: CC BY 4.0; pictures: Flickr's terms of use, each under its owner's licence",
        "image-question",
        {"train": (), "val": ()},
    ),
}

YEARS = {"train": "train2014", "val": "val2014"}
ANSWERS = 3_129


ONE_IN = 40
"""Of so many of val's images one is kept back by ``vqav2-vg``."""


def read_split(job: Job) -> Part:
    """Questions of a split with how right each answer is."""
    answers = _answers(*(job.file(f"v2_mscoco_{year}_annotations.json") for year in YEARS.values()))
    if job.variant == "vqav2":
        return Part([item for _, item in _questions(job, job.split)], {"answers": answers})
    rest = [item for picture, item in _questions(job, "val") if kept_back(picture)]
    if job.split == "val":
        return Part(rest, {"answers": answers})
    most = [item for picture, item in _questions(job, "val") if not kept_back(picture)]
    train = [item for _, item in _questions(job, "train")]
    return Part([*train, *most, *_visual_genome(job, set(answers))], {"answers": answers})


def kept_back(picture: int) -> bool:
    """Whether an image of val is kept back to validate on."""
    return int(hashlib.sha256(str(picture).encode()).hexdigest(), 16) % ONE_IN == 0


def _visual_genome(job: Job, answers: set[str]) -> list[Item]:
    folder = job.root / "visual_genome"
    pictures = {}
    path = job.file("visual_genome/image_data.json")
    for number, record in enumerate(read_json(path)):
        place = f"{path}, image {number}"
        if not kept_back(record.get("coco_id") or -1):
            file = "/".join(entry(record, "url", str, place).split("/")[-2:])
            pictures[entry(record, "image_id", int, place)] = folder / file
    items = []
    path = job.file("visual_genome/question_answers.json")
    for number, record in enumerate(read_json(path)):
        for asked in entry(record, "qas", list, f"{path}, image {number}"):
            place = f"{path}, image {number}"
            answer, picture = normalise(entry(asked, "answer", str, place)), entry(asked, "image_id", int, place)
            if answer in answers and picture in pictures:
                key = f"vg{entry(asked, 'qa_id', int, place):09d}"
                question = entry(asked, "question", str, place)
                items.append(Item(key, (("image", pictures[picture]),), question, {"answers": {answer: 1.0}}))
    return items


def _questions(job: Job, split: str) -> list[tuple[int, Item]]:
    """Questions of one of VQAv2's own splits, each with its image's id."""
    year = YEARS[split]
    path = job.file(f"v2_OpenEnded_mscoco_{year}_questions.json")
    annotations = job.file(f"v2_mscoco_{year}_annotations.json")
    given = _annotations(annotations)
    folder = picture_folder(job, year)
    items = []
    for number, record in enumerate(entry(read_json(path), "questions", list, path)):
        place = f"{path}, question {number}"
        question, picture = entry(record, "question_id", int, place), entry(record, "image_id", int, place)
        if question not in given:
            raise ValueError(f"{annotations} has no annotation of question {question}")
        people = entry(given[question], "answers", list, place)
        right = scores(entry(one, "answer", str, place) for one in people)
        file = folder / f"COCO_{year}_{picture:012d}.jpg"
        text = entry(record, "question", str, place)
        items.append((picture, Item(shard_key(question), (("image", file),), text, {"answers": right})))
    return items


@cache
def _annotations(path: Path) -> dict[int, Any]:
    """Question id to annotation."""
    return {entry(one, "question_id", int, path): one for one in entry(read_json(path), "annotations", list, path)}


@cache
def _answers(*paths: Path) -> list[str]:
    answers = vocabulary(
        entry(one, "multiple_choice_answer", str, path) for path in paths for one in _annotations(path).values()
    )
    if len(answers) != ANSWERS:
        print(f"warning: the vocabulary has {len(answers)} answers, {ANSWERS} are published")
    return answers


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("vqav2", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
