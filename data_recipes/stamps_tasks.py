"""Downstream tasks on real pictures and voices: Tux Paint's stamps, alone and in scenes.

    python -m data_recipes.stamps_tasks --out data/stamps/tasks [--source FOLDER_OR_DEB]

writes ``<task>/<train|val>/<data type>`` with a manifest each, and prints what each task scores without looking:

* ``image_classification``: which top-level folder of the package a picture is from.
* ``audio_classification``: in which language a stamp's caption is read aloud. Few people speak each language, and the
  same in training and validation: what is held out is what they say.
* ``visual_grounding``, ``semantic_segmentation``, ``visual_question_answering``: scenes of stamps.

The split is by stamp, that of ``data_recipes.stamps``: no stamp, nor one that shares its picture, recording or caption,
is in both parts. So most nouns of validation were never read in training; the words for categories were.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_recipes import toy_tasks_chance as chance
from data_recipes.stamps import MIN_SHARDS, Media, check_unused, encode, open_package, split
from data_recipes.stamps_package import LICENSE, Stamp
from data_recipes.stamps_tasks_plans import (
    ANSWERS,
    SEGMENTATION_CLASSES,
    Draw,
    Sample,
    semantic_segmentation,
    visual_grounding,
    visual_question_answering,
)
from data_recipes.stamps_tasks_scenes import CATEGORIES, Cutout, make_cutouts
from data_recipes.toy_tasks import report
from data_recipes.toy_tasks_items import Item
from onepeace_lightning.data.shards import ShardWriter

SCENE_TASKS: dict[str, tuple[str, Callable[[int, Draw], Any], Callable[..., chance.Chance], dict[str, Any]]] = {
    "visual_grounding": ("image-box", visual_grounding, chance.grounding, {}),
    "semantic_segmentation": (
        "image-mask",
        semantic_segmentation,
        partial(chance.segmentation, classes=len(SEGMENTATION_CLASSES)),
        {"classes": list(SEGMENTATION_CLASSES)},
    ),
    "visual_question_answering": (
        "image-question",
        visual_question_answering,
        chance.questions,
        {"answers": list(ANSWERS)},
    ),
}
"""Task to its data type, its plan, its chance level and what else its manifests say."""


def build(
    out: Path,
    source: Path | None = None,
    *,
    train: int = 3000,
    val: int = 300,
    image_size: int = 160,
    max_seconds: float = 3.0,
    val_fraction: float = 0.1,
    min_stamps: int = 20,
    min_recordings: int = 500,
    workers: int = 2,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, chance.Chance]:
    """Write all tasks.

    Args:
        out: the folder of the tasks.
        source: as for ``data_recipes.stamps.build``.
        train: training scenes of each task on scenes.
        val: validation scenes of each.
        image_size: side of the scenes, and the most of a single picture's, in pixels.
        max_seconds: sounds are cut after this time.
        val_fraction: share of the stamps that is for validation, about.
        min_stamps: pictures that a folder needs to be a class.
        min_recordings: recordings that a language needs to be a class.
        workers: processes that encode pictures and sounds.
        seed: of the scenes.
        overwrite: replace what is there.

    Returns:
        By task, what it scores without looking.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: the source holds no stamps, a part of a task would be empty, or a stream's folder is in use.
        RuntimeError: the package cannot be downloaded.
        ImportError: the package has SVG pictures and nothing here draws them.
    """
    check_unused(out, overwrite)
    chances = {}
    with tempfile.TemporaryDirectory() as scratch:
        package = open_package(source, Path(scratch))
        media = encode(package, image_size=image_size, max_seconds=max_seconds, workers=workers)
        validation = split(media, val_fraction)
        stamps = {
            "train": [stamp for name, stamp in package.stamps.items() if name not in validation],
            "val": [stamp for name, stamp in package.stamps.items() if name in validation],
        }
        cut = {part: make_cutouts(chosen, image_size) for part, chosen in stamps.items()}
    cutouts = {part: _by_category(usable) for part, (usable, _) in cut.items()}
    for part, usable in cutouts.items():
        _check_categories(part, usable)
    write = partial(
        _write,
        out,
        source=package.source,
        overwrite=overwrite,
        about={
            "split_rule": "by stamp, as in data_recipes/stamps.py: stamps that share a picture, a recording or a "
            f"caption are on the same side; in validation where the hash of the first's path is below {val_fraction}",
            "stamps": {part: len(chosen) for part, chosen in stamps.items()},
            "not_in_scenes": dict(sorted((cut["train"][1] + cut["val"][1]).items())),
            "image_size": image_size,
            "max_seconds": max_seconds,
            "seed": seed,
        },
    )
    for name, data_type, label, parts in (
        ("image_classification", "image-label", "folder", _pictures(media, stamps, min_stamps)),
        ("audio_classification", "audio-label", "language", _speech(media, stamps, min_recordings)),
    ):
        classes = sorted({item.facts["labels"][0] for samples in parts.values() for item, _ in samples})
        chances[name] = write(name, data_type, parts, chance.classes, {"classes": classes, "label": label})
    for number, (name, (data_type, plan, blind, about)) in enumerate(SCENE_TASKS.items()):
        parts = {}
        for index, (part, count) in enumerate((("train", train), ("val", val))):
            draw = Draw(cutouts[part], image_size, np.random.default_rng((seed, number, index)))
            parts[part] = list(plan(count, draw))
        chances[name] = write(name, data_type, parts, blind, about)
    return chances


def _pictures(media: Media, stamps: dict[str, list[Stamp]], least: int) -> dict[str, list[Sample]]:
    """Single pictures with their top-level folder, of folders that have enough."""
    folders = Counter(name.split("/")[0] for name in media.pictures)
    return {
        part: [
            _labelled(stamp.name.split("/")[0], {"stamp": stamp.name}, png=media.pictures[stamp.name])
            for stamp in chosen
            if stamp.name in media.pictures and folders[stamp.name.split("/")[0]] >= least
        ]
        for part, chosen in stamps.items()
    }


def _speech(media: Media, stamps: dict[str, list[Stamp]], least: int) -> dict[str, list[Sample]]:
    """Captions read aloud with their language, of languages that have enough; equal recordings come once."""
    spoken = Counter(clip.language for clip in media.sounds if clip.kind == "speech")
    parts = {}
    for part, chosen in stamps.items():
        samples: dict[bytes, Sample] = {}
        for stamp in chosen:
            for clip in media.clips(stamp, captioned=False):
                if clip.kind == "speech" and spoken[clip.language] >= least:
                    sound = media.sounds[clip]
                    samples.setdefault(sound, _labelled(clip.language, {"stamp": stamp.name}, flac=sound))
        parts[part] = list(samples.values())
    return parts


def _labelled(label: str, facts: dict[str, Any], **fields: bytes) -> Sample:
    item = Item({"labels": [label], **facts})
    return item, {**fields, "json": json.dumps(item.facts).encode()}


def _by_category(cutouts: list[Cutout]) -> dict[str, list[Cutout]]:
    ordered = sorted(cutouts, key=lambda cutout: (cutout.category, cutout.stamp))
    return {category: list(group) for category, group in groupby(ordered, key=lambda cutout: cutout.category)}


def _check_categories(part: str, cutouts: dict[str, list[Cutout]]) -> None:
    if missing := [category for category in CATEGORIES if category not in cutouts]:
        raise ValueError(
            f"no usable picture of {', '.join(missing)} for {part}: scenes need some of {', '.join(CATEGORIES)}; "
            "choose another val_fraction"
        )


def _write(
    out: Path,
    name: str,
    data_type: str,
    parts: dict[str, list[Sample]],
    blind: Callable[..., chance.Chance],
    extra: dict[str, Any],
    *,
    source: str,
    overwrite: bool,
    about: dict[str, Any],
) -> chance.Chance:
    if empty := [part for part, samples in parts.items() if not samples]:
        raise ValueError(f"{name} has nothing for {' and '.join(empty)}: choose another val_fraction or lower limits")
    found = blind(*([item for item, _ in parts[part]] for part in ("train", "val")))
    for part, samples in parts.items():
        # In the package's order neighbours are alike.
        order = np.random.default_rng(0).permutation(len(samples))
        with ShardWriter(
            out / name / part / data_type,
            data_type,
            source=source,
            license=LICENSE,
            samples_per_shard=min(1000, -(-len(samples) // MIN_SHARDS)),
            about={"task": name, "split": part, **about, **extra, **found.about()},
            overwrite=overwrite,
        ) as writer:
            for number, index in enumerate(order):
                writer.write(f"{number:06d}", samples[index][1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors in the source or the folder end it with one message."""
    parser = argparse.ArgumentParser(
        prog="python -m data_recipes.stamps_tasks", description="Write the downstream tasks of Tux Paint's stamps."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the tasks, e.g. data/stamps/tasks")
    parser.add_argument("--source", type=Path, help="the package's .deb or folder (default: apt-get download)")
    parser.add_argument("--train", type=int, default=3000, help="training scenes a task (default: %(default)s)")
    parser.add_argument("--val", type=int, default=300, help="validation scenes a task (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=160, help="pixels a side (default: %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=3.0, help="sounds are cut after (default: %(default)s)")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="stamps held out (default: %(default)s)")
    parser.add_argument("--min-stamps", type=int, default=20, help="pictures of a class (default: %(default)s)")
    parser.add_argument("--min-recordings", type=int, default=500, help="of a language (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    options = vars(parser.parse_args(arguments))
    try:
        chances = build(options.pop("out"), **options)
    except (FileNotFoundError, ValueError, RuntimeError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    report(chances, Console())


if __name__ == "__main__":
    main()
