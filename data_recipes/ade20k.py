"""ADE20K scene parsing (150 classes), as of the challenge of 2016.

    python -m data_recipes.ade20k --root ADEChallengeData2016 --out data/ade20k

reads ``objectInfo150.txt``, ``images/{training,validation}/*.jpg`` and ``annotations/{training,validation}/*.png``.
In the shards, class indices count from 0 and 255 is no class; in the corpus they count from 1 and 0 is no class.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_recipes.corpora import Corpus, Job, Part, read_csv, run
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "ade20k": Corpus(
        "ADE20K, challenge of 2016",
        "https://ade20k.csail.mit.edu",
        "annotations: BSD 3-clause; pictures: research and education only",
        "image-mask",
        {"train": (20_210,), "val": (2_000,)},
    )
}

NAMES = {"train": "training", "val": "validation"}
CLASSES = 150


def read_split(job: Job) -> Part:
    """Images of a split with their masks, for every image that is there."""
    info = job.file("objectInfo150.txt", "ADEChallengeData2016/objectInfo150.txt")
    classes = {row["Idx"]: row["Name"].strip() for _, row in read_csv(info, ("Idx", "Name"), delimiter="\t")}
    if list(classes) != [str(number) for number in range(1, CLASSES + 1)]:
        raise ValueError(f"{info}: the column Idx must count from 1 to {CLASSES}; it has {len(classes)} entries")
    top = job.media or info.parent
    below = Job(top, None, job.split, job.variant)
    pictures = below.folder(f"images/{NAMES[job.split]}")
    masks = below.folder(f"annotations/{NAMES[job.split]}")
    stems = sorted({file.stem for file in pictures.glob("*.jpg")} | {file.stem for file in masks.glob("*.png")})
    files = [(stem, (("image", pictures / f"{stem}.jpg"), ("mask", masks / f"{stem}.png"))) for stem in stems]
    return Part([Item(shard_key(stem), pair) for stem, pair in files], {"classes": list(classes.values())})


def fields(item: Item) -> dict[str, bytes]:
    """An item's bytes, with the class indices of the mask shifted.

    Raises:
        ValueError: the mask is no grey image of class indices of the image's size.
    """
    (_, picture), (_, mask) = item.files
    content = {picture.suffix[1:]: picture.read_bytes()}
    with Image.open(io.BytesIO(content["jpg"])) as image, Image.open(mask) as labels:
        if labels.size != image.size or labels.mode != "L":
            raise ValueError(
                f"{mask}: {labels.size} pixels, mode {labels.mode}; a grey mask of {image.size} pixels is expected"
            )
        indices = np.asarray(labels)
    if indices.max() > CLASSES:
        raise ValueError(f"{mask}: it holds the index {indices.max()}; {CLASSES} is the greatest")
    buffer = io.BytesIO()
    Image.fromarray(indices - np.uint8(1)).save(buffer, "PNG")  # 0 becomes 255
    return {**content, "mask.png": buffer.getvalue()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("ade20k", CORPORA, read_split, arguments, fields=fields)


if __name__ == "__main__":
    main()
