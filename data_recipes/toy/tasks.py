"""Make the toy versions of all downstream tasks: procedural images and sounds. Needs no download and no GPU.

    python -m data_recipes.toy.tasks --out data/toy/tasks

writes ``<task>/<train|val>/<data type>`` for each of ``TASKS``, and prints what each scores without looking. The same
arguments give the same bytes. No training item shows groups that a validation item of its task shows together
(``about.split_rule`` of the manifests); the rule is the toy world's wherever it can be, so that what validates a task
was not in the shards of ``data_recipes.toy.pretraining`` either.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from data_recipes.toy import chance
from data_recipes.toy.audio import encode_wav, play_clip
from data_recipes.toy.audio_visual import audio_visual_classification, audio_visual_question_answering
from data_recipes.toy.groups import (
    CLASSES_RULE,
    audio_classification,
    audio_tagging,
    audio_text_retrieval,
    image_classification,
    image_text_retrieval,
)
from data_recipes.toy.images import draw_scene, encode_png
from data_recipes.toy.items import (
    ASKED_THINGS,
    COLOUR_NAMES,
    TOLD_APART_COLOURS,
    TOLD_APART_THINGS,
    Draw,
    Item,
)
from data_recipes.toy.pretraining import TRAIN_SHARD, VAL_SHARD
from data_recipes.toy.questions import (
    ANSWERS,
    STATEMENT_CLASSES,
    audio_question_answering,
    visual_question_answering,
    visual_reasoning,
)
from data_recipes.toy.scene_tasks import (
    SEGMENTATION_CLASSES,
    object_detection,
    semantic_segmentation,
    visual_grounding,
)
from data_recipes.toy.scenes import draw_mask
from data_recipes.toy.world import SPLIT_RULE, THINGS, all_combinations, is_held_out
from onepeace_lightning.data.shards import ShardWriter

SPLITS = ("train", "val")

_PICTURES = ("png", "second.png")

_SCENES_RULE = f"{SPLIT_RULE}; the groups are the scene's things with their sizes, each counted once"
_AUDIO_VISUAL_RULE = f"{SPLIT_RULE}; the groups that are seen, and those that are heard, are on the same side"
_COLOURED_RULE = f"{SPLIT_RULE}; the groups are the scene's things with their sizes and colours"


@dataclass(frozen=True)
class Task:
    """One downstream task.

    Attributes:
        data_type: of its shards.
        plan: makes a number of items.
        chance: the score without looking, from the training and the validation items.
        split_rule: which items are for validation.
        items: how many times as many training items as are asked for; a few thousand are learned by heart in some.
        things: that its items show.
        colours: of the things in images.
        about: what else its manifests say.
    """

    data_type: str
    plan: Callable[[int, Draw], list[Item]]
    chance: Callable[[Sequence[Item], Sequence[Item]], chance.Chance]
    split_rule: str = SPLIT_RULE
    items: int = 1
    things: Sequence[str] = THINGS
    colours: Sequence[str] = COLOUR_NAMES
    about: dict[str, Any] = field(default_factory=dict)


_THINGS = {"classes": list(THINGS)}

TASKS = {
    "image_classification": Task("image-label", image_classification, chance.classes, CLASSES_RULE, about=_THINGS),
    "audio_classification": Task(
        "audio-label", audio_classification, chance.classes, CLASSES_RULE, items=3, about=_THINGS
    ),
    "audio_tagging": Task("audio-label", audio_tagging, chance.tags, about=_THINGS),
    "image_text_retrieval": Task("image-captions", image_text_retrieval, chance.retrieval),
    "audio_text_retrieval": Task("audio-captions", audio_text_retrieval, chance.retrieval),
    "visual_grounding": Task(
        "image-box",
        visual_grounding,
        chance.grounding,
        _COLOURED_RULE,
        items=9,
        things=TOLD_APART_THINGS,
        colours=TOLD_APART_COLOURS,
    ),
    "semantic_segmentation": Task(
        "image-mask",
        semantic_segmentation,
        partial(chance.segmentation, classes=len(SEGMENTATION_CLASSES)),
        _SCENES_RULE,
        items=2,
        things=ASKED_THINGS,
        about={"classes": list(SEGMENTATION_CLASSES), "mask": "the pixels that a thing covers at least half"},
    ),
    "object_detection": Task(
        "image-boxes",
        object_detection,
        chance.detection,
        _SCENES_RULE,
        things=ASKED_THINGS,
        about={"classes": list(ASKED_THINGS)},
    ),
    "visual_question_answering": Task(
        "image-question",
        visual_question_answering,
        chance.questions,
        f"{SPLIT_RULE}; in pictures of single things each is a group of one",
        items=9,
        things=ASKED_THINGS,
        about={"answers": list(ANSWERS)},
    ),
    "visual_reasoning": Task(
        "image-pair",
        visual_reasoning,
        chance.statements,
        f"{SPLIT_RULE}; both pictures of an item are on the same side",
        items=9,
        things=TOLD_APART_THINGS,
        colours=TOLD_APART_COLOURS,
        about={"classes": list(STATEMENT_CLASSES), "statements": "the first picture is the left"},
    ),
    "audio_question_answering": Task(
        "audio-choices", audio_question_answering, chance.choices, items=3, things=ASKED_THINGS
    ),
    "audio_visual_classification": Task(
        "image-audio-label",
        audio_visual_classification,
        chance.classes,
        _AUDIO_VISUAL_RULE,
        items=3,
        things=ASKED_THINGS,
        about={"classes": list(ASKED_THINGS)},
    ),
    "audio_visual_question_answering": Task(
        "image-audio-choices",
        audio_visual_question_answering,
        chance.choices,
        _AUDIO_VISUAL_RULE,
        items=3,
        things=ASKED_THINGS,
    ),
}
"""The tasks by the name of their folder."""


@dataclass(frozen=True)
class ToyTasksConfig:
    """What to make.

    Attributes:
        train: training items of each task; some get several times as many (``Task.items``).
        val: validation items of each task.
        image_side: side of the images in pixels.
        seed: of everything drawn at random; the split does not depend on it.
    """

    train: int = 4000
    val: int = 500
    image_side: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        held_out = sum(map(is_held_out, all_combinations()))
        for name, value, low, high in (
            ("train", self.train, 1, len(all_combinations()) - held_out),
            ("val", self.val, 1, held_out),
            ("image_side", self.image_side, 96, None),
            ("seed", self.seed, 0, None),
        ):
            if value < low or (high is not None and value > high):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"{name} is {value}; choose {limits}")


def build(
    out: Path, config: ToyTasksConfig | None = None, *, overwrite: bool = False, processes: int = 1
) -> dict[str, chance.Chance]:
    """Write all tasks under a folder.

    Args:
        out: the folder, made if need be.
        config: sizes and seed; the defaults if None.
        overwrite: replace streams that are already there.
        processes: how many render; the bytes do not depend on it.

    Returns:
        By task, what it scores without looking.

    Raises:
        ShardError: if a stream's folder holds files and ``overwrite`` is not set.
    """
    config = config or ToyTasksConfig()
    chances = {}
    with multiprocessing.Pool(processes) as pool:
        for number, (name, task) in enumerate(TASKS.items()):
            items = {split: plan(task, split, (config.seed, number), config) for split in SPLITS}
            chances[name] = task.chance(items["train"], items["val"])
            for split in SPLITS:
                with ShardWriter(
                    out / name / split / task.data_type,
                    task.data_type,
                    source="data_recipes/toy/tasks.py (generated)",
                    license="CC0-1.0",
                    samples_per_shard=TRAIN_SHARD if split == "train" else VAL_SHARD,
                    overwrite=overwrite,
                    about={
                        "task": name,
                        "split": split,
                        "split_rule": task.split_rule,
                        **task.about,
                        **chances[name].about(),
                        **asdict(config),
                    },
                ) as writer:
                    seeded = [
                        (item, (config.seed, number, SPLITS.index(split), index))
                        for index, item in enumerate(items[split])
                    ]
                    render_one = partial(render, task.data_type, config.image_side)
                    for index, fields in enumerate(pool.imap(render_one, seeded, chunksize=32)):
                        writer.write(f"{index:06d}", fields)
    return chances


def plan(task: Task, split: str, seed: tuple[int, ...], config: ToyTasksConfig) -> list[Item]:
    """The items of one split of a task."""
    rng = np.random.default_rng((*seed, SPLITS.index(split)))
    count = config.val if split == "val" else config.train * task.items
    return task.plan(count, Draw(split == "val", config.image_side, rng, task.things, task.colours))


def render(data_type: str, side: int, seeded: tuple[Item, tuple[int, ...]]) -> dict[str, bytes]:
    """The files of an item, from the item and the seed of its rendering."""
    item, seed = seeded
    rng = np.random.default_rng(seed)
    fields = {"json": json.dumps(item.facts).encode()}
    for name, icons in zip(_PICTURES, item.pictures, strict=False):
        fields[name] = encode_png(draw_scene(icons, side, rng))
    if data_type == "image-mask":
        (icons,) = item.pictures
        fields["mask.png"] = encode_png(Image.fromarray(draw_mask(icons, SEGMENTATION_CLASSES, side)))
    if item.sound:
        fields["wav"] = encode_wav(play_clip(item.sound, rng))
    if item.text is not None:
        fields["txt"] = item.text.encode()
    return fields


def report(chances: dict[str, chance.Chance], console: Console) -> None:
    """Print what each task scores without looking."""
    table = Table("task", "metric", "percent", "how", title="Without looking")
    for name, blind in chances.items():
        table.add_row(name, blind.metric, f"{blind.percent:.1f}", f"chance: {blind.definition}")
        for definition, percent in blind.baselines.items():
            table.add_row("", "", f"{percent:.1f}", definition)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and build."""
    default = ToyTasksConfig()
    parser = argparse.ArgumentParser(
        prog="python -m data_recipes.toy.tasks", description="Make the toy versions of all downstream tasks."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for instance data/toy/tasks")
    parser.add_argument(
        "--train", type=int, default=default.train, help="training items of each task; some get several times as many"
    )
    parser.add_argument("--val", type=int, default=default.val, help="validation items of each task")
    parser.add_argument("--image-side", type=int, default=default.image_side, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of everything but the split")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="how many render")
    parser.add_argument("--overwrite", action="store_true", help="replace streams that are already there")
    options = vars(parser.parse_args(arguments))
    out, overwrite, processes = options.pop("out"), options.pop("overwrite"), options.pop("processes")
    try:
        config = ToyTasksConfig(**options)
        chances = build(out, config, overwrite=overwrite, processes=processes)
    except ValueError as error:  # a size out of bounds, or ShardError: the folder is in use
        parser.error(str(error))
    report(chances, Console())
    print(f"wrote {out}: {len(TASKS)} tasks")


if __name__ == "__main__":
    main()
