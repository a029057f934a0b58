"""AudioCaps: ten-second clips of AudioSet with captions, one in training, five in validation and test.

    python -m data_recipes.audiocaps --root AUDIOCAPS --out data/audiocaps [--media SOUNDS]

reads ``train.csv``, ``val.csv`` and ``test.csv`` (also in ``dataset/``, as in the authors' repository) and sounds in
``audio/`` or the folder that --media names, in sub-folders or not. A sound is named after its YouTube id, with the
start in seconds or without (``ID_START``, ``YID``, ``ID``), or after its audiocap_id.
"""

from collections import defaultdict
from collections.abc import Sequence

from data_recipes.corpora import Corpus, Job, Part, find_file, read_csv, run, spoken
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "audiocaps": Corpus(
        "AudioCaps",
        "https://github.com/cdjkim/audiocaps",
        "captions: MIT; sounds: each its YouTube owner's copyright",
        "audio-captions",
        # Version 1, version 2. The authors count captions, five for each clip of val and test.
        {"train": (49_838, 91_256), "val": (495,), "test": (975,)},
        max_missing=0.2,
    )
}


def read_split(job: Job) -> Part:
    """Clips of a split with all their captions."""
    path = job.file(f"{job.split}.csv", f"dataset/{job.split}.csv")
    clips: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for _, row in read_csv(path, ("audiocap_id", "youtube_id", "start_time", "caption")):
        clips[row["youtube_id"], row["start_time"]].append(row)
    folder = job.folder("audio", "dataset/audio")
    items = []
    for (clip, start), rows in clips.items():
        names = (f"{clip}_{start}", f"Y{clip}", clip, *(row["audiocap_id"] for row in rows))
        files = (("audio", find_file(folder, "audio", *names)),)
        items.append(Item(shard_key(clip, start), files, None, spoken((row["caption"] for row in rows), path)))
    return Part(items)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("audiocaps", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
