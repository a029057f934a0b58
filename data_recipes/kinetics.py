"""Kinetics, or any folder of videos with a table in its layout: one action for each clip.

    python -m data_recipes.kinetics --root KINETICS --out data/kinetics [--media VIDEOS]

reads ``train.csv`` and ``val.csv`` (or ``validate.csv``; also below ``annotations/``) with the columns ``label``,
``youtube_id``, ``time_start`` and ``time_end``. A clip lies below ``train/`` or ``val/``, flat or in a folder of its
label, and is called ``<youtube_id>_<start>_<end>.mp4`` with six digits for each time, or ``<youtube_id>.mp4``. Videos
that have vanished are left out; the classes are the labels of both tables in alphabetical order, as published.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from data_recipes.corpora import Corpus, Job, Part, read_csv, run
from onepeace_lightning.data.items import Item, shard_key
from onepeace_lightning.modalities.video import VideoModality

CORPORA = {
    "kinetics": Corpus(
        "Kinetics",
        "https://github.com/cvdfoundation/kinetics-dataset",
        "annotations: CC BY 4.0; videos: YouTube's terms",
        "video-label",
        {"train": (), "val": ()},
        max_missing=0.2,
    )
}
_TABLES = {"train": ("train",), "val": ("val", "validate")}
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read_split(job: Job) -> Part:
    """Clips of a split with their action."""
    classes = sorted({label for split in _TABLES for _, label in _rows(job.root, split)})
    folder = Job(job.media, None, job.split, job.variant).root if job.media else job.folder(*_TABLES[job.split])
    folder = next((folder / name for name in _TABLES[job.split] if (folder / name).is_dir()), folder)
    videos = _videos(folder)
    items = []
    for names, label in _rows(job.root, job.split):
        file = next((videos[name] for name in names if name in videos), folder / f"{names[0]}.mp4")
        items.append(Item(shard_key(names[0]), (("video", file),), None, {"labels": [label]}))
    return Part(items, {"classes": classes})


def _rows(root: Path, split: str) -> Iterator[tuple[tuple[str, str], str]]:
    """What a clip's file may be called, without extension, and its label."""
    names = [f"{folder}{name}.csv" for name in _TABLES[split] for folder in ("", "annotations/")]
    for place, row in read_csv(Job(root, None, split, "").file(*names), _COLUMNS):
        try:
            start, end = (int(float(row[column])) for column in ("time_start", "time_end"))
        except ValueError as error:
            raise ValueError(f"{place}: times are {row['time_start']!r}, {row['time_end']!r}; give seconds") from error
        name = row["youtube_id"]
        yield (f"{name}_{start:06d}_{end:06d}", name), row["label"].strip()


@cache
def _videos(folder: Path) -> dict[str, Path]:
    """Every video below a folder by its name without extension."""
    return {path.stem: path for path in sorted(folder.rglob("*")) if VideoModality.extension_of(path.name)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("kinetics", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
