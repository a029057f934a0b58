"""COCO captions, by Karpathy's split (the one of published retrieval scores) or by COCO's own.

    python -m data_recipes.coco --root COCO --out data/coco [--variant karpathy|2014|2017]

reads ``dataset_coco.json`` (karpathy: its training images are those of ``train`` and ``restval``) or
``annotations/captions_{train,val}{2014,2017}.json``, and images in ``train2014/``, ``val2014/`` …, which may lie in
``images/``.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_recipes.corpora import Corpus, Job, Part, entry, read_json, run, spoken
from onepeace_lightning.data.items import Item, shard_key

LICENSE = "captions: CC BY 4.0; pictures: Flickr's terms of use, each under its owner's licence"
SOURCE = "https://cocodataset.org"

CORPORA = {
    "karpathy": Corpus(
        "COCO captions, Karpathy's split",
        f"{SOURCE}; split: https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        LICENSE,
        "image-captions",
        {"train": (113_287,), "val": (5_000,), "test": (5_000,)},
    ),
    "2014": Corpus("COCO captions 2014", SOURCE, LICENSE, "image-captions", {"train": (82_783,), "val": (40_504,)}),
    "2017": Corpus("COCO captions 2017", SOURCE, LICENSE, "image-captions", {"train": (118_287,), "val": (5_000,)}),
}

KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def read_split(job: Job) -> Part:
    """Images of a split with all their captions."""
    return Part(_karpathy(job) if job.variant == "karpathy" else _official(job))


def picture_folder(job: Job, name: str) -> Path:
    """COCO's folder of that name (train2014 …): below the root, its ``images/``, or the folder given with --media."""
    if job.media is not None:
        below = job.media / name
        return below if below.is_dir() else job.folder()
    return job.folder(name, f"images/{name}")


def _karpathy(job: Job) -> list[Item]:
    path = job.file("dataset_coco.json", "karpathy/dataset_coco.json", "annotations/dataset_coco.json")
    items = []
    for number, record in enumerate(entry(read_json(path), "images", list, path)):
        place = f"{path}, image {number}"
        if entry(record, "split", str, place) not in KARPATHY_SPLITS[job.split]:
            continue
        folder = picture_folder(job, entry(record, "filepath", str, place))
        file = folder / entry(record, "filename", str, place)
        captions = [entry(sentence, "raw", str, place) for sentence in entry(record, "sentences", list, place)]
        items.append(
            Item(shard_key(entry(record, "cocoid", int, place)), (("image", file),), None, spoken(captions, place))
        )
    return items


def _official(job: Job) -> list[Item]:
    name = f"captions_{job.split}{job.variant}.json"
    path = job.file(f"annotations/{name}", name)
    folder = picture_folder(job, f"{job.split}{job.variant}")
    content = read_json(path)
    captions: dict[int, list[str]] = defaultdict(list)
    for number, record in enumerate(entry(content, "annotations", list, path)):
        place = f"{path}, annotation {number}"
        captions[entry(record, "image_id", int, place)].append(entry(record, "caption", str, place))
    items = []
    for number, record in enumerate(entry(content, "images", list, path)):
        place = f"{path}, image {number}"
        image_id = entry(record, "id", int, place)
        file = folder / entry(record, "file_name", str, place)
        items.append(Item(shard_key(image_id), (("image", file),), None, spoken(captions[image_id], place)))
    return items


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("coco", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
