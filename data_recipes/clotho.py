"""Clotho: sounds of 15 to 30 seconds with five captions each.

    python -m data_recipes.clotho --root CLOTHO --out data/clotho

reads ``clotho_captions_{development,validation,evaluation}.csv`` and the folders of the unpacked archives
(``development/`` or ``clotho_audio_development/`` …). Development becomes train, validation val, evaluation test.
"""

from collections.abc import Sequence

from data_recipes.corpora import Corpus, Job, Part, read_csv, run, spoken
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "clotho": Corpus(
        "Clotho 2.1",
        "https://zenodo.org/records/4783391",
        "captions: Tampere University's licence, non-commercial with attribution; sounds: Freesound's, each its own",
        "audio-captions",
        {"train": (3_839,), "val": (1_045,), "test": (1_045,)},
    )
}

NAMES = {"train": "development", "val": "validation", "test": "evaluation"}
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_split(job: Job) -> Part:
    """Sounds of a split with their five captions."""
    name = NAMES[job.split]
    path = job.file(f"clotho_captions_{name}.csv")
    folder = job.folder(name, f"clotho_audio_{name}", f"clotho_audio_{name}/{name}", f"clotho_audio_files/{name}")
    folder = folder / name if (folder / name).is_dir() else folder
    return Part(
        [
            Item(
                shard_key(name, row["file_name"]),
                (("audio", folder / row["file_name"]),),
                None,
                spoken((row[caption] for caption in CAPTIONS), place),
            )
            for place, row in read_csv(path, ("file_name", *CAPTIONS))
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("clotho", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
