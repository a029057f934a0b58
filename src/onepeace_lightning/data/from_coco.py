"""Shards of boxes and masks from a JSON file in COCO's layout, which LVIS and most labelling tools write too."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faster_coco_eval.core import mask as mask_api

from onepeace_lightning.data.instances import Rle
from onepeace_lightning.data.items import Item, present, shard_key, write_items

DATA_TYPE = "image-boxes"
FileOf = Callable[[Mapping[str, Any], str], Path]
"""The file of an image, from its record and from where that stands in the JSON file."""


def from_coco(
    annotations: str,
    *,
    root: str,
    out: str,
    split: str = "train",
    max_missing: float = 0.0,
    samples_per_shard: int = 1000,
    source: str | None = None,
    license: str = "not stated",
) -> None:
    """Make the shards of one split from a JSON file in COCO's layout, in ``out/split/image-boxes``.

    The file holds ``images`` (id, file_name, width, height), ``annotations`` (image_id, category_id, bbox [x, y, width,
    height], segmentation, area and perhaps iscrowd) and ``categories`` (id, name). All splits must list the same
    categories in the same order. Boxes are cut at the image's edge; an instance whose box has no extent is left out.

    Args:
        annotations: the JSON file.
        root: folder that the images' file names are relative to.
        out: data set folder.
        split: name of the split that the file holds, e.g. train, val or test.
        max_missing: the greatest fraction of images whose files may be missing; they are left out.
        samples_per_shard: samples in each shard.
        source: where the data is from, for the manifest; the file's name if None.
        license: the data's licence, for the manifest.

    Raises:
        ValueError: an entry of the file is missing or cannot be used, or images are missing.
    """
    path = Path(annotations)
    items, about = read_coco(path, lambda record, place: Path(root) / entry(record, "file_name", str, place))
    there = present(items, split, max_missing)
    folder = Path(out) / split / DATA_TYPE
    missing = len(items) - len(there)
    made = write_items(
        folder,
        there,
        DATA_TYPE,
        source=source or path.name,
        license=license,
        about={"split": split, "table": path.name, "missing": missing, **about},
        samples_per_shard=samples_per_shard,
        read=fields,
    )
    left_out = f", {missing} left out for missing files" if missing else ""
    print(f"{folder}: {made.samples} samples of {made.data_type}{left_out}")


def read_coco(path: Path, file_of: FileOf) -> tuple[list[Item], dict[str, Any]]:
    """Images with their instances, also those that have none; and what the manifest says of them.

    ``fields`` makes an item's bytes. LVIS's lists of classes that were looked for are kept as ``absent``, those of
    which not every instance is marked as ``not_exhaustive``.

    Args:
        path: the JSON file.
        file_of: finds an image's file.

    Raises:
        ValueError: the file is no JSON, or an entry is missing or of another kind; it is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    names = _names(content, path)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, record in enumerate(entry(content, "annotations", list, path)):
        place = f"{path}, annotation {number}"
        category = entry(record, "category_id", int, place)
        if category not in names:
            raise ValueError(f"{place}: category_id {category} is none of the {len(names)} categories")
        found[entry(record, "image_id", int, place)].append({**record, "label": names[category], "place": place})
    items, no_extent = [], 0
    for number, record in enumerate(entry(content, "images", list, path)):
        place = f"{path}, image {number}"
        image_id = entry(record, "id", int, place)
        size = entry(record, "height", int, place), entry(record, "width", int, place)
        instances = [_instance(annotation, size) for annotation in found.pop(image_id, [])]
        kept = [one for one in instances if one is not None]
        no_extent += len(instances) - len(kept)
        facts: dict[str, Any] = {"instances": kept}
        for ours, theirs in (("absent", "neg_category_ids"), ("not_exhaustive", "not_exhaustive_category_ids")):
            if theirs in record:
                facts[ours] = [names[category] for category in record[theirs]]
        items.append(Item(shard_key(image_id), (("image", file_of(record, place)),), None, facts))
    if found:
        raise ValueError(f"{path}: no image has the id {next(iter(found))}, which annotations name as image_id")
    return items, {"classes": list(names.values()), "no_extent": no_extent}


def entry(record: Any, name: str, kind: type | tuple[type, ...], place: object) -> Any:
    """An entry of a record.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{place}: {name!r} is {repr(value)[:80]}; expected: {kinds}")
    return value


def _names(content: Any, path: Path) -> dict[int, str]:
    """Category id to class name, with the id added where several have one name."""
    names: dict[int, str] = {}
    for number, record in enumerate(entry(content, "categories", list, path)):
        place = f"{path}, category {number}"
        names[entry(record, "id", int, place)] = entry(record, "name", str, place)
    counts = Counter(names.values())
    return {number: name if counts[name] == 1 else f"{name} ({number})" for number, name in names.items()}


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
        "box": [x0, y0, x1, y1],
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
    return Item(item.key, item.files, item.text, facts).fields()


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
            f" ({str(error)[:80]})"
        ) from error
    if list(encoded["size"]) != [rows, columns]:
        raise ValueError(f"{place}: the mask is of {encoded['size']} rows and columns, the image of {[rows, columns]}")
    counts = encoded["counts"]
    return {"size": [rows, columns], "counts": counts.decode() if isinstance(counts, bytes) else counts}
