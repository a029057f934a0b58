"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that point at one thing in an image of COCO's train2014.

    python -m data_recipes.refcoco --root REFER/data --out data/refcoco [--variant refcoco|refcoco+|refcocog]

reads ``refcoco/refs(unc).p``, ``refcoco+/refs(unc).p`` or ``refcocog/refs(umd).p``, ``instances.json`` beside it, and
images in ``train2014/`` (also in ``images/`` or ``images/mscoco/images/``). Every expression is a sample.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_recipes.corpora import Corpus, Job, Part, entry, read_json, run
from onepeace_lightning.data.items import Item, shard_key

SOURCE = "https://github.com/lichengunc/refer"
LICENSE = "pictures: Flickr's terms of use, each under its owner's licence; the expressions state none"

CORPORA = {
    "refcoco": Corpus(
        "RefCOCO, UNC's split",
        SOURCE,
        LICENSE,
        "image-box",
        {"train": (120_624,), "val": (10_834,), "testA": (5_657,), "testB": (5_095,)},
    ),
    "refcoco+": Corpus(
        "RefCOCO+, UNC's split",
        SOURCE,
        LICENSE,
        "image-box",
        {"train": (120_191,), "val": (10_758,), "testA": (5_726,), "testB": (4_889,)},
    ),
    "refcocog": Corpus(
        "RefCOCOg, UMD's split",
        SOURCE,
        LICENSE,
        "image-box",
        {"train": (80_512,), "val": (4_896,), "test": (9_602,)},
    ),
}

REFERENCES = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}


class _PlainUnpickler(pickle.Unpickler):
    """Reads a pickle of numbers, strings, lists and dicts, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain numbers, texts and lists are read")


def read_references(path: Path) -> list[Any]:
    """The list in a ``refs(…).p``.

    Raises:
        ValueError: the file is damaged, or is a pickle of anything but plain data.
    """
    try:
        with path.open("rb") as file:
            # Python 2 wrote it, so that its strings are bytes.
            content = _PlainUnpickler(file, encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path} is not a pickle of plain data: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}; a list of references is expected")
    return content


def read_split(job: Job) -> Part:
    """Expressions of a split with the box of what they mean."""
    path = job.file(f"{job.variant}/{REFERENCES[job.variant]}")
    instances = job.file(f"{job.variant}/instances.json")
    folder = job.folder("train2014", "images/train2014", "images/mscoco/images/train2014", "images/mscoco/train2014")
    folder = folder / "train2014" if (folder / "train2014").is_dir() else folder
    content = read_json(instances)
    pictures = {entry(one, "id", int, instances): one for one in entry(content, "images", list, instances)}
    things = {entry(one, "id", int, instances): one for one in entry(content, "annotations", list, instances)}
    items = []
    for number, record in enumerate(read_references(path)):
        place = f"{path}, reference {number}"
        if entry(record, "split", str, place) != job.split:
            continue
        thing = _of(things, entry(record, "ann_id", int, place), instances)
        picture = _of(pictures, entry(record, "image_id", int, place), instances)
        facts = {"box": _box(thing, picture, instances)}
        files = (("image", folder / entry(picture, "file_name", str, instances)),)
        for sentence in entry(record, "sentences", list, place):
            text, sentence_id = entry(sentence, "sent", str, place), entry(sentence, "sent_id", int, place)
            items.append(Item(shard_key(entry(record, "ref_id", int, place), sentence_id), files, text, facts))
    return Part(items)


def _of(records: dict[int, Any], number: int, path: Path) -> Any:
    if number not in records:
        raise ValueError(f"{path} has no picture or annotation with the id {number}")
    return records[number]


def _box(thing: Any, picture: Any, path: Path) -> list[float]:
    """Corners in pixels, within the image, of COCO's [left, top, width, height]."""
    left, top, width, height = (float(number) for number in entry(thing, "bbox", list, path))
    right, bottom = entry(picture, "width", int, path), entry(picture, "height", int, path)
    box = [max(left, 0.0), max(top, 0.0), min(left + width, float(right)), min(top + height, float(bottom))]
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"{path}: the box {thing['bbox']} of annotation {thing['id']} is not in its picture")
    return box


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("refcoco", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
