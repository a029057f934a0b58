"""COCO's and LVIS's instances: boxes and masks of 80 and of 1,203 classes.

    python -m data_recipes.coco_detection --root COCO --out data/coco_detection [--variant coco|lvis]

reads ``annotations/instances_{train,val}2017.json`` (coco) or ``lvis_v1_{train,val}.json`` (lvis), and images in
``train2017/`` and ``val2017/``, which may lie in ``images/``. Polygons and run lengths become compressed run lengths.
Boxes are cut at the image's edge; an instance whose box has no extent is left out and counted (``about.no_extent``).
One's own JSON file in COCO's layout is for ``onepeace shards from-coco``.

LVIS says of each image only which classes were looked for. That is kept in each sample's ``json`` (``absent``, and
``not_exhaustive`` for classes of which not every instance is marked), but COCO's metric does not know of it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_recipes.coco import LICENSE as COCO_LICENSE
from data_recipes.coco import picture_folder
from data_recipes.corpora import Corpus, Job, Part, run
from onepeace_lightning.data.from_coco import DATA_TYPE, entry, fields, read_coco

CORPORA = {
    "coco": Corpus(
        "COCO instances 2017",
        "https://cocodataset.org",
        COCO_LICENSE.replace("captions", "annotations"),
        DATA_TYPE,
        {"train": (118_287,), "val": (5_000,)},
    ),
    "lvis": Corpus(
        "LVIS v1",
        "https://www.lvisdataset.org",
        COCO_LICENSE.replace("captions", "annotations"),
        DATA_TYPE,
        {"train": (100_170,), "val": (19_809,)},
    ),
}


def read_split(job: Job) -> Part:
    """Images of a split with their instances, also those that have none."""
    name = f"instances_{job.split}2017.json" if job.variant == "coco" else f"lvis_v1_{job.split}.json"
    return Part(*read_coco(job.file(f"annotations/{name}", name), partial(_file, job)))


def _file(job: Job, record: Mapping[str, Any], place: str) -> Path:
    """An image's file; LVIS takes COCO's images from either folder, and says which in their addresses."""
    if "file_name" in record:
        return picture_folder(job, f"{job.split}2017") / entry(record, "file_name", str, place)
    *_, folder, name = entry(record, "coco_url", str, place).split("/")
    return picture_folder(job, folder) / name


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("coco_detection", CORPORA, read_split, arguments, fields=fields)


if __name__ == "__main__":
    main()
