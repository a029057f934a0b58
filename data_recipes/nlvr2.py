"""NLVR2: statements about two images that are true or false.

    python -m data_recipes.nlvr2 --root NLVR2 --out data/nlvr2

reads ``data/{train,dev,test1}.json`` (a JSON object a line; also in ``nlvr2/data/``, as in the authors' repository) and
images in ``images/train/<directory>/``, ``images/dev/`` and ``images/test1/`` (or these folders below the one that
--media names). Dev becomes val, the public test set test1 test.
"""

import json
from collections.abc import Sequence

from data_recipes.corpora import Corpus, Job, Part, entry, run
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "nlvr2": Corpus(
        "NLVR2",
        "https://lil.nlp.cornell.edu/nlvr",
        "statements: CC BY 4.0; pictures: each its owner's copyright, for research",
        "image-pair",
        {"train": (86_373,), "val": (6_982,), "test": (6_967,)},
    )
}

NAMES = {"train": "train", "val": "dev", "test": "test1"}
CLASSES = ["True", "False"]
"""In the order of the original's class numbers."""


def read_split(job: Job) -> Part:
    """Statements of a split with both images."""
    name = NAMES[job.split]
    path = job.file(f"data/{name}.json", f"nlvr2/data/{name}.json", f"{name}.json")
    folder = job.folder("images")
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is not JSON: {error}") from error
        identifier = entry(record, "identifier", str, place)
        label = str(entry(record, "label", (str, bool), place))
        if label not in CLASSES:
            raise ValueError(f"{place}: label {label!r} is neither True nor False")
        pictures = folder / name
        if job.split == "train":
            pictures /= str(entry(record, "directory", (int, str), place))
        pair = identifier.rpartition("-")[0]  # split-set-pair-sentence, and a pair may have two sentences
        items.append(
            Item(
                shard_key(identifier),
                (("image", pictures / f"{pair}-img0.png"), ("second_image", pictures / f"{pair}-img1.png")),
                entry(record, "sentence", str, place),
                {"labels": [label]},
            )
        )
    return Part(items, {"classes": CLASSES})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("nlvr2", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
