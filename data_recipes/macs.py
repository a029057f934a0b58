"""MACS: soundscapes of airports, parks and squares with captions of several annotators; training only.

    python -m data_recipes.macs --root MACS --out data/macs

reads ``MACS.yaml`` and the sounds of TAU Urban Acoustic Scenes 2019, development set, in
``TAU-urban-acoustic-scenes-2019-development/audio/`` or ``audio/``.
"""

from collections.abc import Sequence

import yaml

from data_recipes.corpora import Corpus, Job, Part, entry, run, spoken
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "macs": Corpus(
        "MACS",
        "https://zenodo.org/records/5114771; sounds: https://zenodo.org/records/2589280",
        "Tampere University's licence, non-commercial with attribution, for captions and sounds each",
        "audio-captions",
        {"train": (3_930,)},
    )
}


def read_split(job: Job) -> Part:
    """Sounds with one caption of each annotator."""
    path = job.file("MACS.yaml")
    folder = job.folder("TAU-urban-acoustic-scenes-2019-development/audio", "audio")
    try:
        content = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    items = []
    for number, record in enumerate(entry(content, "files", list, path)):
        place = f"{path}, file {number}"
        name = entry(record, "filename", str, place)
        captions = [entry(one, "sentence", str, place) for one in entry(record, "annotations", list, place)]
        items.append(Item(shard_key(name), (("audio", folder / name),), None, spoken(captions, place)))
    return Part(items)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("macs", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
