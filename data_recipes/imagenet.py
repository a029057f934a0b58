"""ImageNet: images in 1 000 classes (1k, ILSVRC 2012), or in all some 21 000 (21k).

    python -m data_recipes.imagenet --root IMAGENET --out data/imagenet [--variant 1k|21k]

reads ``train/<wnid>/*.JPEG`` and ``val/``, of 1k also below ``ILSVRC/Data/CLS-LOC/``, of 21k also
``imagenet21k_train/`` and ``imagenet21k_val/``. Validation images of 1k lie in folders like the training ones, or
flat with ``LOC_val_solution.csv`` or the development kit (``ILSVRC2012_devkit_t12/``). Names of the classes come from
``LOC_synset_mapping.txt``, ``synset_words.txt``, ``words.txt`` or the kit. The classes of 1k are those of that file,
the classes of 21k are the training folders, in the order of their WordNet ids.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from data_recipes.corpora import Corpus, Job, Part, distinct, read_csv, run
from onepeace_lightning.data.items import Item, shard_key

SOURCE = "https://www.image-net.org"
LICENSE = "ImageNet's terms of access: research and education only, not for commercial use"

CORPORA = {
    "1k": Corpus(
        "ImageNet-1k (ILSVRC 2012)", SOURCE, LICENSE, "image-label", {"train": (1_281_167,), "val": (50_000,)}
    ),
    # The releases of autumn 2011 and winter 2021; a validation part is everybody's own.
    "21k": Corpus(
        "ImageNet-21k",
        SOURCE,
        LICENSE,
        "image-label",
        {"train": (14_197_122, 13_153_500), "val": ()},
        optional=("val",),
    ),
}

_KIT = "ILSVRC2012_devkit_t12/data"
_FOLDERS = {
    "1k": ("{}", "ILSVRC/Data/CLS-LOC/{}"),
    "21k": ("{}", "imagenet21k_{}"),
}


def read_split(job: Job) -> Part:
    """Images of a split with their class."""
    names = _names(job)
    folder = _folder(job, job.split)
    if job.variant == "21k":
        names = {wnid: _name(names, wnid, job) for wnid in _subfolders(_folder(job, "train"))}
    classes = distinct(names)
    labels = {wnid: {"labels": [name]} for wnid, name in classes.items()}  # one object for all images of a class
    items = []
    for wnid, file in _pictures(job, folder):
        if wnid not in labels:
            raise ValueError(f"{file}: {wnid!r} is none of the {len(labels)} classes, such as {next(iter(labels))}")
        stem = Path(file).stem
        unique = stem if stem.startswith((wnid, "ILSVRC2012_")) else f"{wnid}_{stem}"
        items.append(Item(shard_key(unique), (("image", Path(file)),), None, labels[wnid]))
    return Part(items, {"classes": list(classes.values()), "wnids": list(classes)})


def _folder(job: Job, split: str) -> Path:
    if job.media is not None:
        return Job(job.media, None, split, job.variant).folder(split)
    return job.folder(*(name.format(split) for name in _FOLDERS[job.variant]))


def _pictures(job: Job, folder: Path) -> Iterator[tuple[str, str]]:
    """WordNet id and path of every image of a split."""
    if subfolders := _subfolders(folder):
        for wnid in subfolders:
            for picture in sorted(os.scandir(folder / wnid), key=lambda file: file.name):
                yield wnid, picture.path
        return
    truth = _truth(job)
    for picture in sorted(os.scandir(folder), key=lambda file: file.name):
        stem = Path(picture.name).stem
        if stem not in truth:
            raise ValueError(f"{picture.path}: the ground truth has no class for it")
        yield truth[stem], picture.path


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _truth(job: Job) -> dict[str, str]:
    """Validation image to WordNet id, where the images lie flat."""
    path = job.file("LOC_val_solution.csv", f"{_KIT}/ILSVRC2012_validation_ground_truth.txt")
    if path.suffix == ".csv":
        # "wnid x0 y0 x1 y1 …", boxes of objects of one class
        rows = read_csv(path, ("ImageId", "PredictionString"))
        return {row["ImageId"]: row["PredictionString"].split()[0] for _, row in rows}
    wnids = {number: wnid for number, wnid, _ in _synsets(job.file(f"{_KIT}/meta.mat"))}
    lines = path.read_text(encoding="ascii").split()
    if unknown := [line for line in lines if not line.isdigit() or int(line) not in wnids]:
        raise ValueError(f"{path}: {unknown[0]!r} is no class number of meta.mat")
    return {f"ILSVRC2012_val_{number:08d}": wnids[int(line)] for number, line in enumerate(lines, 1)}


def _names(job: Job) -> dict[str, str]:
    """WordNet id to the words for it."""
    path = job.file("LOC_synset_mapping.txt", "synset_words.txt", "words.txt", f"{_KIT}/meta.mat")
    if path.suffix == ".mat":
        return {wnid: words for _, wnid, words in sorted(_synsets(path), key=lambda synset: synset[1])}
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        wnid, _, words = line.replace("\t", " ", 1).partition(" ")
        if not (wnid.startswith("n") and wnid[1:].isdigit() and words):
            raise ValueError(f"{path}, line {number}: {line!r} is not 'wnid words', such as 'n01440764 tench'")
        names[wnid] = words.strip()
    return dict(sorted(names.items()))


def _name(names: Mapping[str, str], wnid: str, job: Job) -> str:
    if wnid not in names:
        raise ValueError(f"{_folder(job, 'train') / wnid}: the file of class names does not have {wnid}")
    return names[wnid]


@cache
def _synsets(path: Path) -> list[tuple[int, str, str]]:
    """Class number, WordNet id and words of the development kit's leaves (its inner synsets have children)."""
    try:
        synsets: Any = loadmat(path, squeeze_me=True)["synsets"]
        return [
            (int(synset["ILSVRC2012_ID"]), str(synset["WNID"]), str(synset["words"]))
            for synset in synsets
            if not int(synset["num_children"])
        ]
    except (KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{path} is not the development kit's meta.mat: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("imagenet", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
