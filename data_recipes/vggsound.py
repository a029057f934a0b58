"""VGGSound: ten-second YouTube clips in 309 classes, by sound alone or by sound and image.

    python -m data_recipes.vggsound --root VGGSOUND --out data/vggsound [--media SOUNDS]
    python -m data_recipes.vggsound --root VGGSOUND --out data/vggsound_av --variant vggsound_av [--media BOTH]

reads ``vggsound.csv`` (YouTube id, start in seconds, label, train or test; no header) and sounds named ``ID_START``
with a start of six digits, in ``audio/`` or the folder that --media names, in sub-folders or not. The variant
``vggsound_av`` also takes one frame of each clip, ``ID_START.jpg`` in ``frames/`` or the same folder; the paper does
not say which, so take the middle one: ``ffmpeg -ss 5 -i CLIP.mp4 -frames:v 1 ID_START.jpg``.
"""

from collections.abc import Sequence
from dataclasses import replace

from data_recipes.corpora import Corpus, Job, Part, audio_visual, read_csv, run
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "vggsound": Corpus(
        "VGGSound",
        "https://www.robots.ox.ac.uk/~vgg/data/vggsound",
        "CC BY 4.0; sounds: each its YouTube owner's copyright",
        "audio-label",
        {"train": (183_730,), "test": (15_446,)},
        max_missing=0.2,
    )
}
CORPORA["vggsound_av"] = replace(
    CORPORA["vggsound"], title="VGGSound, sound and one frame", data_type="image-audio-label"
)


def read_split(job: Job) -> Part:
    """Clips of a split with their class; the classes are in alphabetical order."""
    path = job.file("vggsound.csv")
    classes: set[str] = set()
    items = []
    for place, row in read_csv(path, ("clip", "start", "label", "split"), header=False):
        if row["split"] not in ("train", "test") or not row["start"].isdigit():
            raise ValueError(f"{place}: {row['start']!r} must be a start in seconds, {row['split']!r} train or test")
        classes.add(row["label"])
        if row["split"] == job.split:
            stem = f"{row['clip']}_{int(row['start']):06d}"
            items.append(
                Item(
                    shard_key(stem),
                    audio_visual(job, stem, frame=job.variant == "vggsound_av"),
                    None,
                    {"labels": [row["label"]]},
                )
            )
    return Part(items, {"classes": sorted(classes)})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("vggsound", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
