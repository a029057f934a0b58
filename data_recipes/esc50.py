"""ESC-50: 2 000 sounds in 50 classes, all of them for zero-shot scores, or one fold against the other four.

    python -m data_recipes.esc50 --root ESC-50 --out data/esc50 [--variant all|fold1|…|fold5]

reads ``meta/esc50.csv`` and ``audio/``. ``all`` writes the split test with every sound; ``fold1`` writes the sounds of
fold 1 as test and the others as train.
"""

from collections.abc import Sequence

from data_recipes.corpora import Corpus, Job, Part, read_csv, run
from onepeace_lightning.data.items import Item, shard_key

SOURCE = "https://github.com/karolpiczak/ESC-50"
LICENSE = "CC BY-NC 3.0"
FOLDS = ("1", "2", "3", "4", "5")

CORPORA = {"all": Corpus("ESC-50", SOURCE, LICENSE, "audio-label", {"test": (2_000,)})} | {
    f"fold{fold}": Corpus(
        f"ESC-50, fold {fold} against the others",
        SOURCE,
        LICENSE,
        "audio-label",
        {"train": (1_600,), "test": (400,)},
    )
    for fold in FOLDS
}


def read_split(job: Job) -> Part:
    """Sounds of a split with their class, in the order of the classes' numbers."""
    path = job.file("meta/esc50.csv")
    folder = job.folder("audio")
    classes: dict[int, str] = {}
    items = []
    for place, row in read_csv(path, ("filename", "fold", "target", "category")):
        if row["fold"] not in FOLDS or not row["target"].isdigit():
            raise ValueError(
                f"{place}: fold {row['fold']!r} and target {row['target']!r} must be numbers, folds 1 to 5"
            )
        name = row["category"].replace("_", " ")
        if classes.setdefault(int(row["target"]), name) != name:
            raise ValueError(f"{place}: target {row['target']} is {name!r} here, above {classes[int(row['target'])]!r}")
        held_out = job.variant in ("all", f"fold{row['fold']}")
        if held_out == (job.split == "test"):
            items.append(
                Item(shard_key(row["filename"]), (("audio", folder / row["filename"]),), None, {"labels": [name]})
            )
    return Part(items, {"classes": [classes[number] for number in sorted(classes)]})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("esc50", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
