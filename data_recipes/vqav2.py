"""VQAv2: questions about COCO's pictures with ten people's answers.

    python -m data_recipes.vqav2 --root VQA --out data/vqav2 [--media COCO]

reads ``v2_OpenEnded_mscoco_{train2014,val2014}_questions.json``, ``v2_mscoco_{train2014,val2014}_annotations.json`` and
pictures in ``train2014/`` and ``val2014/``. (The answers to the test questions are not published.)

The vocabulary is built from train and val together; all answers that were given are stored, also those outside it.
The key of a sample is its question_id.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from data_recipes.coco import picture_folder
from data_recipes.corpora import Corpus, Job, Part, entry, read_json, run
from data_recipes.vqa_answers import scores, vocabulary
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "vqav2": Corpus(
        "VQAv2",
        "https://visualqa.org",
        "questions and answers: CC BY 4.0; pictures: Flickr's terms of use, each under its owner's licence",
        "image-question",
        {"train": (443_757,), "val": (214_354,)},
    )
}

YEARS = {"train": "train2014", "val": "val2014"}
ANSWERS = 3_129


def read_split(job: Job) -> Part:
    """Questions of a split with how right each answer is."""
    year = YEARS[job.split]
    path = job.file(f"v2_OpenEnded_mscoco_{year}_questions.json")
    annotations = {split: job.file(f"v2_mscoco_{YEARS[split]}_annotations.json") for split in YEARS}
    given = _annotations(annotations[job.split])
    folder = picture_folder(job, year)
    items = []
    for number, record in enumerate(entry(read_json(path), "questions", list, path)):
        place = f"{path}, question {number}"
        question, picture = entry(record, "question_id", int, place), entry(record, "image_id", int, place)
        if question not in given:
            raise ValueError(f"{annotations[job.split]} has no annotation of question {question}")
        people = entry(given[question], "answers", list, place)
        right = scores(entry(one, "answer", str, place) for one in people)
        file = folder / f"COCO_{year}_{picture:012d}.jpg"
        items.append(
            Item(shard_key(question), (("image", file),), entry(record, "question", str, place), {"answers": right})
        )
    return Part(items, {"answers": _answers(*annotations.values())})


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
