"""AVQA: questions with four answers about VGGSound's clips, by sound alone or by sound and image.

    python -m data_recipes.avqa --root AVQA --out data/avqa [--media VGGSOUND/audio]
    python -m data_recipes.avqa --root AVQA --out data/avqa_av --variant avqa_av [--media VGGSOUND]

reads ``train_qa.json`` and ``val_qa.json`` and sounds named after the videos (``ID_START``), in ``audio/`` or the
folder that --media names, in sub-folders or not. The variant ``avqa_av`` also takes one frame of each clip, as
``data_recipes.vggsound`` does.
"""

from collections.abc import Sequence
from dataclasses import replace

from data_recipes.corpora import Corpus, Job, Part, audio_visual, entry, read_json, run
from onepeace_lightning.data.items import Item, shard_key

CORPORA = {
    "avqa": Corpus(
        "AVQA",
        "https://mn.cs.tsinghua.edu.cn/avqa",
        "the terms of the website; sounds: as VGGSound, each its YouTube owner's copyright",
        "audio-choices",
        {"train": (40_425,), "val": (16_910,)},
        max_missing=0.2,
    )
}
CORPORA["avqa_av"] = replace(CORPORA["avqa"], title="AVQA, sound and one frame", data_type="image-audio-choices")


def read_split(job: Job) -> Part:
    """Questions of a split."""
    path = job.file(f"{job.split}_qa.json")
    records = read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path} holds a {type(records).__name__}; a list of questions is expected")
    items = []
    for number, record in enumerate(records):
        place = f"{path}, question {number}"
        choices, answer = entry(record, "multi_choice", list, place), entry(record, "answer", int, place)
        if not 0 <= answer < len(choices):
            raise ValueError(f"{place}: answer {answer} is none of its {len(choices)} choices, counted from 0")
        items.append(
            Item(
                shard_key(job.split, entry(record, "id", (int, str), place)),
                audio_visual(job, entry(record, "video_name", str, place), frame=job.variant == "avqa_av"),
                entry(record, "question_text", str, place),
                {"choices": [str(choice) for choice in choices], "answer": answer},
            )
        )
    return Part(items)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run("avqa", CORPORA, read_split, arguments)


if __name__ == "__main__":
    main()
