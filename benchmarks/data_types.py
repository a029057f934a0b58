"""What the five data types are for: a few pairs, with and without unpaired samples and the denoising contrast.

The paper's case for its second task is that modalities alone teach too (section 3.3). On the toy world, with few pairs
of image and text and of audio and text and many images, sounds and texts that are paired with nothing, the same model
is trained for the same number of steps in three ways:

* pairs, aligned: the aligning contrast of the pairs alone;
* pairs, aligned and denoised: with the denoising contrast of the same pairs;
* pairs and unpaired, denoised: with all five data types.

Of each way every seed is trained once; weights and order follow from the seed, the data do not. What is printed is the
retrieval of held-out combinations, which is the mean over the four directions of trained pairs and over the two between
audio and image, which are never paired. A step of the ways costs differently, so its seconds stand beside the score.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
from jsonargparse import auto_cli

from data_recipes.toy import pretraining as toy
from onepeace_lightning.cli.trainer import quieten
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.losses.pretraining import Objectives
from onepeace_lightning.modalities.presets import Preset
from onepeace_lightning.tasks.pretrain import PretrainTask
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.results import scores_of

PAIRED, UNPAIRED = ("image-text", "audio-text"), ("image", "audio", "text")


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        data_types: the streams.
        denoise: with the denoising contrast.
    """

    data_types: tuple[str, ...]
    denoise: bool


WAYS: Mapping[str, Way] = {
    "pairs, aligned": Way(PAIRED, denoise=False),
    "pairs, aligned and denoised": Way(PAIRED, denoise=True),
    "pairs and unpaired, denoised": Way((*PAIRED, *UNPAIRED), denoise=True),
}


def train(
    data: Path, way: Way, *, preset: Preset, steps: int, batch_size: int, side: int, seed: int
) -> tuple[float, float, float]:
    """Train once.

    Args:
        data: as ``data_recipes.toy`` makes them.
        way: what on.
        preset: size of the model.
        steps: of the optimizer.
        batch_size: pairs of each paired stream; unpaired streams have half as many samples.
        side: of the images in pixels.
        seed: of weights and order.

    Returns:
        Mean R@1 of the trained pairs and of audio and image, in percent; seconds per step.
    """
    L.seed_everything(seed, verbose=False)
    preprocessing: dict[str, dict[str, Any]] = {
        "image": {"size": side, "crop_scale": [1.0, 1.0]},
        "audio": {"min_seconds": 0.4, "max_seconds": 2},
    }
    streams = {
        name: StreamConfig(str(data / "train" / name), batch_size if name in PAIRED else max(1, batch_size // 2))
        for name in way.data_types
    }
    module = DataModule(
        streams,
        {name: StreamConfig(str(data / "val" / name), 64) for name in toy.VAL_TYPES},
        tokenizer=str(data / "tokenizer"),
        preprocessing=preprocessing,
        seed=seed,
        steps_per_epoch=steps,
        masks=way.denoise,
    )
    task = PretrainTask(
        str(data / "tokenizer"),
        Optimization(total_steps=steps, lr=1e-3, min_lr=1e-5, warmup_steps=0.1),
        preset,
        way.data_types,
        preprocessing=preprocessing,
        objectives=Objectives(denoise=way.denoise),
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, limit_val_batches=0, num_sanity_val_steps=0,
        gradient_clip_val=3.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(task, module)
    seconds = (time.perf_counter() - start) / steps
    trainer.limit_val_batches = 1.0
    trainer.validate(task, module, verbose=False)
    scores = {name: value for name, value in scores_of(trainer.callback_metrics).items() if name.endswith("/R@1")}
    directions = {name: value for name, value in scores.items() if "chance" not in name}
    never = [value for name, value in directions.items() if "text" not in name]
    paired = [value for name, value in directions.items() if not name.startswith("audio-image/") and "text" in name]
    return mean(paired), mean(never), seconds


def run(
    pairs: int = 300,
    unpaired: int = 12_000,
    steps: int = 300,
    batch_size: int = 16,
    seeds: int = 3,
    preset: Preset = "tiny",
    side: int = 64,
    gallery: int = 256,
) -> None:
    """Make the data, train every way with every seed, and print one table.

    Args:
        pairs: of image and text, and of audio and text, each.
        unpaired: images, sounds and texts together.
        steps: of each run.
        batch_size: pairs of each paired stream in a step.
        seeds: runs of each way.
        preset: size of the model.
        side: of the images in pixels, a multiple of 16.
        gallery: samples to search among; chance is one in so many.
    """
    quieten()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        toy.build(data, toy.ToyConfig(pairs=pairs, singles=unpaired // 3, gallery=gallery, image_side=side))
        for seed in range(seeds):
            for name, way in WAYS.items():
                result = train(data, way, preset=preset, steps=steps, batch_size=batch_size, side=side, seed=seed)
                found[name].append(result)
                print(f"seed {seed}, {name}: {_cells(*result)}", flush=True)
    print(
        f"\n{pairs} image-text and {pairs} audio-text pairs, {unpaired} unpaired samples, {steps} steps of {preset!r}"
        f" at {side} pixels, {seeds} seeds; R@1 in percent among {gallery}, mean (lowest to highest), chance"
        f" {100 / gallery:.1f}\n"
    )
    print(f"{'':<30}{'trained pairs':>22}{'audio and image':>22}{'seconds/step':>14}")
    for name, results in found.items():
        paired, never, seconds = (list(column) for column in zip(*results, strict=True))
        print(f"{name:<30}{_spread(paired):>22}{_spread(never):>22}{mean(seconds):>14.2f}")


def _cells(paired: float, never: float, seconds: float) -> str:
    return f"trained pairs {paired:.1f}, audio and image {never:.1f}, {seconds:.2f} s/step"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
