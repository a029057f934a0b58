"""COCO's and LVIS's instances: boxes and masks of 80 and of 1,203 classes.

    python -m data_recipes.coco_detection --root COCO --out data/coco_detection [--variant coco|lvis]

reads ``annotations/instances_{train,val}2017.json`` (coco) or ``lvis_v1_{train,val}.json`` (lvis), and images in
``train2017/`` and ``val2017/``, which may lie in ``images/``. Polygons and run lengths become compressed run lengths.
Boxes are cut at the image's edge; an instance whose box has no extent is left out and counted (``about.no_extent``).

LVIS says of each image only which classes were looked for. That is kept in each sample's ``json`` (``absent``, and
``not_exhaustive`` for classes of which not every instance is marked), but COCO's metric does not know of it.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faster_coco_eval.core import mask as mask_api

from data_recipes.coco import LICENSE as COCO_LICENSE
from data_recipes.coco import picture_folder
from data_recipes.corpora import Corpus, Job, Part, distinct, entry, read_json, run
from onepeace_lightning.data.instances import Rle
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "coco": Corpus(
        "COCO instances 2017",
        "https://cocodataset.org",
        COCO_LICENSE.replace("captions", "annotations"),
        "image-boxes",
        {"train": (118_287,), "val": (5_000,)},
    ),
    "lvis": Corpus(
        "LVIS v1",
        "https://www.lvisdataset.org",
        COCO_LICENSE.replace("captions", "annotations"),
        "image-boxes",
        {"train": (100_170,), "val": (19_809,)},
    ),
}


def read_split(job: Job) -> Part:
    """Images of a split with their instances, also those that have none."""
    name = f"instances_{job.split}2017.json" if job.variant == "coco" else f"lvis_v1_{job.split}.json"
    path = job.file(f"annotations/{name}", name)
    content = read_json(path)
    names: dict[str, str] = {}
    for number, record in enumerate(entry(content, "categories", list, path)):
        place = f"{path}, category {number}"
        names[str(entry(record, "id", int, place))] = entry(record, "name", str, place)
    names = distinct(names)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, record in enumerate(entry(content, "annotations", list, path)):
        place = f"{path}, annotation {number}"
        category = entry(record, "category_id", int, place)
        if str(category) not in names:
            raise ValueError(f"{place}: category_id {category} is none of the {len(names)} categories")
        found[entry(record, "image_id", int, place)].append({**record, "label": names[str(category)], "place": place})
    items, no_extent = [], 0
    for number, record in enumerate(entry(content, "images", list, path)):
        place = f"{path}, image {number}"
        image_id = entry(record, "id", int, place)
        size = entry(record, "height", int, place), entry(record, "width", int, place)
        instances = [_instance(annotation, size) for annotation in found[image_id]]
        kept = [one for one in instances if one is not None]
        no_extent += len(instances) - len(kept)
        facts: dict[str, Any] = {"instances": kept}
        for ours, theirs in (("absent", "neg_category_ids"), ("not_exhaustive", "not_exhaustive_category_ids")):
            if theirs in record:
                facts[ours] = [names[str(category)] for category in record[theirs]]
        items.append(Item(shard_key(image_id), (("image", _file(job, record, place)),), None, facts))
    return Part(items, {"classes": list(names.values()), "no_extent": no_extent})


def _file(job: Job, record: Mapping[str, Any], place: str) -> Path:
    """An image's file; LVIS takes COCO's images from either folder, and says which in their addresses."""
    if "file_name" in record:
        return picture_folder(job, f"{job.split}2017") / entry(record, "file_name", str, place)
    *_, folder, name = entry(record, "coco_url", str, place).split("/")
    return picture_folder(job, folder) / name


def _instance(record: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any] | None:
    """An instance as its sample's ``json`` has it, its mask still as published; None where its box has no extent."""
    place = record["place"]
    box = entry(record, "bbox", list, place)
    if len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise ValueError(f"{place}: bbox is {box}; four numbers x, y, width, height are expected")
    left, top, width, height = box
    x0, y0, x1, y1 = max(0.0, left), max(0.0, top), min(left + width, size[1]), min(top + height, size[0])
    if not (x0 < x1 and y0 < y1):
        return None
    return {
        "label": record["label"],
        "box": [round(value, 2) for value in (x0, y0, x1, y1)],
        "mask": entry(record, "segmentation", (list, dict), place),
        "crowd": bool(record.get("iscrowd", 0)),
        "area": entry(record, "area", (int, float), place),
        "size": size,
        "place": place,
    }


def fields(item: Item) -> dict[str, bytes]:
    """An item's bytes, masks run-length encoded.

    Raises:
        ValueError: a mask is neither polygons nor run lengths.
    """
    facts = dict(item.facts or {})
    facts["instances"] = [
        {
            **{key: one[key] for key in ("label", "box", "crowd", "area")},
            "mask": run_lengths(one["mask"], one["size"], one["place"]),
        }
        for one in facts["instances"]
    ]
    (_, image), *_ = item.files
    return {image.suffix[1:].lower(): image.read_bytes(), "json": json.dumps(facts, ensure_ascii=False).encode()}


def run_lengths(segmentation: list[list[float]] | dict[str, Any], size: tuple[int, int], place: str) -> Rle:
    """Compressed run lengths of a mask that is given as polygons, as a list of run lengths, or as it should be.

    Args:
        segmentation: as COCO and LVIS publish it.
        size: rows and columns of the image.
        place: where it is, for messages.

    Raises:
        ValueError: it is none of these, or of another image's size.
    """
    rows, columns = size
    try:
        if isinstance(segmentation, list):
            encoded = mask_api.merge(mask_api.frPyObjects(segmentation, rows, columns))
        elif isinstance(segmentation["counts"], list):
            encoded = mask_api.frPyObjects(segmentation, rows, columns)
        else:
            encoded = dict(segmentation)
        mask_api.decode(encoded)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{place}: the segmentation {str(segmentation)[:80]} is neither polygons [[x, y, …], …] nor run lengths"
            f" ({error})"
        ) from error
    if list(encoded["size"]) != [rows, columns]:
        raise ValueError(f"{place}: the mask is of {encoded['size']} rows and columns, the image of {[rows, columns]}")
    counts = encoded["counts"]
    return {"size": [rows, columns], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("coco_detection", CORPORA, read_split, arguments, fields=fields)


if __name__ == "__main__":
    main()
