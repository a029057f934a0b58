"""FSD50K: Freesound clips with one or several of 200 classes.

    python -m data_recipes.fsd50k --root FSD50K --out data/fsd50k

reads ``FSD50K.ground_truth/{dev,eval,vocabulary}.csv``, ``FSD50K.dev_audio/`` and ``FSD50K.eval_audio/``. The column
``split`` of dev.csv says which clips are train and which val; eval becomes test.
"""

from collections.abc import Sequence

from data_recipes.corpora import Corpus, Job, Part, read_csv, run
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "fsd50k": Corpus(
        "FSD50K",
        "https://zenodo.org/records/4060432",
        "CC BY 4.0 as a whole; each clip under its own licence (CC0, CC BY, CC BY-NC or CC Sampling+)",
        "audio-label",
        {"train": (36_796,), "val": (4_170,), "test": (10_231,)},
    )
}


def read_split(job: Job) -> Part:
    """Clips of a split with their classes, in the order of the vocabulary."""
    truth = "FSD50K.ground_truth"
    vocabulary = {
        row["name"]: row["name"].replace("_", " ")
        for _, row in read_csv(job.file(f"{truth}/vocabulary.csv"), ("index", "name", "mid"), header=False)
    }
    part = "eval" if job.split == "test" else "dev"
    folder = job.folder(f"FSD50K.{part}_audio")
    folder = folder / f"FSD50K.{part}_audio" if (folder / f"FSD50K.{part}_audio").is_dir() else folder
    path = job.file(f"{truth}/{part}.csv")
    items = []
    for place, row in read_csv(path, ("fname", "labels", "mids", *(["split"] if part == "dev" else []))):
        names = row["labels"].split(",")
        if unknown := [name for name in names if name not in vocabulary]:
            raise ValueError(f"{place}: {', '.join(map(repr, unknown))} is not in vocabulary.csv")
        if part == "dev" and row["split"] not in ("train", "val"):
            raise ValueError(f"{place}: split {row['split']!r} is neither train nor val")
        if part == "eval" or row["split"] == job.split:
            labels = [vocabulary[name] for name in names]
            items.append(
                Item(shard_key(row["fname"]), (("audio", folder / f"{row['fname']}.wav"),), None, {"labels": labels})
            )
    return Part(items, {"classes": list(vocabulary.values())})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("fsd50k", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
