"""Flickr30K, by Karpathy's split (the one of published retrieval scores), or all of it for training.

    python -m data_recipes.flickr30k --root FLICKR30K --out data/flickr30k [--variant karpathy|all]

reads ``dataset_flickr30k.json`` (karpathy), or ``results.csv`` with its columns separated by ``|`` (all), and images
in ``flickr30k-images/``, ``flickr30k_images/`` or ``images/``.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_recipes.corpora import Corpus, Job, Part, entry, read_json, run, spoken
from onepeace_lightning.data.items import Item, shard_key

SOURCE = "https://shannon.cs.illinois.edu/DenotationGraph"
LICENSE = "research and education only; pictures: Flickr's terms of use, each under its owner's licence"

CORPORA = {
    "karpathy": Corpus(
        "Flickr30K, Karpathy's split",
        f"{SOURCE}; split: https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        LICENSE,
        "image-captions",
        {"train": (29_000,), "val": (1_014,), "test": (1_000,)},
    ),
    "all": Corpus("Flickr30K, all pictures", SOURCE, LICENSE, "image-captions", {"train": (31_783,)}),
}

_HEADER = ["image_name", "comment_number", "comment"]
# One line of the file that is published lacks its second separator: "NAME.jpg| 4   A dog runs across the grass ."
_LINE = re.compile(r"(?P<name>[^|]+)\|\s*\d+\s*(?:\||\s)(?P<caption>.*)")


def read_split(job: Job) -> Part:
    """Images of a split with all their captions."""
    captions = _karpathy(job) if job.variant == "karpathy" else _results(job)
    folder = job.folder("flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "images")
    return Part(
        [
            Item(shard_key(Path(name).stem), (("image", folder / name),), None, spoken(listed, name))
            for name, listed in captions.items()
        ]
    )


def _karpathy(job: Job) -> dict[str, list[str]]:
    path = job.file("dataset_flickr30k.json", "karpathy/dataset_flickr30k.json")
    captions = {}
    for number, record in enumerate(entry(read_json(path), "images", list, path)):
        place = f"{path}, image {number}"
        if entry(record, "split", str, place) == job.split:
            sentences = entry(record, "sentences", list, place)
            name = entry(record, "filename", str, place)
            captions[name] = [entry(sentence, "raw", str, place) for sentence in sentences]
    return captions


def _results(job: Job) -> dict[str, list[str]]:
    path = job.file("results.csv", "flickr30k_images/results.csv")
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    if [name.strip() for name in lines[0].split("|")] != _HEADER:
        raise ValueError(f"{path}: the first line is {lines[0]!r}; expected {'| '.join(_HEADER)}")
    captions = defaultdict(list)
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        if (match := _LINE.fullmatch(line.rstrip("\r"))) is None:
            raise ValueError(f"{path}, line {number}: {line!r} is not 'picture| number| caption'")
        captions[match["name"].strip()].append(match["caption"])
    return captions


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("flickr30k", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
