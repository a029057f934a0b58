"""Aligning contrast alone against aligning and denoising contrast, on the toy world at equal steps.

``make ablation`` trains ``configs/pretrain/toy.yaml`` with and without the denoising contrast for several seeds, one
run after the other, and prints the scores on held-out combinations.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from jsonargparse import auto_cli

KINDS = ("image-text", "audio-text")
PAIRS = ", ".join(f"{kind}: {{path: data/toy/train/{kind}, batch_size: 32}}" for kind in KINDS)
ARMS = {
    # Single modalities have nothing to be contrasted with: their streams go with the denoising.
    "contrast": [
        "--model.init_args.objectives.denoise=false",
        "--data.init_args.masks=false",
        f"--data.init_args.train={{{PAIRS}}}",
    ],
    "contrast + denoising": [],
}  # fmt: skip
SCORES = (
    "image_to_text/R@1", "text_to_image/R@1", "audio_to_text/R@1",
    "text_to_audio/R@1", "audio_to_image/R@1", "image_to_audio/R@1",
)  # fmt: skip


def train(arm: str, seed: int, steps: int, folder: Path) -> dict[str, float]:
    """Scores of one run in percent; a finished run is not repeated."""
    results = folder / "results.json"
    if not results.exists():
        command = [
            sys.executable, "-m", "onepeace_lightning.cli", "fit", "--config=configs/pretrain/toy.yaml",
            f"--seed_everything={seed}", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}",
            "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false",
            "--trainer.callbacks=onepeace_lightning.training.results.ResultsTable",
            f"--trainer.callbacks.folder={folder}",
            f"--data.init_args.seed={seed}", *ARMS[arm],
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads(results.read_text())


def main(seeds: int = 3, steps: int = 500, out: Path = Path("runs/ablation")) -> None:
    """Print a Markdown table: mean and standard deviation over seeds of each arm, and their difference.

    Args:
        seeds: runs of each arm.
        steps: training steps of each run.
        out: where each run leaves its results.json.
    """
    scores = {
        arm: [train(arm, seed, steps, out / f"{arm.replace(' ', '')}-{steps}-{seed}") for seed in range(seeds)]
        for arm in ARMS
    }
    print(f"{steps} steps, {seeds} seeds, percent\n")
    print("| | " + " | ".join(ARMS) + " | difference |\n|---|" + "---|" * (len(ARMS) + 1))
    for key in SCORES:
        columns = [[run[key] for run in runs] for runs in scores.values()]
        cells = [f"{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}" for column in columns]
        print(f"| {key} | {' | '.join(cells)} | {statistics.mean(columns[1]) - statistics.mean(columns[0]):+.1f} |")


if __name__ == "__main__":
    auto_cli(main)
