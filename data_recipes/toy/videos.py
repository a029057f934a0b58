"""Toy videos in Kinetics' layout: a red or blue square that moves left or right.

    python -m data_recipes.toy.videos --out data/toy/videos

writes ``train.csv``, ``val.csv``, ``train/`` and ``val/`` below ``source/``, and shards of them. A single frame shows
the colour, but not which way the square moves.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_recipes import kinetics
from onepeace_lightning.modalities.video_files import write_video

COLOURS = {"red": (230, 40, 40), "blue": (40, 60, 230)}
LABELS = [f"{colour} moving {way}" for colour in COLOURS for way in ("left", "right")]
SIDE, SQUARE, FRAMES = 64, 20, 8


def draw(label: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Frames (S, S, 3) of a square on a dark ground, from one side to the other."""
    ground, top = rng.integers(0, 90, 3), int(rng.integers(SIDE - SQUARE))
    travel = np.linspace(0, SIDE - SQUARE, FRAMES).round().astype(int)
    frames = []
    for left in travel if label.endswith("right") else travel[::-1]:
        frame = np.full((SIDE, SIDE, 3), ground, np.uint8)
        frame[top : top + SQUARE, left : left + SQUARE] = COLOURS[label.partition(" ")[0]]
        frames.append(frame)
    return frames


def write(folder: Path, count: int, seed: int = 0) -> None:
    """Videos and tables in Kinetics' layout.

    Args:
        folder: to write into.
        count: training videos; a quarter as many are for validation.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    for split, videos in (("train", count), ("val", max(count // 4, len(LABELS)))):
        (folder / split).mkdir(parents=True, exist_ok=True)
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            for number in range(videos):
                label = LABELS[number % len(LABELS)]
                name = f"toy_{split}_{number:04d}"
                table.writerow([label, name, 0, 1, split])
                write_video(folder / split / f"{name}_000000_000001.mp4", draw(label, rng))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data_recipes.toy.videos", description="Draw toy videos.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write source/ and <split>/video-label/ into")
    parser.add_argument("--count", type=int, default=400, help="training videos (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are there")
    options = parser.parse_args(arguments)
    write(options.out / "source", options.count)
    overwrite = ["--overwrite"] if options.overwrite else []
    kinetics.main(["--root", str(options.out / "source"), "--out", str(options.out), *overwrite])


if __name__ == "__main__":
    main()
