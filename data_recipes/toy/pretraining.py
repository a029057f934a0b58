"""Make the toy data set: shards of procedural images, sounds and captions. Needs no download and no GPU.

    python -m data_recipes.toy --out data/toy

writes ``train/{image-text,audio-text,image,audio,text}``, ``val/{image-text,audio-text,audio-image}`` and
``tokenizer``, and with ``--depth`` also ``train/depth-image`` and ``val/{depth-image,depth-text,audio-depth}``. The
same arguments give the same bytes. No training stream pairs an image with a sound, or a depth map with anything but a
image, and none holds a combination that validation holds (``toy_world.is_held_out``).
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from data_recipes.toy.audio import encode_wav, play_clip
from data_recipes.toy.depth import draw_depth
from data_recipes.toy.images import draw_scene, encode_png, place_icons
from data_recipes.toy.items import Draw
from data_recipes.toy.questions import audio_question_answering, visual_question_answering, visual_reasoning
from data_recipes.toy.scene_tasks import told_apart
from data_recipes.toy.world import (
    COLOURS,
    SPLIT_RULE,
    THINGS,
    Combination,
    all_combinations,
    caption,
    is_held_out,
)
from onepeace_lightning.data.readers.questions import with_choice
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

TRAIN_TYPES = ("image-text", "audio-text", "image", "audio", "text")
VAL_TYPES = ("image-text", "audio-text", "audio-image")
DEPTH_TYPES = ("depth-image", "depth-text", "audio-depth")
"""Of validation, where there is depth; training pairs depth maps with images only."""

COLOURED_SHARE = 0.5
"""Share of the captions of images that mention colours. With some of colours alone, names came later."""

SINGLE_GROUP_SHARE = 0.5
"""Share of training samples with one group: few combinations, but the plainest examples of what each word means."""

VOCAB_SIZE = 1024  # 260 bytes and special ids, the letters, and room for every word to be one piece
SENTENCES = 400  # of each downstream task, for the vocabulary
TRAIN_SHARD, VAL_SHARD = 500, 64  # samples; several shards a stream, so that workers and ranks can share them


@dataclass(frozen=True)
class ToyConfig:
    """What to make.

    Attributes:
        pairs: samples of train/image-text and of train/audio-text, each.
        singles: samples of train/image, train/audio and train/text, each.
        gallery: samples of each validation stream; no two show the same combination.
        depth: samples of train/depth-image; 0 leaves out all that has depth.
        image_side: side of the images in pixels.
        seed: of everything drawn at random; the split does not depend on it.
    """

    pairs: int = 6000
    singles: int = 1000
    gallery: int = 256
    depth: int = 0
    image_side: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        largest = sum(map(is_held_out, all_combinations()))
        for name, value, low, high in (
            ("pairs", self.pairs, 1, None),
            ("singles", self.singles, 1, None),
            ("gallery", self.gallery, 2, largest),
            ("depth", self.depth, 0, None),
            ("image_side", self.image_side, 48, None),
            ("seed", self.seed, 0, None),
        ):
            if value < low or (high is not None and value > high):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"{name} is {value}; choose {limits}")


@dataclass(frozen=True)
class _Sample:
    """What one sample shows and the seed of its rendering; made first, rendered by any process."""

    split: str
    data_type: str
    combination: Combination
    seed: tuple[int, ...]
    image_side: int


def build(out: Path, config: ToyConfig | None = None, *, overwrite: bool = False, processes: int = 1) -> None:
    """Write the whole data set under a folder.

    Args:
        out: the folder, made if need be.
        config: sizes and seed; the defaults if None.
        overwrite: replace streams that are already there.
        processes: how many render; the bytes do not depend on it.

    Raises:
        ShardError: if a stream's folder holds files and ``overwrite`` is not set.
    """
    config = config or ToyConfig()
    captions = []
    with multiprocessing.Pool(processes) as pool:
        for stream, samples in _plan(config).items():
            split, data_type = stream.split("/")
            with ShardWriter(
                out / stream,
                data_type,
                source="data_recipes/toy/pretraining.py (generated)",
                license="CC0-1.0",
                samples_per_shard=TRAIN_SHARD if split == "train" else VAL_SHARD,
                overwrite=overwrite,
                about={
                    "split": split,
                    "split_rule": SPLIT_RULE,
                    "distinct_combinations": len({sample.combination for sample in samples}),
                    "things": list(THINGS),
                    "colours": list(COLOURS),
                    **asdict(config),
                },
            ) as writer:
                for index, fields in enumerate(pool.imap(_render, samples, chunksize=32)):
                    writer.write(f"{index:06d}", fields)
                    if split == "train" and "txt" in fields:
                        captions.append(fields["txt"].decode())
    SentencePieceTokenizer.train([*captions, *_sentences(config)], VOCAB_SIZE).save(out / "tokenizer")


def _sentences(config: ToyConfig) -> list[str]:
    """What the downstream tasks ask and say, so that the vocabulary has their words too; nothing else sees these."""
    draw = Draw(False, config.image_side, np.random.default_rng((config.seed, len(TRAIN_TYPES) + 1)))
    spoken = [item.text or "" for plan in (visual_question_answering, visual_reasoning, told_apart)
              for item in plan(SENTENCES, draw)]  # fmt: skip
    asked = audio_question_answering(SENTENCES, draw)
    return spoken + [with_choice(item.text or "", choice) for item in asked for choice in item.facts["choices"]]


def _plan(config: ToyConfig) -> dict[str, list[_Sample]]:
    """The samples of every stream, by "split/data type"."""
    everything = all_combinations()
    training = [combination for combination in everything if not is_held_out(combination)]
    held_out = [combination for combination in everything if is_held_out(combination)]
    order = np.random.default_rng((config.seed, 0, 0)).permutation(len(held_out))
    gallery = [held_out[index] for index in order[: config.gallery]]

    chosen: dict[str, list[Combination]] = {}
    for number, data_type in enumerate(TRAIN_TYPES, 1):
        count = config.pairs if data_type in ("image-text", "audio-text") else config.singles
        rng = np.random.default_rng((config.seed, 0, number))
        chosen[f"train/{data_type}"] = list(islice(_draw(training, rng), count))
    chosen |= {f"val/{data_type}": gallery for data_type in VAL_TYPES}
    if config.depth:
        rng = np.random.default_rng((config.seed, 0, len(TRAIN_TYPES) + 2))
        chosen["train/depth-image"] = list(islice(_draw(training, rng), config.depth))
        chosen |= {f"val/{data_type}": gallery for data_type in DEPTH_TYPES}
    plan = {}
    for number, (stream, combinations) in enumerate(chosen.items(), 1):
        split, data_type = stream.split("/")
        plan[stream] = [
            _Sample(split, data_type, combination, (config.seed, number, index), config.image_side)
            for index, combination in enumerate(combinations)
        ]
    return plan


def _draw(combinations: list[Combination], rng: np.random.Generator) -> Iterator[Combination]:
    """Draw for ever, without repeating one before all of its kind (one group, two groups) have had their turn."""
    kinds = []
    for size in (1, 2):
        kind = [combination for combination in combinations if len(combination) == size]
        kinds.append(cycle([kind[index] for index in rng.permutation(len(kind))]))
    while True:
        yield next(kinds[0] if rng.random() < SINGLE_GROUP_SHARE else kinds[1])


def _render(sample: _Sample) -> dict[str, bytes]:
    """The files of one sample; the groups go along as metadata."""
    rng = np.random.default_rng(sample.seed)
    colours = [str(colour) for colour in rng.choice(list(COLOURS), len(sample.combination))]
    fields = {"json": json.dumps({"groups": [asdict(group) for group in sample.combination]}).encode()}
    parts, side = sample.data_type.split("-"), sample.image_side
    icons = place_icons(sample.combination, colours, side, rng) if {"image", "depth"} & set(parts) else []
    if "image" in parts:
        fields["png"] = encode_png(draw_scene(icons, side, rng))
    if "depth" in parts:
        fields["depth.png"] = encode_png(draw_depth(icons, side, rng))
    if "audio" in parts:
        fields["wav"] = encode_wav(play_clip(sample.combination, rng))
    if sample.data_type not in ("image", "audio", "depth-image") or sample.split == "val":
        # Half of the captions of images do not mention colours: these are what images and sounds have in common.
        # A text alone speaks of an image or of a sound; audio-image has the caption that fits both.
        coloured = sample.data_type in ("image-text", "text") and rng.random() < COLOURED_SHARE
        fields["txt"] = caption(sample.combination, colours if coloured else None).encode()
    return fields


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and build."""
    default = ToyConfig()
    parser = argparse.ArgumentParser(prog="python -m data_recipes.toy", description="Make the toy data set.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for instance data/toy")
    parser.add_argument("--pairs", type=int, default=default.pairs, help="image-text and audio-text pairs, each")
    parser.add_argument("--singles", type=int, default=default.singles, help="images, sounds and texts alone, each")
    parser.add_argument("--gallery", type=int, default=default.gallery, help="samples of each validation stream")
    parser.add_argument("--depth", type=int, default=default.depth, help="depth-image pairs; 0 for no depth")
    parser.add_argument("--image-side", type=int, default=default.image_side, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of everything but the split")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="how many render")
    parser.add_argument("--overwrite", action="store_true", help="replace streams that are already there")
    options = vars(parser.parse_args(arguments))
    out, overwrite, processes = options.pop("out"), options.pop("overwrite"), options.pop("processes")
    try:
        config = ToyConfig(**options)
        build(out, config, overwrite=overwrite, processes=processes)
    except ValueError as error:  # a size out of bounds, or ShardError: the folder is in use
        parser.error(str(error))
    print(
        f"wrote {out}: {2 * config.pairs} training pairs, {3 * config.singles} single samples, gallery {config.gallery}"
    )
